"""The time limits of requests: what `asyncio.timeout` does, for a tenth of its cost.

All requests have the same limit, so they reach it in the order in which they began: they stand in a queue with one timer for
its head, which hardly ever finds anything to do. When the time is up the task is cancelled, and `TimeLimit.end` says whether
a cancellation was that one: a client that goes away or a node that stops cancels too, and that must go on as it came.
Called by `endpoint`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any


class TimeLimit:
    """Of one request. Made by `TimeLimits.begin`."""

    __slots__ = ("_cancelling", "_expired", "_task", "until")

    def __init__(self, task: asyncio.Task[Any], until: float) -> None:
        self._task: asyncio.Task[Any] | None = task
        self._cancelling = task.cancelling()
        self._expired = False
        self.until = until

    @property
    def ended(self) -> bool:
        return self._task is None

    def expire(self) -> None:
        """The time is up. Harmless once the request has ended."""
        if self._task is not None:
            self._expired = True
            self._task.cancel()

    def end(self) -> bool:
        """Stop the clock. True when the time was up and nobody else cancelled the task: a CancelledError is then the
        limit's own, and may be swallowed. To be called once, in the task."""
        task = self._task
        assert task is not None
        self._task = None
        return self._expired and task.uncancel() <= self._cancelling


class TimeLimits:
    """Of the requests of one event loop. Nothing expires early."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: deque[TimeLimit] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> TimeLimit:
        """The limit of the current task, from now on."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        limit = TimeLimit(task, loop.time() + self._seconds)
        running = self._running
        while running and running[0].ended:
            running.popleft()
        running.append(limit)
        if self._timer is None:
            self._timer = loop.call_at(limit.until, self._look)
        return limit

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        running = self._running
        while running and (running[0].ended or running[0].until <= now):
            running.popleft().expire()
        if running:
            self._timer = loop.call_at(running[0].until, self._look)
