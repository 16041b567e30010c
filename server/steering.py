"""From ``model`` and ``steering`` of a request to its plan, and the plan as responses show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ladle.guidance import registry
from ladle.guidance.outcome import Outcome
from ladle.guidance.plan import Blocks, Monitor, Plan, Source, Steering
from ladle.guidance.schedule import changed
from ladle.merging.exceptions import CodedText, InputError, did_you_mean
from ladle.merging.family.default_sampling import default_sampling
from ladle.merging.family.family import Family
from ladle.merging.preferences.preference import NORMALISED
from ladle.server.api_errors import ApiError, from_input_error
from ladle.server.fields.model_names import ModelName
from ladle.server.replies.monitors import MonitorReply
from ladle.server.replies.reply_types import OutcomeReply, SteeringReply
from ladle.server.replies.search import SearchReply
from ladle.server.replies.sources import SourceReply
from ladle.server.settings import ServerSettings
from ladle.server.text.patterns import require_pattern
from ladle.steering_options import AIMS

_DIRECTION = AIMS | {"method", "schedule"}
NO_PREFERENCE = CodedText("preference_missing", "no preference was given: all objectives weigh the same")


def plan_of(family: Family, model: str | None, steering: Mapping[str, Any] | None, allow_trace: bool = True) -> Plan:
    """The plan of a request. What ``steering`` says goes before what the model string or preset says.

    A request that says neither how nor towards what to steer, such as an ordinary OpenAI client sends, gets equal
    weights and a warning that says so.

    Raises:
        ApiError: 404 for an unknown model.
        InputError: anything that the family cannot do.
    """
    named = _named(family, model)
    given = {key: value for key, value in (steering or {}).items() if value is not None}
    if given.get("trace") and not allow_trace:
        raise InputError("steering.trace", True, reason="this server was started without traces")
    if "target" in given and "preference" not in given:
        named.pop("preference", None)  # both say towards what; the request's own word holds
    if "preference" in given and "target" not in given:
        named.pop("target", None)
    merged = {**named, **given}
    bare = _DIRECTION.isdisjoint(given) and AIMS.isdisjoint(named)
    if bare and registry.takes_preference(merged.get("method", registry.default_method(family))) and family.objectives:
        merged["preference"] = dict.fromkeys(family.objectives, 1.0)
        plan = registry.resolve(family, Steering.parse(merged))
        kept = tuple(warning for warning in plan.warnings if warning != NORMALISED)
        return replace(plan, warnings=(NO_PREFERENCE, *kept))
    try:
        return registry.resolve(family, Steering.parse(merged))
    except InputError as error:
        key = error.field.removeprefix("steering.").partition(".")[0]
        if key in named and key not in given:  # the client wrote it into the model string
            raise from_input_error(error, param="model") from None
        raise


def sampling_defaults(family: Family, model: str | None, method: str, held: bool) -> Mapping[str, float]:
    """How the family, or the preset that ``model`` names, draws answers where the request does not say, by field.

    Args:
        method: of the request's plan.
        held: whether a grammar decides which tokens may come.
    """
    preset = family.manifest.presets.get(model) if model is not None else None
    return default_sampling(family.manifest.sampling, preset.sampling if preset else None, method, held)


def plan_after(family: Family, plan: Plan, steering: Mapping[str, Any]) -> Plan:
    """The plan of an answer that ``plan`` has steered so far, once the keys of ``steering`` have changed. Raises
    InputError."""
    assert plan.steering is not None, "it was resolved"
    return registry.resolve(family, changed(plan.steering, steering))


def check_rank(plan: Plan, choices: int, stream: bool) -> None:
    """Raise InputError for a ranking that has nothing to choose from, keeps more than there is, or comes too late."""
    if plan.rank is None:
        return
    if choices == 1:
        reason = "there is nothing to choose from one answer; n says how many are made"
        raise InputError("steering.rank", {"by": plan.rank.stated}, reason=reason)
    if plan.rank.by == "vote":
        require_pattern(plan.rank.text, "steering.rank.by.vote")
    if plan.rank.keep > choices:
        raise InputError("steering.rank.keep", plan.rank.keep, f"at most n, which is {choices}")
    if stream:
        raise InputError("stream", True, reason="with steering.rank only the end shows which answer is the best")


def check_search(plan: Plan, settings: ServerSettings, answers: int, temperature: float) -> None:
    """Raise InputError for a search that is larger than this server lets one be, or whose draws are all the same.

    ``answers``: that are searched for at once; what they draw waits beside other requests.
    """
    blocks = plan.blocks
    if blocks is None or blocks.option != "search":
        return
    draws = "steering.search.draws" if blocks.entropy is None else "steering.search.draws.most"
    if blocks.count > settings.max_search_draws:
        raise InputError(draws, blocks.count, f"at most {settings.max_search_draws} here")
    if blocks.beam > settings.max_search_beam:
        raise InputError("steering.search.beam", blocks.beam, f"at most {settings.max_search_beam} here")
    together = answers * blocks.count * blocks.beam
    if answers > 1 and together > settings.max_queue:
        reason = f"{answers} answers draw {together} continuations at once; at most {settings.max_queue} may wait here"
        raise InputError(draws, blocks.count, reason=reason)
    if temperature == 0 and blocks.count > 1:
        reason = "at 0 all draws of a text are the same, and steering.search has nothing to choose from"
        raise InputError("temperature", temperature, "a number above 0", reason)


def _named(family: Family, model: str | None) -> dict[str, Any]:
    """The steering that a model string or a preset's name stands for."""
    if model is None:
        return {}
    if model in family.manifest.presets:
        return family.manifest.presets[model].steering()
    name = ModelName.parse(model)
    if name.family != family.name or (name.method is not None and name.method not in registry.METHODS):
        raise unknown_model(model, family)
    steering: dict[str, Any] = {}
    if name.method is not None:
        steering["method"] = name.method
    if name.preference:
        steering["preference"] = dict(name.preference)
    return steering


