"""The floors inside a room: a package or module may import those that stand on lower floors, and none beside it.

The lists below are read from the top. A module that is new has to be put on a floor here.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from imports_of import ROOT, imports

FLOORS: dict[str, list[str]] = {
    "kernels": ["dispatch ahead", "gpu reference", "cpu entropy spans step_tables trust_region"],
    "merging": ["merges", "family", "bank preferences", "members", "checkpoints", "exceptions"],
    "guidance": [
        "check offline",
        "diagnostics registry",
        "searching",
        "methods monitors ranking",
        "values",
        "method schedule sources stated target",
        "plan",
        "outcome",
    ],
    "server/engine": [
        "async_engine engine_admin",
        "live_steering",
        "engine",
        "speculation",
        "admission led_requests model_runner rank_process",
        "monitored_answer scored_answer verified_thought",
        "block_search drafting",
        "graphs led_answer questions request_tracker served_models",
        "ranks step_result weights_store",
        "scores",
        "forward",
        "schedule stats",
        "requests",
        "kv",
        "device engine_config grammars",
    ],
    "server": [
        "commands",
        "scale_out",
        "run",
        "app",
        "routes",
        "native responses",
        "anthropic openai",
        "chat_jobs prompt_report ranked_choices streaming",
        "generation",
        "prompts",
        "admin chat_rendering job_record observed reader steering",
        "fields state",
        "live_answers settings tools",
        "hosting http replies",
        "access",
        "api_errors serving",
        "envelopes text",
        "watch",
    ],
    "recipes": [
        "commands everyday studies",
        "experts",
        "training",
        "config fits",
        "routing_config",
        "domains soup sweeps",
        "prompt_sources reward_sources",
        "base_model batched_sampling classifier markdown processes prompt_list rewards scoring soup_config "
        "text_metrics trl_config",
    ],
    "benchmarks": [
        "command",
        "gpu led serve",
        "peers",
        "architectures decode faults forms guidance monitor quantized reproducible routing speculation vectors",
        "bandwidth engine_side machine merge paired random_family tiny_config",
        "tiny_overrides",
    ],
    "clients": [
        "cli",
        "sdk_commands",
        "chat_session completion",
        "async_client client lazy_commands",
        "calls display painter stream",
        "family_responses",
        "arguments connection payload responses",
        "bash_words errors event_decoder retry",
    ],
}
# Rooms of their own inside of others.
INNER = {"server": "engine"}
MOST = 20
"""Modules in one folder that are about different things."""
OF_ONE_KIND = {"guidance/methods"}


def floor_of(room: str) -> dict[str, int]:
    return {name: height for height, names in enumerate(reversed(FLOORS[room])) for name in names.split()}


def members(room: str) -> Iterator[tuple[str, Path]]:
    """(package or module directly inside ``room``, file) of every module but the room's own ``__init__``."""
    for path in sorted((ROOT / room).rglob("*.py")):
        name = path.relative_to(ROOT / room).parts[0].removesuffix(".py")
        if name not in ("__init__", INNER.get(room)):
            yield name, path


@pytest.mark.parametrize("room", FLOORS)
def test_imports_lead_down(room: str) -> None:
    floors = floor_of(room)
    prefix = "ladle." + room.replace("/", ".") + "."
    wrong = []
    for name, path in members(room):
        for line, module in imports(path):
            target = module.removeprefix(prefix).partition(".")[0] if module.startswith(prefix) else None
            if target in floors and target != name and floors[target] >= floors[name]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {name} must not import {target}, which is not below it")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", FLOORS)
def test_everything_stands_on_a_floor(room: str) -> None:
    assert {name for name, _ in members(room)} == set(floor_of(room))


def test_no_folder_holds_too_much() -> None:
    counts = {
        folder: sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        for room in (*FLOORS, "server/engine")
        for folder in [ROOT / room, *(path for path in (ROOT / room).rglob("*") if path.is_dir())]
    }
    large = {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > MOST}
    assert set(large) <= OF_ONE_KIND, large


def test_every_package_says_what_it_is_for() -> None:
    """What comes in, what goes out: in the docstring, where who opens the folder looks first."""
    silent = [
        str(path.relative_to(ROOT))
        for room in FLOORS
        for path in (ROOT / room).rglob("__init__.py")
        if path.parent.name != "playground" and not path.read_text().startswith('"""')
    ]
    assert not silent, silent
