"""What is counted on peer connections, and the snapshot the metrics page reads. Called by the peer client and server."""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections import Counter

import msgspec

LATENCY_BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
"""Upper bounds of the latency buckets; one more holds the rest."""


class CallFailure(enum.StrEnum):
    """Why a call did not bring an answer."""

    REMOTE = "remote"
    """The peer raised an error."""
    TIMEOUT = "timeout"
    UNAVAILABLE = "unavailable"
    """Not reached, or the connection broke."""
    REFUSED = "refused"
    """Here: too many calls wait already, or the payload is too long."""
    CANCELLED = "cancelled"


class MethodStats(msgspec.Struct, frozen=True):
    """Of one method; on the client from the caller's view, on the server from the handler's. Streams count when they end."""

    calls: int
    failures: dict[str, int]
    latency_sum_s: float
    latency_counts: tuple[int, ...]


class PeerStats(msgspec.Struct, frozen=True):
    """A snapshot. Counters only grow; ``connections``, ``in_flight`` and ``queued_bytes`` are gauges."""

    methods: dict[str, MethodStats]
    connections: int
    in_flight: int
    queued_bytes: int
    opened: int
    """Connections that finished their handshake."""
    bytes_sent: int
    bytes_received: int
    refusals: dict[str, int]
    """Handshakes that failed, by `Refusal`; ``connect`` counts those that did not reach the peer."""
    faults: dict[str, int]
    """Connections cut off: by `FrameFault`, and ``silent``, ``unread``."""
    overloads: int
    """Calls refused because a bound was reached."""


class MethodCounters:
    __slots__ = ("calls", "failures", "latency_counts", "latency_sum_s")

    def __init__(self) -> None:
        self.calls = 0
        self.failures: Counter[str] = Counter()
        self.latency_sum_s = 0.0
        self.latency_counts = [0] * (len(LATENCY_BOUNDS_S) + 1)

    def observe(self, spent_s: float) -> None:
        self.calls += 1
        self.latency_sum_s += spent_s
        self.latency_counts[bisect_left(LATENCY_BOUNDS_S, spent_s)] += 1

    def snapshot(self) -> MethodStats:
        return MethodStats(self.calls, dict(self.failures), self.latency_sum_s, tuple(self.latency_counts))


class PeerCounters:
    """Mutable counters of one side (client or server) of a node."""

    __slots__ = ("bytes_received", "bytes_sent", "faults", "methods", "opened", "overloads", "refusals")

    def __init__(self) -> None:
        self.methods: dict[str, MethodCounters] = {}
        self.opened = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.refusals: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.overloads = 0

    def method(self, name: str) -> MethodCounters:
        found = self.methods.get(name)
        if found is None:
            found = self.methods[name] = MethodCounters()
        return found

    def snapshot(self, *, connections: int, in_flight: int, queued_bytes: int) -> PeerStats:
        return PeerStats(
            methods={name: counters.snapshot() for name, counters in self.methods.items()},
            connections=connections,
            in_flight=in_flight,
            queued_bytes=queued_bytes,
            opened=self.opened,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            refusals=dict(self.refusals),
            faults=dict(self.faults),
            overloads=self.overloads,
        )
