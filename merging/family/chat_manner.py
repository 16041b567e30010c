"""How a family talks: its chat template and the tokens that end an answer, the base's or those of its members."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ladle.merging.checkpoints.checkpoint_reader import read_json
from ladle.merging.checkpoints.vocabulary import TOKENIZER, tokens_of
from ladle.merging.exceptions import FamilyError

_ANSWER = "the answer"
_KEPT = 80  # characters of a template that may stand between an answer and the token that ends the turn


@dataclass(frozen=True)
class ChatManner:
    """What is in force besides what the base's own tokenizer and generation config say.

    Attributes:
        template: chat template, Jinja; None leaves the base's own.
        origin: where the template comes from, in words.
        eos_token: what the template means by ``eos_token``; None leaves the base's.
        ends: names of tokens that end an answer besides the base's own, sorted.
        warnings: where base and members disagree, in sentences.
    """

    template: str | None = None
    origin: str = "the base"
    eos_token: str | None = None
    ends: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def dress(self, tokenizer: Any) -> frozenset[int]:
        """Give the base's ``tokenizer`` this template; the ids of ``ends``."""
        if self.template is not None:
            tokenizer.chat_template = self.template
        if self.eos_token is not None:
            tokenizer.eos_token = self.eos_token
        ids = (tokenizer.backend_tokenizer.token_to_id(token) for token in self.ends)
        return frozenset(number for number in ids if number is not None)


@dataclass(frozen=True)
class _Manner:
    """What one folder says: its template, its ``eos_token``, all tokens that end a text there."""

    template: str | None
    eos_token: str | None
    ends: frozenset[str]


def read_conversation(
    base: Path,
    members: Sequence[tuple[str, Path]],
    template_file: Path | None = None,
    stop_tokens: Sequence[str] | None = None,
    manifest: Path | None = None,
) -> ChatManner:
    """What is in force for a base and the language models among its members.

    The base's template stands, or else the first member's; ``template_file`` replaces any. The token with which the
    template ends an assistant's turn ends an answer; so do the members' own end tokens where the base has no template
    of its own, and ``stop_tokens`` instead of these where they are given.

    Args:
        base: folder of the base.
        members: (name, folder), in manifest order.
        template_file: a Jinja file, or a JSON file with ``chat_template``.
        stop_tokens: names of tokens.
        manifest: the file to blame for ``stop_tokens``.

    Raises:
        FamilyError: a file that cannot be read, a template that is none, a stop token that the base lacks.
    """
    # First the template: a file that was named, the base's own, or the first member's that has one.
    tokens = _tokens(base) or {}
    known = set(tokens.values())
    own = _manner(base, base, tokens)
    others = [(name, _manner(folder, base, tokens)) for name, folder in members]
    spoken = ChatManner()
    if template_file is not None:
        spoken = ChatManner(_template_of(template_file), str(template_file))
        _require_template(spoken.template or "", template_file)
    elif own.template is not None:
        _require_template(own.template, base)
    else:
        for name, manner in others:
            if manner.template is not None:
                _require_template(manner.template, dict(members)[name])
                eos = manner.eos_token if manner.eos_token in known else None
                spoken = ChatManner(manner.template, f"member {name}", eos)
                break
    # Then the tokens that end an answer: the one that the template puts behind a turn, and those that are stated or,
    # where the base has no template, those that its members end with.
    in_force = spoken.template if spoken.template is not None else own.template
    eos = spoken.eos_token or own.eos_token
    ends = {turn} if in_force and (turn := end_of_turn(in_force, known, eos)) else set()
    if stop_tokens is not None:
        for token in stop_tokens:
            if token not in known:
                raise FamilyError(manifest or base, f"stop_tokens: {token!r} is no token of the base's tokenizer")
        ends |= set(stop_tokens)
    elif own.template is None:
        ends |= {token for _, manner in others for token in manner.ends}
    lacking = sorted(token for token in ends if token not in known)
    ends -= {*lacking, *own.ends}
    warnings = _disagreements(others, in_force, spoken.origin, ends | own.ends, known, stop_tokens is not None)
    return replace(spoken, ends=tuple(sorted(ends)), warnings=tuple(warnings))


