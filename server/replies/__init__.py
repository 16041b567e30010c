"""Shapes of answers that several endpoints share. In: results of the engine or a family. Out: JSON models."""
