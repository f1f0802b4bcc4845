"""API keys: what a caller may do, where, and for how long.

A key's text is ``dk_<key_id>_<secret>``: the id finds the record, the secret proves possession and is kept only as a
SHA-256 digest (it carries 256 random bits, so that a slow hash would protect nothing). Called by `memory.keys` (which
keeps the records) and by `api` (which enforces them).
"""

from __future__ import annotations

import enum
from fnmatch import fnmatchcase

import msgspec

MAX_KEY_NAME_CHARS = 128
MAX_KEY_NAMESPACES = 256
ROOT_KEY_ID = "root"


class Scope(enum.IntEnum):
    """What a caller may do; each scope includes the ones below it."""

    NONE = 0
    READ = 1
    WRITE = 2
    ADMIN = 3
    SUPER_ADMIN = 4

    @property
    def wire(self) -> str:
        """The name clients use."""
        return self.name.lower()


SCOPE_NAMES: dict[str, Scope] = {scope.wire: scope for scope in Scope if scope is not Scope.NONE}


class Access(msgspec.Struct, frozen=True):
    """Which namespaces the caller may touch: None is all. An entry is a name, or a pattern with ``*``."""

    namespaces: frozenset[str] | None = None

    def allows(self, namespace: str) -> bool:
        pins = self.namespaces
        if pins is None or namespace in pins:
            return True
        return any("*" in pin and fnmatchcase(namespace, pin) for pin in pins)


class KeyInfo(msgspec.Struct, kw_only=True, frozen=True):
    """A key without its secret. Times are Unix seconds; ``namespaces`` None means every namespace."""

    key_id: str
    name: str
    scope: Scope
    namespaces: list[str] | None = None
    created_at: int
    expires_at: int | None = None
    active: bool = True
    last_used_at: int | None = None


class KeyUsage(msgspec.Struct, kw_only=True):
    """What a key has been used for, over all nodes. ``by_endpoint`` maps a route template to (requests, total ms)."""

    total_requests: int = 0
    successful_requests: int = 0
    failed_requests: int = 0
    rate_limited_requests: int = 0
    bytes_transferred: int = 0
    total_latency_ms: float = 0.0
    last_used_at: int | None = None
    by_endpoint: dict[str, tuple[int, float]] = {}
    by_namespace: dict[str, int] = {}

    @property
    def avg_latency_ms(self) -> float:
        return self.total_latency_ms / self.total_requests if self.total_requests else 0.0
