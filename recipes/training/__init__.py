"""Training backbones, policies and values on answers that the base gives itself.

In: a recipe, the base and rewards. Out: adapters, values and a card. A ``Workshop`` owns the working folder, in which
every step that is finished is kept.
"""
