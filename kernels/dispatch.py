"""The only door to the kernels: what other rooms import, whatever runs underneath."""

from ladle.kernels.packed_linear import PackedLinear, cpu_has_bfloat16
from ladle.kernels.reference import (
    apply_penalties,
    combine_logits,
    guidance_shift,
    sample,
    token_logprobs,
)

__all__ = [
    "PackedLinear",
    "apply_penalties",
    "combine_logits",
    "cpu_has_bfloat16",
    "guidance_shift",
    "sample",
    "token_logprobs",
]
