"""``co_llm``: Co-LLM (arXiv 2403.03870), a base that defers single tokens to an assistant."""

from ladle.guidance.method import Availability
from ladle.guidance.methods.routed_method import RoutedMethod
from ladle.guidance.plan import Routing, Steering
from ladle.merging.family.family import Family

THRESHOLD = 0.5


class CoLlm(RoutedMethod):
    """The expert's distribution where sigmoid(d) > ``threshold``, the router's own elsewhere.

    d is a logit on the router's last hidden state: the paper has it as one more entry of the output vocabulary, which
    is the same linear form. As in the authors' ``defer`` mode, the model that speaks speaks alone. They draft several
    tokens greedily and replace the first one to be deferred, which is the same as deciding token by token, as is done
    here; that the expert's token may be sampled is ours.
    The default threshold is ours: the paper searches it on validation data. A family with several experts defers to
    the one that the head scores best (our own option; the paper has one assistant).
    """

    name = "co_llm"
    options = frozenset({"threshold", "coefficients"})

    def availability(self, family: Family, stated: bool = False) -> Availability:
        state = super().availability(family, stated)
        if state.available and family.router is not None and family.router.head.defer is None:
            return Availability(
                False, f"router {family.router.name!r} has no deferral logit (tensor defer of its head)"
            )
        return state

    def routing(self, steering: Steering, head: str, experts: tuple[int, ...]) -> Routing:
        threshold = THRESHOLD if steering.threshold is None else steering.threshold
        return Routing(source=0, head=head, experts=experts, complement=0.0, threshold=threshold)
