"""The names by which a server may be asked.

A web page can make its own name point at any address, at that of this machine too (DNS rebinding), and a browser then
lets it read what is there as if it were the page's own server. The name stays the page's own: so what matters is which
names are answered. An address is nobody's name, and neither is a name without a dot, which nobody can buy.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence

ANY = "*"
_LOOPBACK = ("localhost", "*.localhost")
_HOST = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^\[\]:@/\\?#,\s]+)(:[0-9]*)?")
_CLUSTER = ("*.svc", "*.cluster.local")


class HostNames:
    """Names that are answered.

    Args:
        names: host names, ``*.NAME`` for all below a name, or ``*`` for any.
        short: names without a dot are answered too.
    """

    def __init__(self, names: Sequence[str], short: bool = False) -> None:
        self._names = frozenset(name.lower() for name in names)
        self._endings = tuple(name[1:].lower() for name in names if name.startswith("*."))
        self._short = short

    @classmethod
    def of(cls, bound: str, trusted: Sequence[str]) -> HostNames:
        """Names of a server that listens on ``bound``, and those that its operator trusts besides.

        Where it listens on all addresses, others reach it by the machine's names and, in a network of containers or a
        cluster, by names without a dot and by those of services.
        """
        names = [*_LOOPBACK, bound, *trusted]
        everywhere = bound in ("0.0.0.0", "::", "")
        if everywhere:
            names += [*_CLUSTER, socket.gethostname(), socket.getfqdn()]
        return cls(names, short=everywhere)

    @property
    def any(self) -> bool:
        """Whether every name is answered."""
        return ANY in self._names

    def __contains__(self, host: str) -> bool:
        """Whether ``host``, a name or an address without a port, is answered."""
        host = host.lower()
        if not host:
            return False
        if self.any or host in self._names or host.endswith(self._endings) or _is_address(host):
            return True
        return self._short and "." not in host

    def __str__(self) -> str:
        if self.any:
            return "any name"
        others = sorted(name for name in self._names if name and not _is_address(name) and name not in _LOOPBACK)
        return ", ".join(["addresses", "localhost", *others, *(["names without a dot"] if self._short else [])])


def without_port(host: str) -> str:
    """The name or address in a Host header; empty for what is neither, with or without a port."""
    match = _HOST.fullmatch(host.strip().lower())
    return "" if match is None else match["host"].removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        return False
    return True
