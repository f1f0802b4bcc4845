"""What a node knows of itself: whether it may be given traffic, and how much it holds.

Nothing here waits for the network: readiness is asked every few seconds by balancers and must answer at once, from what
is known. Called by the health, readiness and status routes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from dakera_cluster.model.ids import SESSIONS_NAMESPACE
from dakera_cluster.shard.host import Host

Check = Callable[[], tuple[bool, str | None]]
TOTALS_MAX_AGE_S = 2.0


class NodeStatus:
    """Readiness checks by name, and totals over this node's shards."""

    def __init__(self, host: Host, shards: int) -> None:
        self._host = host
        self._shards = shards
        self._started = time.monotonic()
        self._checks: dict[str, Check] = {}
        self._totals: tuple[int, int] = (0, 0)
        self._sizes: dict[int, tuple[int, int]] = {}
        self._totals_at = float("-inf")

    def add_check(self, name: str, check: Check) -> None:
        """Register a readiness check: (ok, reason when not)."""
        self._checks[name] = check

    def ready(self) -> dict[str, tuple[bool, str | None]]:
        return {name: check() for name, check in self._checks.items()}

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started

    def totals(self) -> tuple[int, int]:
        """(documents, namespaces) on this node, at most TOTALS_MAX_AGE_S old."""
        self._count()
        return self._totals

    def shard_sizes(self) -> dict[int, tuple[int, int]]:
        """shard -> (documents, bytes) on this node, at most TOTALS_MAX_AGE_S old."""
        self._count()
        return self._sizes

    def root(self, shard: int) -> int:
        """Digest of all rows of a shard on this node."""
        return self._host.replica(shard).root()

    def _count(self) -> None:
        now = time.monotonic()
        if now - self._totals_at <= TOTALS_MAX_AGE_S:
            return
        names: dict[str, int] = {}
        sizes: dict[int, tuple[int, int]] = {}
        for shard in range(self._shards):
            found = self._host.replica(shard).inventory("")
            sizes[shard] = (sum(c.documents for _, c in found), sum(c.bytes for _, c in found))
            for name, counts in found:
                if counts.documents and name != SESSIONS_NAMESPACE:
                    names[name] = names.get(name, 0) + counts.documents
        self._totals, self._sizes, self._totals_at = (sum(names.values()), len(names)), sizes, now
