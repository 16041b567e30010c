"""The base that an adapter says it was trained on, against the one it is served with."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ladle.merging.checkpoints.checkpoint_reader import read_json
from ladle.merging.members.adapter import CONFIG

# The same weights in another form: what quantised training starts from, and what converted files are called.
_FORM = re.compile(r"[-._]((unsloth[-._])?(bnb[-._])?[248]bit|bf16|fp?16|fp?32|gptq|awq|gguf|i?q\d\w*|[0-9a-f]{12})$")


def named_base(folder: Path) -> str | None:
    """What the adapter in ``folder`` calls its base; None where it does not say."""
    file = folder / CONFIG
    config = read_json(file) if file.is_file() else {}
    # PEFT's key, mlx-lm's.
    named = config.get("base_model_name_or_path", config.get("model"))
    return named if isinstance(named, str) and named else None


def other_bases(adapters: Mapping[str, Path], base: Path, spec: str) -> list[str]:
    """Notes about ``adapters``, folder by name, that name another base than the one at ``base``, which the family calls
    ``spec``; those that name the same one together.

    Names are compared without their owner, case and form of quantisation: models are copied and renamed, and the shapes
    agree already.
    """
    known = {spec, base.name, str(read_json(base / "config.json").get("_name_or_path") or "")}
    # A snapshot of the hub lies in models--ORG--NAME/snapshots/REVISION.
    known |= {part.rpartition("--")[2] for part in base.parts if part.startswith("models--")}
    short = {_short(name) for name in known if name}
    others: dict[str, list[str]] = {}
    for name, folder in adapters.items():
        named = named_base(folder)
        if named is not None and _short(named) not in short and not _is_folder(named, base):
            others.setdefault(named, []).append(name)
    return [_told(named, names, spec) for named, names in others.items()]


def _told(named: str, names: Sequence[str], spec: str) -> str:
    who = f"member {names[0]} was" if len(names) == 1 else f"members {', '.join(names)} were"
    return f"{who} trained on {named!r} (base_model_name_or_path), but the base here is {spec}; their shapes agree"


def _is_folder(named: str, base: Path) -> bool:
    try:
        return Path(named).expanduser().resolve() == base.resolve()
    except (OSError, RuntimeError, ValueError):
        return False


def _short(name: str) -> str:
    """The last part of a hub id or a path, without revision and forms."""
    short = name.rstrip("/").rpartition("/")[2].partition("@")[0].lower()
    while (cut := _FORM.sub("", short)) != short:
        short = cut
    return short
