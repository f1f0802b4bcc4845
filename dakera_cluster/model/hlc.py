"""Hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014).

A stamp is ``(time, node)``: ``time`` packs 48 bits of physical milliseconds and 16 bits of a logical counter, ``node`` is
the writer's tag. Stamps of one clock grow strictly; a stamp made after another was observed is larger than it. Physical
time is a parameter, so the same clock runs under a real and a simulated time. Called by the coordinator (tick) and by
every receiver of rows (observe).
"""

from __future__ import annotations

import msgspec

LOGICAL_BITS = 16
LOGICAL_MASK = (1 << LOGICAL_BITS) - 1
MAX_SKEW_MS = 60_000
"""A stamp further ahead of our own clock than this is refused: one broken clock must not drag the cluster's time."""


class Stamp(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """Version of a write. Compared by ``time``, then by ``node``."""

    time: int
    node: int

    @property
    def wall_ms(self) -> int:
        return self.time >> LOGICAL_BITS


NEVER = Stamp(0, 0)
"""Smaller than every stamp a clock can make."""


class FarFutureError(ValueError):
    """A remote stamp lies more than MAX_SKEW_MS ahead of the local physical clock."""


class HybridClock:
    """Strictly monotone source of stamps for one node. Not thread-safe: owned by the event loop."""

    __slots__ = ("_max_skew_ms", "_node", "_time")

    def __init__(self, node: int, *, last_time: int = 0, max_skew_ms: int = MAX_SKEW_MS) -> None:
        self._node = node
        self._time = last_time
        self._max_skew_ms = max_skew_ms

    @property
    def last_time(self) -> int:
        return self._time

    def tick(self, now_ms: int) -> Stamp:
        """A new stamp, larger than every stamp made or observed before."""
        self._time = max(self._time + 1, now_ms << LOGICAL_BITS)
        return Stamp(self._time, self._node)

    def observe(self, time: int, now_ms: int) -> None:
        """Learn a remote stamp's time. Raises FarFutureError, and learns nothing, when it is too far ahead."""
        if time <= self._time:
            return
        ahead_ms = (time >> LOGICAL_BITS) - now_ms
        if ahead_ms > self._max_skew_ms:
            raise FarFutureError(f"stamp is {ahead_ms} ms ahead of the local clock, allowed are {self._max_skew_ms} ms")
        self._time = time
