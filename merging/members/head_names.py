"""What trainers call the scalar head of a reward or value model inside its checkpoint or adapter."""

# transformers' sequence classifiers and OpenRLHF; TRL's and LLaMA-Factory's value heads; older OpenRLHF.
_HEADS = ("score", "v_head.summary", "v_head", "value_head")
HEAD_NAMES = {f"{head}.{part}": part for head in _HEADS for part in ("weight", "bias")}
"""``weight`` or ``bias`` by the name of a tensor."""
EXPECTED = "score.weight, v_head.summary.weight or value_head.weight, each with an optional bias"
"""The names in words, for messages."""
