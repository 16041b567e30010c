"""``fusion_route``: FusionRoute (arXiv 2601.05106), a router that picks an expert and adds its own scores."""

from ladle.guidance.methods.routed_method import RoutedMethod
from ladle.guidance.plan import Routing, Steering
from ladle.merging.exceptions import InputError


class FusionRoute(RoutedMethod):
    """S = a * lp_router + b * lp_expert, the expert being the argmax of W h on the router's last hidden state h.

    From the paper: the head, the hard choice at every token, the sum of log-probabilities with the coefficients
    a = b = 1, and routing alone (``complement`` 0) as an ablation. Both coefficients add up to 2, so that where router
    and expert agree the result is their distribution at half the temperature; ``normalize: sum`` divides by a + b and
    undoes that. Ours are ``normalize``, coefficients other than 1, and:

    - ``top_experts`` m: in place of lp_expert the log of sum_i a_i p_i over the m best experts, a = softmax(w) over
      them;
    - ``min_stay``: once switched to, an expert is kept for at least so many tokens.
    """

    name = "fusion_route"
    options = frozenset({"complement", "expert_weight", "top_experts", "min_stay", "coefficients", "normalize"})

    def routing(self, steering: Steering, head: str, experts: tuple[int, ...]) -> Routing:
        top, stay = steering.top_experts or 1, steering.min_stay or 1
        if top > len(experts):
            raise InputError("steering.top_experts", top, f"a whole number from 1 to {len(experts)}, all experts")
        if top > 1 and stay > 1:
            reason = f"the mixture of top_experts {top} has no expert to stay with"
            raise InputError("steering.min_stay", stay, "1", reason)
        return Routing(
            source=0,
            head=head,
            experts=experts,
            complement=1.0 if steering.complement is None else steering.complement,
            weight=1.0 if steering.expert_weight is None else steering.expert_weight,
            top=top,
            stay=stay,
        )
