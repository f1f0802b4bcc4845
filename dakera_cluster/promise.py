"""A future whose waiters go on inside the callback that settles it.

An `asyncio.Future` tells its waiters by `call_soon`: they go on in the next turn of the event loop. Between the two the loop
asks the system for news and lets go of the interpreter lock, which it then has to win back from the worker threads. What a
worker thread has made ready needs no such turn: the callback that brings it is a turn of its own.

Settling is prompt only in a callback of the loop. In a task it works as in any future, because no task may run inside
another. Confined to its event loop, like any future. Used where results come from threads (`shard.lanes`,
`inference.service`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")

_Waiter = tuple[Callable[["Promise[T]"], object], Context]


class Promise(asyncio.Future[T]):
    """Made in the event loop that it belongs to."""

    def settle(self, value: T) -> None:
        """Set the result and let who waits go on. Nothing happens when it is done, which a cancelled one is."""
        if self.done():
            return
        waiters = self._take_waiters()
        self.set_result(value)
        self._go_on(waiters)

    def fail(self, error: BaseException) -> None:
        """Like `settle`, with an error for the result."""
        if self.done():
            return
        waiters = self._take_waiters()
        self.set_exception(error)
        self._go_on(waiters)

    def _take_waiters(self) -> list[_Waiter[T]]:
        """Whom to tell at once, each with its context; none in a task, where the future tells them itself."""
        if asyncio.current_task(self.get_loop()) is not None:
            return []
        # None, not an empty list, while nobody waits.
        waiters = list(self._callbacks or ())
        for tell, _ in waiters:
            self.remove_done_callback(tell)
        return waiters

    def _go_on(self, waiters: list[_Waiter[T]]) -> None:
        left = iter(waiters)
        try:
            for tell, context in left:
                try:
                    context.run(tell, self)
                except Exception as error:
                    self._report(tell, error)
        finally:
            # Of the node's end: who was not told yet hears of it as from any future.
            for tell, context in left:
                self.get_loop().call_soon(tell, self, context=context)

    def _report(self, tell: Callable[..., Any], error: Exception) -> None:
        """What the event loop does with a callback that fails."""
        self.get_loop().call_exception_handler(
            {"message": f"Exception in callback {tell!r}", "exception": error, "future": self}
        )
