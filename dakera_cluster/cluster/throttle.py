"""Room for users: a bound on the bytes a second of work that can wait, and on its share of the processors while users ask.

Called by repair, mover and the snapshot service.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

BURST_S = 0.25
"""Unused allowance is kept this long."""
LOOK_S = 0.5
"""Time over which it is judged whether users ask."""
LEAST_PER_S = 2.0
"""Fewer requests than this are not waited for."""


class Throttle:
    """A token bucket in debt: what was taken is paid for afterwards, so one large piece passes and the next one waits."""

    def __init__(self, bytes_per_s: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock_s = clock_s
        self._free_at_s = float("-inf")

    def owe(self, size_bytes: int) -> float:
        """Note that ``size_bytes`` were moved; seconds to wait before the next piece."""
        now_s = self._clock_s()
        self._free_at_s = max(self._free_at_s, now_s - BURST_S) + size_bytes / self._bytes_per_s
        return max(0.0, self._free_at_s - now_s)

    async def pay(self, size_bytes: int) -> None:
        """Note the bytes and wait as long as they cost."""
        wait_s = self.owe(size_bytes)
        if wait_s > 0:
            await asyncio.sleep(wait_s)


class Demand:
    """Whether users ask this node for anything at present. ``count``: requests that it has served for them."""

    def __init__(self, count: Callable[[], int], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock_s = clock_s
        self._seen = count()
        self._seen_at_s = clock_s()
        self._is_high = False

    def is_high(self) -> bool:
        now_s = self._clock_s()
        passed_s = now_s - self._seen_at_s
        if passed_s >= LOOK_S:
            count = self._count()
            self._is_high = (count - self._seen) / passed_s >= LEAST_PER_S
            self._seen, self._seen_at_s = count, now_s
        return self._is_high


class Pace:
    """How long work rests between two pieces so that it takes at most ``share`` of the node's processors, all ``at_once`` of
    it together. Measured in the time that a piece took, which grows as processors become scarce: the work yields more the
    busier the machine is."""

    def __init__(self, share: float, at_once: int, processors: int | None = None) -> None:
        many = processors if processors is not None else len(os.sched_getaffinity(0))
        self._share = min(1.0, share * many / at_once)

    def rest_s(self, worked_s: float) -> float:
        return worked_s * (1.0 / self._share - 1.0)
