"""The only door to the kernels: what other rooms import, whatever runs underneath."""

from ladle.kernels.packed_linear import PackedLinear, cpu_has_bfloat16
from ladle.kernels.reference import (
    add_candidate_values,
    apply_penalties,
    combine_divergence,
    combine_logits,
    guidance_shift,
    rule_out_implausible,
    sample,
    token_logprobs,
)
from ladle.kernels.routing import combine_routed, mix_experts, route_tokens

__all__ = [
    "PackedLinear",
    "add_candidate_values",
    "apply_penalties",
    "combine_divergence",
    "combine_logits",
    "combine_routed",
    "cpu_has_bfloat16",
    "guidance_shift",
    "mix_experts",
    "route_tokens",
    "rule_out_implausible",
    "sample",
    "token_logprobs",
]
