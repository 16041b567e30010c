"""What one member's folder holds: a LoRA, a PBLoRA, full weights, the head of a value or of a router.

In: a folder and the base's ``Architecture``. Out: factors or readers in the base's names. Nothing here keeps state.
"""
