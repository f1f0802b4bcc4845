"""Time limits of very many short calls, at the price of a set insertion.

Almost no limit is ever reached, so what counts is the cost of adding and discarding one: a loop timer for each call would
take as long as sealing its frame. Limits are kept in slots of ``STEP_MS``; one timer runs for the earliest slot. The clock
is the monotonic one: the loop's own stands still while callbacks run.

Invariant: nothing expires early; it expires at most one step, and the loop's lag, late. Called by the peer connections, on
the event loop's thread.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

STEP_MS = 10


class Expiring(Protocol):
    def expire(self) -> None:
        """The time is up. Must not raise."""
        ...


class Deadlines:
    """The limits of one event loop's calls."""

    __slots__ = ("_armed", "_loop", "_slots", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, set[Expiring]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0

    def add(self, entry: Expiring, timeout_ms: float) -> int:
        """``entry.expire()`` will be called in ``timeout_ms``. Returns the slot, which ``discard`` needs."""
        slot = int((time.monotonic() * 1000.0 + timeout_ms) // STEP_MS) + 1
        entries = self._slots.get(slot)
        if entries is None:
            self._slots[slot] = {entry}
            if self._timer is None or slot < self._armed:
                self._arm(slot)
        else:
            entries.add(entry)
        return slot

    def discard(self, entry: Expiring, slot: int) -> None:
        """Forget a limit; harmless when it was reached."""
        entries = self._slots.get(slot)
        if entries is not None:
            entries.discard(entry)

    def _arm(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = slot
        self._timer = self._loop.call_later(max(0.0, slot * STEP_MS / 1000.0 - time.monotonic()), self._run)

    def _run(self) -> None:
        self._timer = None
        now = int(time.monotonic() * 1000.0 // STEP_MS)
        for slot in sorted(slot for slot in self._slots if slot <= now):
            for entry in self._slots.pop(slot):
                entry.expire()
        if self._slots and self._timer is None:
            # Timers count by the loop's clock and may be early: the slot is then still there and is armed again.
            self._arm(min(self._slots))
