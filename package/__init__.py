"""Ladle: an inference-time controllable decoding server."""

from importlib.metadata import version

__version__ = version("ladle")