def model_ids(family: Family) -> list[str]:
    """Every model name worth listing: the family, the family with each method it can serve and that a name can ask
    for, the presets."""
    methods = [f"{family.name}/{name}" for name in registry.usable_by_name(family)]
    return [family.name, *methods, *family.manifest.presets]


def unknown_model(model: str, *families: Family) -> ApiError:
    """404 with the known models."""
    names = [name for family in families for name in model_ids(family)]
    known, slip = ", ".join(names), did_you_mean(model[:200], names)
    message = (
        f"model: {model[:200]!r} is not served here{slip}; known: {known}; preferences follow as @objective=weight,..."
    )
    return ApiError(404, message, param="model", code="model_not_found")


def describe(plan: Plan) -> SteeringReply:
    """``steering`` as responses carry it."""
    coefficients = plan.coefficients
    reply: SteeringReply = {
        "method": plan.method,
        "preference": plan.preference.as_dict() if plan.preference else None,
        "coefficients": coefficients.as_dict() if coefficients else {},
        "base_share": coefficients.base_share if coefficients else 1.0,
        "normalize": plan.normalize,
        "sources": sources(plan),
        "warnings": list(plan.warnings),
    }
    if plan.target is not None:
        reply["target"] = {name: _outcome(outcome) for name, outcome in plan.target.items()}
    if plan.routing is not None:
        reply["routing"] = {
            "complement": plan.routing.complement,
            "expert_weight": plan.routing.weight,
            "top_experts": plan.routing.top,
            "min_stay": plan.routing.stay,
            "threshold": plan.routing.threshold,
        }
    if plan.rank is not None:
        ranking = [_source(source) for source in plan.rank.sources]
        reply["rank"] = {"by": plan.rank.stated, "per": plan.rank.per, "keep": plan.rank.keep, "sources": ranking}
    if plan.blocks is not None and plan.blocks.option == "search":
        reply["search"] = _search(plan.blocks)
    if plan.monitors:
        reply["monitor"] = {"monitors": [describe_monitor(monitor) for monitor in plan.monitors], "stopped": []}
    return reply


def _search(blocks: Blocks) -> SearchReply:
    reply: SearchReply = {
        "by": blocks.by,
        "until": blocks.ends or blocks.length,
        "draws": blocks.count,
        "beam": blocks.beam,
        "sources": [_source(source) for source in blocks.sources],
    }
    if blocks.entropy is not None:
        reply["entropy"] = list(blocks.entropy)
    return reply


def describe_monitor(monitor: Monitor) -> MonitorReply:
    """A monitor as clients see it."""
    reply: MonitorReply = {"name": monitor.name, "above": monitor.above, "for": monitor.run, "hold": monitor.hold}
    if monitor.source is not None:
        reply["value"] = monitor.source.name
    if monitor.question is not None:
        reply["ask"] = monitor.question.text
    return reply


def _outcome(outcome: Outcome) -> OutcomeReply:
    return {
        "wanted": outcome.wanted,
        "quantile": outcome.quantile,
        "low": outcome.low,
        "high": outcome.high,
        "reward": outcome.reward,
    }


def sources(plan: Plan) -> list[SourceReply]:
    """The sources of a plan as responses list them."""
    return [_source(source) for source in plan.sources]


def _source(source: Source) -> SourceReply:
    reply: SourceReply = {
        "name": source.name,
        "role": source.role,
        "weight": source.weight,
        "coefficients": dict(source.coefficients),
    }
    if source.model:
        reply["model"] = source.model
    if source.view is not None:
        reply["prompt"] = {"kind": source.view.kind, "text": source.view.text}
    if source.head:
        reply["head"] = dict(source.head)
    return reply
