"""Continuous batching of sequences with different merges and methods.

In: ``GenerationRequest``s from any thread (``async_engine``). Out: ``StepOutput``s per sequence. The engine's thread
writes everything that belongs to running sequences. Read from the top: async_engine, engine, model_runner, graphs,
scores, forward, schedule, requests, kv, device.
"""