def end_of_turn(template: str, tokens: set[str], eos_token: str | None) -> str | None:
    """The token that ``template`` puts behind an assistant's message; None where it puts none of ``tokens`` there, or
    cannot be rendered."""
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = _compiled(template).render(
            messages=turns, add_generation_prompt=False, bos_token="", eos_token=eos_token or "", tools=None
        )
    except Exception:  # templates are programs
        return None
    # A template is a program, so it is run: what stands behind the answer that it was given is how it ends a turn.
    rest = str(text).rpartition(_ANSWER)[2].lstrip()[:_KEPT]
    # The longest one: "<|end|>" may be the beginning of another.
    return max((token for token in tokens if len(token) > 1 and rest.startswith(token)), key=len, default=None)


@lru_cache(maxsize=64)
def _compiled(template: str) -> Any:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(template)


def _disagreements(
    others: Sequence[tuple[str, _Manner]],
    in_force: str | None,
    origin: str,
    ends: set[str] | frozenset[str],
    known: set[str],
    stated: bool,
) -> list[str]:
    warnings = []
    for name, manner in others:
        if manner.template is not None and in_force is not None and manner.template.strip() != in_force.strip():
            warnings.append(
                f"member {name} has another chat template than {origin}, which is in force; "
                "chat_template in family.toml or --chat-template chooses one"
            )
        missed = sorted(manner.ends - ends)
        for token in [] if stated else missed:
            if token in known:
                warnings.append(
                    f"member {name} ends its answers with {token}, which ends none here; "
                    "stop_tokens in family.toml adds it"
                )
            else:
                warnings.append(f"member {name} ends its answers with {token}, which is no token of the base")
    return warnings


def _tokens(folder: Path) -> dict[int, str] | None:
    """Token by id; of a folder without ``tokenizer.json`` those that its configuration adds. None where it has none."""
    if (folder / TOKENIZER).is_file():
        return tokens_of(folder / TOKENIZER)
    file = folder / "tokenizer_config.json"
    added = read_json(file).get("added_tokens_decoder") if file.is_file() else None
    if not isinstance(added, Mapping):
        return None
    return {int(number): name for number, token in added.items() if number.isdigit() and (name := _name(token))}


def _manner(folder: Path, base: Path, tokens: dict[int, str]) -> _Manner:
    """What ``folder`` says; ``tokens`` are those of ``base``."""
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    # Large files, and most members have the base's.
    ours, theirs = base / TOKENIZER, folder / TOKENIZER
    same = ours.is_file() and theirs.is_file() and ours.read_bytes() == theirs.read_bytes()
    names = tokens if same else _tokens(folder)
    eos = _name(config.get("eos_token"))
    if eos is None and (folder / "special_tokens_map.json").is_file():
        eos = _name(read_json(folder / "special_tokens_map.json").get("eos_token"))
    # The generation config, where there is one, decides for the folder; config.json is asked only without it.
    ids: list[int] = []
    for file in ("generation_config.json", "config.json"):
        if (folder / file).is_file():
            eos_ids = read_json(folder / file).get("eos_token_id")
            stated = eos_ids if isinstance(eos_ids, list) else [eos_ids]
            ids = [number for number in stated if isinstance(number, int) and not isinstance(number, bool)]
            break
    names = tokens if names is None else names
    ends = {names[number] for number in ids if number in names}
    template = _template_in(folder, config)
    turn = end_of_turn(template, set(names.values()), eos) if template else None
    return _Manner(template, eos, frozenset(ends | ({eos} if eos else set()) | ({turn} if turn else set())))


def _name(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) and content else None


def _template_in(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template of a folder, in the order in which transformers looks for it."""
    for name in ("chat_template.jinja", "chat_template.json"):
        if (folder / name).is_file():
            return _template_of(folder / name)
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) and template.strip() else None


def _template_of(file: Path) -> str:
    """Raises FamilyError: no such file, or none that can be read."""
    if file.suffix == ".json":
        template = read_json(file).get("chat_template")
        if not isinstance(template, str):
            raise FamilyError(file, "chat_template: a text is needed")
    else:
        try:
            template = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise FamilyError(file, "no such file; a chat template is a Jinja file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise FamilyError(file, f"cannot be read as a chat template: {error}") from None
    return template


def _require_template(template: str, place: Path) -> None:
    """Raise FamilyError, naming ``place``, for what is no Jinja."""
    try:
        _compiled(template)
    except Exception as error:
        raise FamilyError(place, f"chat template: is no chat template in Jinja: {error}") from None
