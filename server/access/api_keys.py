"""The key file: who is let in, by the digests of their keys."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ladle.merging.exceptions import InputError
from ladle.server.access.callers import GENERATE, NO_LIMITS, SCOPES, Caller, Limits

logger = logging.getLogger(__name__)

_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PREFIX = "ladle-"  # so that scanners for secrets, and people, know one when they see it
LINE = "NAME sha256:HEX [scopes=generate,admin] [concurrent=N] [tokens_per_minute=N], which `ladle keys NAME` prints"


@dataclass(frozen=True)
class ApiKey:
    """One line of a key file.

    Attributes:
        name: for logs and metrics.
        digest: SHA-256 of the key, which itself is not known: keys are long and random, so that no slower hash is
            needed to keep them from being guessed.
        scopes: what it may be used for.
        limits: what its caller may use.
    """

    name: str
    digest: bytes
    scopes: frozenset[str] = frozenset({GENERATE})
    limits: Limits = NO_LIMITS

    @classmethod
    def new(cls, name: str, scopes: Iterable[str], limits: Limits) -> tuple[str, ApiKey]:
        """A fresh key and its entry. Raises InputError."""
        key = _PREFIX + secrets.token_urlsafe(32)
        return key, cls.of(name, key, scopes, limits)

    @classmethod
    def of(cls, name: str, key: str, scopes: Iterable[str] = (GENERATE,), limits: Limits = NO_LIMITS) -> ApiKey:
        """The entry of a key that exists. Raises InputError."""
        if not _NAME.fullmatch(name):
            raise InputError("name", name, "up to 64 letters, digits and . _ @ -, a letter or digit first")
        return cls(name, _digest(key.encode()), _scopes(scopes), limits)

    @classmethod
    def parse(cls, line: str, number: int) -> ApiKey:
        """The entry on line ``number`` of a key file. A line of one word is a key as it is, with the scope generate.

        Raises:
            InputError: without the line's text, which may be a key.
        """
        words = line.split()
        if len(words) == 1 and not words[0].startswith("sha256:"):
            return cls(f"line {number}", _digest(words[0].encode()))
        hashed = _HASH.fullmatch(words[1]) if len(words) > 1 else None
        if hashed is None or not _NAME.fullmatch(words[0]):
            raise InputError("api_key_file", f"line {number}", LINE)
        options: dict[str, str] = {}
        for word in words[2:]:
            option, equals, value = word.partition("=")
            if not equals or option not in ("scopes", "concurrent", "tokens_per_minute") or option in options:
                raise InputError("api_key_file", f"{word!r} on line {number}", LINE)
            options[option] = value
        try:
            limits = Limits(*(_number(name, options.get(name)) for name in ("concurrent", "tokens_per_minute")))
            scopes = _scopes(options["scopes"].split(",")) if "scopes" in options else frozenset({GENERATE})
        except InputError as error:
            allowed = f"{error.field} {error.allowed}"
            raise InputError("api_key_file", f"{error.value!r} on line {number}", allowed) from None
        return cls(words[0], bytes.fromhex(hashed[1]), scopes, limits)

    def line(self) -> str:
        """The entry as it stands in a key file."""
        scopes = ",".join(scope for scope in SCOPES if scope in self.scopes)
        limits = [f"{name}={value}" for name, value in vars(self.limits).items() if value is not None]
        return " ".join([self.name, f"sha256:{self.digest.hex()}", f"scopes={scopes}", *limits])


class ApiKeys:
    """The keys that are let in now.

    ``defaults``: limits of keys that have none of their own.
    """

    def __init__(self, keys: Sequence[ApiKey], defaults: Limits = NO_LIMITS, path: Path | None = None) -> None:
        self._defaults = defaults
        self._path = path
        self._callers: dict[bytes, Caller] = {}
        self._replace(keys)

    @classmethod
    def of(cls, *keys: str) -> ApiKeys:
        """Keys as they are, for what ``generate`` allows."""
        return cls([ApiKey.of(f"key-{number}", key) for number, key in enumerate(keys, 1)])

    @classmethod
    def read(cls, path: Path, defaults: Limits = NO_LIMITS) -> ApiKeys:
        """The keys of a file: one per line; blank lines and lines that begin with ``#`` are skipped.

        Raises:
            InputError: an unreadable file, a line that is no entry, a name or key that is there twice, or no keys at
                all: that would be a server nobody, or everybody, can use.
        """
        return cls(_read(path), defaults, path)

    def reload(self) -> None:
        """Read the file again. Who is still in it keeps what it has used; requests that run are let to their ends.

        Raises:
            InputError: as in ``read``; the keys stay as they are.
        """
        assert self._path is not None, "these keys came from no file"
        self._replace(_read(self._path))

    def __len__(self) -> int:
        return len(self._callers)

    def find(self, key: str) -> Caller | None:
        """Whose key ``key`` is, as it stands in a header; takes the same time whichever it is."""
        # Headers are bytes that the web layer shows as Latin-1; keys are UTF-8.
        digest = _digest(key.encode("latin-1"))
        callers = [caller for known, caller in self._callers.items() if hmac.compare_digest(digest, known)]
        return callers[0] if callers else None

    def _replace(self, keys: Sequence[ApiKey]) -> None:
        callers = {}
        for key in keys:
            limits = key.limits.otherwise(self._defaults)
            caller = self._callers.get(key.digest) or Caller(key.name, key.scopes, limits, salt=key.digest)
            caller.change(key.name, key.scopes, limits)
            callers[key.digest] = caller
        self._callers = callers


def _read(path: Path) -> list[ApiKey]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("api_key_file", str(path), f"a readable text file ({error})") from None
    keys: list[ApiKey] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key = ApiKey.parse(line, number)
        for other in keys:
            if key.name == other.name or key.digest == other.digest:
                what = "name" if key.name == other.name else "key"
                raise InputError("api_key_file", f"line {number}", f"every {what} once; {other.name!r} has it too")
        keys.append(key)
    if not keys:
        raise InputError("api_key_file", str(path), "a file with at least one key")
    plain = sum(key.name.startswith("line ") for key in keys)
    if plain:
        logger.warning(
            "%s holds %d keys as they are; `ladle keys NAME --stdin` makes the lines that hide them", path, plain
        )
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _scopes(names: Iterable[str]) -> frozenset[str]:
    scopes = frozenset(names)
    for name in scopes:
        if name not in SCOPES:
            raise InputError("scopes", name, f"one or both of {', '.join(SCOPES)}")
    if not scopes:
        raise InputError("scopes", "", f"one or both of {', '.join(SCOPES)}")
    return scopes


def _number(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 15 and int(text)):
        raise InputError(name, text, "a whole number >= 1")
    return int(text)
