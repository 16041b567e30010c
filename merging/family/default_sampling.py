"""How answers are drawn where a request does not say: ``[sampling]`` of ``family.toml``, and that of a preset."""

from collections.abc import Mapping

from pydantic import Field

from ladle.merging.family.manifest_tables import Sampling

PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


class FamilySampling(Sampling):
    """``[sampling]``: defaults of every request; ``[sampling.methods.NAME]`` overrides them for one method."""

    methods: dict[str, Sampling] = Field(default_factory=dict)


def default_sampling(
    family: FamilySampling | None, preset: Sampling | None, method: str, held: bool
) -> Mapping[str, float]:
    """The defaults of one request by field; a field that is absent has the server's own default.

    The preset's go before the method's, and these before the family's. Penalties are for prose: a default one is left
    out where the answer is held to a form or must be a call, since JSON repeats its quotes and braces by its nature.

    Args:
        family: ``[sampling]``.
        preset: that of the preset that the request's ``model`` names.
        method: of the request's plan.
        held: whether a grammar decides which tokens may come.
    """
    defaults: dict[str, float] = {}
    for table in (family, family.methods.get(method) if family is not None else None, preset):
        if table is not None:
            defaults.update(table.given())
    return {name: value for name, value in defaults.items() if not (held and name in PENALTIES)}
