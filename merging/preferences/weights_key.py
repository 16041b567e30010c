"""The hashable identity of one set of merged weights: what every cache of weights or of KV state is keyed by."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from ladle.merging.preferences.coefficients import Coefficients

_SCALE = 1 << 20


@dataclass(frozen=True)
class WeightsKey:
    """Base revision plus quantised coefficients.

    Coefficients are rounded to 2**-20 (about 1e-6), so that float noise does not split identical weights into two
    keys; weights built *from* a key with ``coefficients()`` are a pure function of it. Zeros are dropped and members
    sorted: a member that does not take part does not change the identity.

    Attributes:
        base_revision: identity of the base weights (``Family.base_revision``).
        terms: (member, round(coefficient * 2**20)), sorted by member, none of them zero.
    """

    base_revision: str
    terms: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, base_revision: str, mapping: Mapping[str, float] | Coefficients) -> "WeightsKey":
        """The key of ``mapping`` (coefficients by member). Raises ValueError or OverflowError on NaN or infinity."""
        pairs = mapping.as_dict() if isinstance(mapping, Coefficients) else mapping
        terms = ((name, round(value * _SCALE)) for name, value in pairs.items())
        return cls(base_revision, tuple(sorted(term for term in terms if term[1] != 0)))

    def coefficients(self) -> dict[str, float]:
        """The quantised coefficients by member, exact in float64."""
        return {name: value / _SCALE for name, value in self.terms}

    def digest(self) -> bytes:
        """32 bytes that identify the key across processes; seeds the hashes of KV blocks."""
        hasher = hashlib.sha256()
        for part in (self.base_revision, *(field for name, value in self.terms for field in (name, str(value)))):
            encoded = part.encode()
            # Length-prefixed, so that no two lists of fields run together into the same bytes.
            hasher.update(len(encoded).to_bytes(8, "little") + encoded)
        return hasher.digest()
