"""The methods by name, and the one way from a request's steering to a plan."""

from dataclasses import replace

from ladle.guidance.method import Availability, Method
from ladle.guidance.methods.amplify import Amplify
from ladle.guidance.methods.args import Args
from ladle.guidance.methods.base import BaseMethod
from ladle.guidance.methods.bone_soup import BoneSoup
from ladle.guidance.methods.cd import ControlledDecoding
from ladle.guidance.methods.cfg import Cfg
from ladle.guidance.methods.co_llm import CoLlm
from ladle.guidance.methods.contrastive import Contrastive
from ladle.guidance.methods.custom import Custom
from ladle.guidance.methods.dexperts import DExperts
from ladle.guidance.methods.fitted_soup import FittedSoup
from ladle.guidance.methods.fudge import Fudge
from ladle.guidance.methods.fusion_route import FusionRoute
from ladle.guidance.methods.genarm import GenArm
from ladle.guidance.methods.mage import Mage
from ladle.guidance.methods.mod import Mod
from ladle.guidance.methods.pad import Pad
from ladle.guidance.methods.parm import Parm
from ladle.guidance.methods.proxy_tuning import ProxyTuning
from ladle.guidance.methods.rewarded_soup import RewardedSoup
from ladle.guidance.methods.vas import Vas
from ladle.guidance.monitors import monitors_of
from ladle.guidance.plan import Plan, ScheduledPlan, Steering
from ladle.guidance.ranking import rank_of
from ladle.guidance.schedule import inside, parts_of
from ladle.guidance.searching import searched
from ladle.guidance.stated import takes_over
from ladle.guidance.target import resolve_target
from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.family.family import Family
from ladle.merging.family.place import MANIFEST_NAME
from ladle.steering_options import OPTIONS, UNIVERSAL

_ALL: tuple[Method, ...] = (
    FittedSoup(),
    BoneSoup(),
    RewardedSoup(),
    BaseMethod(),
    Mage(),
    Amplify(),
    Mod(),
    GenArm(),
    Parm(),
    ProxyTuning(),
    DExperts(),
    Contrastive(),
    Cfg(),
    Pad(),
    Args(),
    Fudge(),
    ControlledDecoding(),
    Vas(),
    FusionRoute(),
    CoLlm(),
    Custom(),
)
# In the order in which a family without default_method prefers them: what was measured on it comes first, and the base
# is always there, so that guidance, which costs more, is never a default that nobody chose.
METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def resolve(family: Family, steering: Steering) -> Plan:
    """The plan for ``steering`` on ``family``.

    Raises:
        InputError: an unknown method, one whose members the family lacks, an option the method has no use for, a bad
            preference or bad coefficients, a target that cannot be reached; the field starts with ``steering.``.
    """
    if steering.schedule is not None:
        if steering.rank is not None:
            reason = "it cannot stand beside a schedule: an answer is judged under one preference"
            raise InputError("steering.rank", steering.rank, reason=reason)
        if steering.search is not None:
            reason = "it cannot stand beside a schedule: the texts that are compared are written under one preference"
            raise InputError("steering.search", steering.search, reason=reason)
        return _scheduled(family, steering)
    if steering.target is not None:
        # A target becomes the preference that is expected to reach it; the plan is resolved from that one, and reports
        # the request as it was sent.
        aimed, reached = resolve_target(family, steering)
        return replace(resolve(family, aimed), target=reached.outcomes, steering=steering)
    # In this order, so that an error names the first thing to be changed: the method, what it needs of the family,
    # options that it has no use for, and last the values of its own.
    name = steering.method if steering.method is not None else _unnamed(family, steering)
    if name not in METHODS:
        raise InputError("steering.method", name, _usable(family))
    method = METHODS[name]
    # Stated coefficients need neither policies nor a matrix, only members to weigh.
    state = method.availability(family, takes_over(family, steering) and "coefficients" in method.options)
    if not state.available:
        raise InputError("steering.method", name, _usable(family), state.reason)
    for option in OPTIONS.values():
        given = getattr(steering, option.name)
        if option.name in UNIVERSAL | method.options or given == option.default:
            continue
        options = ", ".join(sorted(method.options)) or "none"
        reason = f"it is not supported by method {name} (options: {options})"
        raise InputError(f"steering.{option.name}", given, reason=reason)
    if steering.normalize not in method.normalizations:
        known = f"{', '.join(method.normalizations)} (method {name})"
        raise InputError("steering.normalize", steering.normalize, known)
    # The method gives sources and rule; monitors, search and ranking stand around any method.
    plan = method.plan(family, steering)
    plan = replace(plan, steering=steering, monitors=monitors_of(family, plan, steering.monitor))
    if steering.search is not None:
        return searched(family, plan, steering.search)
    return plan if steering.rank is None else replace(plan, rank=rank_of(family, plan, steering.rank))


