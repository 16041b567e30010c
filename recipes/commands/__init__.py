"""The commands ``ladle train``, ``sweep``, ``compare``, ``fit``, ``calibrate`` and ``monitor``: options in, files and
tables out."""
