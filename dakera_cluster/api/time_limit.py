"""The time limit of one request: what `asyncio.timeout` does, for a third of its cost.

When the time is up the task is cancelled, and `reached` says whether a cancellation was that one: a client that goes away
or a node that stops cancels too, and that must go on as it came. Called by `endpoint`.
"""

from __future__ import annotations

import asyncio


class TimeLimit:
    """Runs from its making to `end`. To be made and ended in the task that it limits."""

    __slots__ = ("_cancelling", "_expired", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._expired = False
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def end(self) -> bool:
        """Stop the clock. True when the time was up and nobody else cancelled the task: a CancelledError is then the
        limit's own, and may be swallowed. To be called once."""
        self._timer.cancel()
        return self._expired and self._task.uncancel() <= self._cancelling
