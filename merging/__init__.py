"""From files and preferences to merged weights.

In: a family's folder, and a preference per request. Out: ``Family`` (checked, on the CPU), ``Coefficients`` and,
through ``bank`` or ``merges``, layers that compute with the merged weights. No module here knows of requests or HTTP.
"""
