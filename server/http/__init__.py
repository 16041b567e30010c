"""What HTTP itself asks for: reading bodies, sending events, noticing that a client has left or reads slowly.

In: ASGI messages. Out: parsed bodies and sent bytes. Nothing here knows what is generated.
"""
