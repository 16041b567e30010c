"""How numba compiles the loops of ``cpu``, and what of it is kept for the next start.

In: functions. Out: decorators that make compiled code of them, and parts of their work side by side. ``compiler`` owns
the folder of compiled code and the lock that lets one parallel loop run at a time.
"""
