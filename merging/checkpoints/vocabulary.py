"""Whether two tokenizers give the same ids: members must share the base's vocabulary."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ladle.merging.checkpoints.checkpoint_reader import read_json
from ladle.merging.exceptions import FamilyError

TOKENIZER = "tokenizer.json"
# Names of tokens that a vocabulary holds in reserve; trainers rename them where they need one.
_RESERVE = re.compile(r"reserved|unused|placeholder|extra_id|dummy", re.IGNORECASE)


def require_same_vocabulary(base: Path, member: Path) -> None:
    """Compare ``tokenizer.json`` of two folders; a folder without one says nothing and passes.

    Raises:
        FamilyError: naming the member's file, when tokens, ids or merges differ, and the first token that does.
    """
    ours, theirs = base / TOKENIZER, member / TOKENIZER
    if not ours.is_file() or not theirs.is_file() or ours.read_bytes() == theirs.read_bytes():
        return
    if vocabulary_hash(ours) != vocabulary_hash(theirs):
        difference = _first_difference(tokens_of(ours), tokens_of(theirs)) or "its merges differ"
        reason = f"another tokenizer than the base's {ours}: {difference}; both must have the same tokens and merges"
        raise FamilyError(theirs, reason)


def require_shared_vocabulary(base: Path, member: Path) -> list[str]:
    """Compare ``tokenizer.json`` of a base and a member, whose own tokenizer is never used: an id that both have must
    mean one token. A folder without one says nothing and passes.

    Returns:
        Notes about what differs and does not matter: tokens that only one of them has, other merges.

    Raises:
        FamilyError: naming the member's file and the first token whose ids differ.
    """
    ours, theirs = base / TOKENIZER, member / TOKENIZER
    if not ours.is_file() or not theirs.is_file() or ours.read_bytes() == theirs.read_bytes():
        return []
    if vocabulary_hash(ours) == vocabulary_hash(theirs):
        return []
    # What both number must be the same token; reserved names may differ, since trainers rename them for tokens of their
    # own.
    here, there = tokens_of(ours), tokens_of(theirs)
    shared = {number for number in here.keys() & there.keys() if not _RESERVE.search(here[number])}
    if difference := _first_difference({n: here[n] for n in shared}, {n: there[n] for n in shared}):
        reason = f"another tokenizer than the base's {ours}: {difference}; members must share the base's tokens"
        raise FamilyError(theirs, reason)
    notes = []
    for other, mine, what in ((there, here, "more"), (here, there, "fewer")):
        if extra := sorted(other.keys() - mine.keys()):
            named = ", ".join(repr(other[number]) for number in extra[:3]) + (", ..." if len(extra) > 3 else "")
            notes.append(f"{theirs}: {len(extra)} tokens {what} than the base's tokenizer ({named}), which is used")
    if renamed := sorted(n for n in here.keys() & there.keys() - shared if here[n] != there[n]):
        named = ", ".join(f"{here[n]!r} to {there[n]!r}" for n in renamed[:3]) + (", ..." if len(renamed) > 3 else "")
        notes.append(f"{theirs}: {len(renamed)} reserved tokens of the base's tokenizer are renamed ({named})")
    return notes or [f"{theirs}: other merges than the base's tokenizer, which is used"]


def without_embedding(base: Path, rows: int) -> list[str]:
    """A note about the tokens of the tokenizer in ``base`` that its model, of ``rows`` embeddings, does not know; none
    where there are none, or no ``tokenizer.json``. Raises FamilyError."""
    file = base / TOKENIZER
    beyond = {} if not file.is_file() else {n: name for n, name in tokens_of(file).items() if n >= rows}
    if not beyond:
        return []
    named = ", ".join(f"{beyond[number]!r} is {number}" for number in sorted(beyond)[:3])
    named += ", ..." if len(beyond) > 3 else ""
    return [
        f"{file}: {len(beyond)} tokens are beyond the {rows} embeddings of the base's model ({named}); texts that hold "
        "one are refused"
    ]


def tokens_of(file: Path) -> dict[int, str]:
    """Token by id of a ``tokenizer.json``. Raises FamilyError."""
    with _understood(file):
        document = read_json(file)
        vocab = (document.get("model") or {}).get("vocab") or {}
        pairs = vocab.items() if isinstance(vocab, dict) else ((piece[0], number) for number, piece in enumerate(vocab))
        tokens = {int(number): str(token) for token, number in pairs}
        return tokens | {int(token["id"]): str(token["content"]) for token in document.get("added_tokens") or []}


def _first_difference(ours: Mapping[int, str], theirs: Mapping[int, str]) -> str:
    """The smallest id that means another token in ``theirs``, in words; empty where there is none."""
    for number in sorted(ours.keys() | theirs.keys()):
        here, there = ours.get(number), theirs.get(number)
        if here != there:
            other = "no token" if there is None else repr(there)
            return f"id {number} is {other} there and {'no token' if here is None else repr(here)} in the base's"
    return ""


def vocabulary_hash(file: Path) -> str:
    """sha256 over tokens, ids and merges of a ``tokenizer.json``; padding and truncation state is left out.

    Raises:
        FamilyError: missing, or not built as a tokenizer.
    """
    with _understood(file):
        return _hash(read_json(file))


def _hash(document: Mapping[str, Any]) -> str:
    model = document.get("model") or {}
    added = sorted((token["id"], token["content"]) for token in document.get("added_tokens") or [])
    vocab = model.get("vocab") or {}
    if isinstance(vocab, dict):
        # Some writers list added tokens in the vocabulary as well, some do not: one map holds them all.
        vocab = sorted({**vocab, **{content: index for index, content in added}}.items())
    # "a b" and ["a", "b"] are two spellings of one merge.
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or []]
    identity = json.dumps([model.get("type"), vocab, merges, added], ensure_ascii=False)
    return hashlib.sha256(identity.encode()).hexdigest()


def largest_id(file: Path) -> int:
    """The largest token id of a ``tokenizer.json``; -1 if it holds none. Raises FamilyError."""
    with _understood(file):
        document = read_json(file)
        vocab = (document.get("model") or {}).get("vocab") or {}
        # A unigram vocabulary is a list whose positions are the ids.
        ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
        ids += [token["id"] for token in document.get("added_tokens") or []]
        return int(max(ids, default=-1))


@contextmanager
def _understood(file: Path) -> Iterator[None]:
    """Raise FamilyError where ``file`` turns out to be built otherwise than a tokenizer."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise FamilyError(file, f"is no tokenizer as the tokenizers library writes it: {error}") from None
