"""The base that an adapter says it was trained on, against the one it is served with."""

import re
from pathlib import Path

from ladle.merging.checkpoints.reader import read_json
from ladle.merging.members.adapter import CONFIG

# The same weights in another form: what quantised training starts from.
_FORMS = re.compile(r"(-unsloth)?-(bnb-4bit|4bit|8bit|bf16|gptq|awq|gguf)$")


def other_base(folder: Path, base: Path, spec: str) -> list[str]:
    """A note if the adapter in ``folder`` names another base than the one at ``base``, which the family calls ``spec``.

    Names are compared without their owner, case and form of quantisation: the shapes have been compared already, and
    models are copied and renamed.
    """
    file = folder / CONFIG
    config = read_json(file) if file.is_file() else {}
    key = "base_model_name_or_path" if "base_model_name_or_path" in config else "model"  # PEFT's key, mlx-lm's
    named = config.get(key)
    if not isinstance(named, str) or not named:
        return []
    known = {spec, base.name, str(base), str(read_json(base / "config.json").get("_name_or_path") or "")}
    # A snapshot of the hub lies in models--ORG--NAME/snapshots/REVISION.
    known |= {part.rpartition("--")[2] for part in base.parts if part.startswith("models--")}
    if Path(named).expanduser().is_dir() and Path(named).expanduser().resolve() == base.resolve():
        return []
    if _short(named) in {_short(name) for name in known if name}:
        return []
    return [f"{file}: {key} is {named!r}, but the adapter is served on {spec}; the shapes agree"]


def _short(name: str) -> str:
    """The last part of a hub id or a path, without revision and form."""
    return _FORMS.sub("", name.rstrip("/").rpartition("/")[2].partition("@")[0].lower())
