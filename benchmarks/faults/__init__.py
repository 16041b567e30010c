"""What a server has to survive: storms of requests, overload, slow and leaving clients, hours of load.

In: the options of ``ladle bench faults``. Out: one line per part, and exit code 1 where a promise was broken.
"""