def _unnamed(family: Family, steering: Steering) -> str:
    """The method of a request that names none: the family's default; but a default that takes no coefficients gives
    way to ``rewarded_soup``, which adds them up as they stand, where steering vectors are all that is asked for."""
    name = default_method(family)
    if "coefficients" in METHODS[name].options or steering.preference is not None or not steering.coefficients:
        return name
    return RewardedSoup.name if all(member in family.vectors for member in steering.coefficients) else name


def _scheduled(family: Family, steering: Steering) -> Plan:
    plans = []
    # Each part is resolved as a request of its own, so that it may have another method; errors name the part.
    for index, (start, part) in enumerate(parts_of(steering)):
        try:
            plan = resolve(family, part)
            if plan.blocks is not None and len(steering.schedule) > 1:
                reason = "whole blocks are chosen from the beginning of an answer on, so no schedule can have them"
                raise InputError("steering.block_length", plan.blocks.length, reason=reason)
        except InputError as error:
            if error.field.startswith("steering.monitor"):
                raise  # it stands beside the schedule
            raise inside(index, error) from None
        plans.append(ScheduledPlan(start, plan))
    return replace(plans[0].plan, schedule=tuple(plans[1:]))


def available(family: Family) -> dict[str, tuple[bool, str]]:
    """(available, why not) of every method for ``family``."""
    states = {name: method.availability(family) for name, method in METHODS.items()}
    return {name: (state.available, state.reason) for name, state in states.items()}


def _usable(family: Family) -> str:
    """The available methods, for an error: to ask all of them takes longer than most requests' own method."""
    return ", ".join(method for method, (ready, _) in available(family).items() if ready)


def usable_by_name(family: Family) -> tuple[str, ...]:
    """The available methods that need no option but a preference: those that a model string can ask for."""
    return tuple(name for name, (ready, _) in available(family).items() if ready and not METHODS[name].needs)


def takes_preference(name: str) -> bool:
    """Whether the method ``name`` wants a preference; an unknown one, about which ``resolve`` will complain, does."""
    return name not in METHODS or METHODS[name].takes_preference


def default_method(family: Family) -> str:
    """The manifest's ``default_method``, else the first available one of ``METHODS``.

    Raises:
        FamilyError: the manifest names a method that is unknown or that the family cannot serve.
    """
    name = family.manifest.default_method
    # Methods stand in order of preference, and the base, which every family has, ends the search.
    if name is None:
        return next(name for name, method in METHODS.items() if method.availability(family).available)
    _require(family, "default_method", name)
    return name


def check_methods(family: Family) -> None:
    """Check what the manifest says about methods: its default and its presets must resolve.

    Raises:
        FamilyError: naming family.toml and the key.
    """
    default_method(family)
    for name in family.manifest.sampling.methods if family.manifest.sampling is not None else ():
        if name not in METHODS:
            known = ", ".join(METHODS)
            key = f"sampling.methods.{name}"
            raise FamilyError(family.root / MANIFEST_NAME, f"{key}: unknown method; known: {known}")
    for name, preset in family.manifest.presets.items():
        if preset.method is not None:
            _require(family, f"presets.{name}.method", preset.method)
        try:
            resolve(family, preset_steering(family, name))
        except InputError as error:
            raise FamilyError(family.root / MANIFEST_NAME, f"presets.{name}: {error}") from None


def preset_steering(family: Family, name: str) -> Steering:
    """The steering that the preset ``name`` stands for. Raises KeyError for an unknown preset."""
    return Steering.parse(family.manifest.presets[name].steering())


def _require(family: Family, key: str, name: str) -> None:
    unknown = Availability(False, f"unknown method; known: {', '.join(METHODS)}")
    state = METHODS[name].availability(family) if name in METHODS else unknown
    if not state.available:
        raise FamilyError(family.root / MANIFEST_NAME, f"{key}: {name!r} is not available: {state.reason}")
