"""What one node says of itself when asked by another: load, sizes, and which of its shards are whole.

Read from /proc, so it costs little and needs no package. Called by the portrait of the cluster, locally and over a peer call.
"""

from __future__ import annotations

import os
import time

import msgspec

from dakera_cluster import __version__
from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.status import NodeStatus
from dakera_cluster.model.ids import NodeId, ShardId

_PAGE = os.sysconf("SC_PAGE_SIZE")


class ShardVitals(msgspec.Struct, array_like=True):
    shard: int
    documents: int
    bytes: int
    complete: bool


class Vitals(msgspec.Struct, array_like=True):
    """``at_ms`` is the node's own wall clock; shards are those it holds."""

    node: str
    version: str
    at_ms: int
    uptime_s: float
    documents: int
    namespaces: int
    memory_bytes: int
    cpu_percent: float
    memory_percent: float
    map_epoch: int
    map_version: int
    shards: list[ShardVitals]


class VitalSigns:
    """Measures this node; CPU is the mean since the previous measurement."""

    def __init__(self, node: NodeId, status: NodeStatus, maps: Maps, holdings: Holdings) -> None:
        self._node = node
        self._status = status
        self._maps = maps
        self._holdings = holdings
        self._cpu = (time.monotonic(), _cpu_seconds())

    def measure(self, now_ms: int) -> Vitals:
        documents, namespaces = self._status.totals()
        resident = _resident_bytes()
        return Vitals(
            node=self._node,
            version=__version__,
            at_ms=now_ms,
            uptime_s=self._status.uptime_s,
            documents=documents,
            namespaces=namespaces,
            memory_bytes=resident,
            cpu_percent=self._cpu_percent(),
            memory_percent=100.0 * resident / max(1, _total_bytes()),
            map_epoch=self._maps.order[0],
            map_version=self._maps.order[1],
            shards=self._shards(),
        )

    def roots(self) -> dict[int, int]:
        """shard -> digest of all its rows here, of the shards this node holds. For a worker thread."""
        current = self._maps.current
        return {shard: self._status.root(shard) for shard in current.holds(self._node)} if current is not None else {}

    def _shards(self) -> list[ShardVitals]:
        current = self._maps.current
        if current is None:
            return []
        sizes = self._status.shard_sizes()
        return [
            ShardVitals(shard, *sizes.get(shard, (0, 0)), self._holdings.serves(ShardId(shard), current.shards[shard]))
            for shard in current.holds(self._node)
        ]

    def _cpu_percent(self) -> float:
        before_at, before = self._cpu
        now, used = time.monotonic(), _cpu_seconds()
        if now - before_at < 0.5:
            return 0.0
        self._cpu = (now, used)
        return 100.0 * (used - before) / (now - before_at)


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _total_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * _PAGE
