"""A bound on bytes a second, for work that must leave room for users. Called by repair and mover."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

BURST_S = 0.25
"""Unused allowance is kept this long."""


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
