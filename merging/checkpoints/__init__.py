"""Folders of weights as people have them: finding, reading, checking and converting them.

In: a path, a hub id or an installed distribution. Out: a folder and a ``CheckpointReader`` over it, and what its config
says of shapes (``Architecture``). Files are only ever read here; ``new_folder`` writes complete folders or none.
"""
