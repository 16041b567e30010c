"""``cd``: controlled decoding with a prefix scorer (arXiv 2310.17022), tokenwise and blockwise."""

from ladle.guidance.methods.guidance_method import Guidance, Request
from ladle.guidance.methods.scored_method import ScoredMethod
from ladle.guidance.plan import Blocks
from ladle.guidance.values import guides
from ladle.merging.exceptions import InputError

BLOCKS = 4
MOST_BLOCKS = 64


class ControlledDecoding(ScoredMethod):
    """The paper's two modes, and its linear combination of prefix scorers for several rewards.

    Tokenwise: p(z) proportional to p_base(z) * exp(lambda * sum_i mu_i V_i(x, y<t, z)); lambda is the strength. The
    paper scores every token; that we score the 20 best and rule out the rest is our approximation (``candidates`` sets
    how many).

    Blockwise, where ``block_length`` is given: ``candidates`` blocks of so many tokens are drawn from the base, and the
    one whose end has the greatest sum_i mu_i V_i is kept, again and again. It has no lambda: how many blocks are drawn
    (4 unless said otherwise, our choice) decides how far it moves from the base.
    """

    name = "cd"
    options = ScoredMethod.options | {"block_length"}
    candidates = 20
    restricted = True

    def guidance(self, request: Request) -> Guidance:
        steering = request.steering
        if steering.block_length is None:
            return super().guidance(request)
        if steering.strength is not None and request.strength not in (0.0, 1.0):
            raise InputError("steering.strength", request.strength, reason="blocks are chosen and not weighed")
        count = steering.candidates or BLOCKS
        if count > MOST_BLOCKS:
            raise InputError("steering.candidates", count, f"at most {MOST_BLOCKS} blocks")
        parts, warnings = guides(request.family, "explicit", request.mu, steering.combine, "ensemble")
        blocks = Blocks(count, steering.block_length, option="block_length")
        return Guidance(tuple(part.source() for part in parts), blocks=blocks, warnings=warnings)
