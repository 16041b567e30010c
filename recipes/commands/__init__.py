"""The commands ``ladle sweep``, ``compare``, ``fit`` and ``calibrate``: options in, files and tables out."""
