"""Experts and routers: training them, and measuring what routing gains.

In: a routing recipe. Out: adapters, a router's head, and a card with measurements.
"""
