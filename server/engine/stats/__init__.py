"""Figures of a running engine. In: steps as they end. Out: ``EngineStats``, a snapshot that other threads may read."""
