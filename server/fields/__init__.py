"""Fields that bodies of several endpoints share, and what is checked of each.

In: JSON. Out: validated values, or an ``InputError`` that names the field. Nothing here keeps state.
"""
