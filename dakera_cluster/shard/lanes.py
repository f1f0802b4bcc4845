"""Lanes: worker threads that own views.

Every namespace belongs to one lane, and everything that touches its views (loading, applying, searching) runs there, so
views need no locks, see changes in the order they were applied, and never block the event loop. One lane is right for two
cores: the work is mostly numpy, which holds the interpreter between its kernels.

A call costs its lane one queue entry and one promise. (A ThreadPoolExecutor makes two futures, a condition and a wake-up of
the event loop for each call: as much as the loop's whole part of a search.) Results that are ready together are handed over
in one wake-up, and who waits for them goes on in it. Confined to one event loop. Called by `shard.host`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

import xxhash

from dakera_cluster.model.errors import OverloadedError
from dakera_cluster.promise import Promise

T = TypeVar("T")

DEFAULT_LANES = 1
DEFAULT_QUEUED_CALLS = 1024

_Call = tuple[Callable[[], Any], Promise[Any]]
_Result = tuple[Promise[Any], Any, BaseException | None]


class _Lane:
    """One thread and the calls that wait for it, in order."""

    def __init__(self, name: str) -> None:
        self.waiting = 0
        self._closed = False
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._results: deque[_Result] = deque()
        self._told = False
        """Whether the event loop is on its way to the results."""
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], T]) -> Promise[T]:
        """On the event loop. A call whose promise is cancelled before its turn does not run."""
        if self._closed:
            raise RuntimeError("the lane is closed")
        promise: Promise[T] = Promise(loop=asyncio.get_running_loop())
        self._calls.put((call, promise))
        return promise

    def close(self) -> None:
        self._closed = True
        self._calls.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (entry := self._calls.get()) is not None:
            call, promise = entry
            if promise.cancelled():
                continue
            try:
                result: _Result = (promise, call(), None)
            except BaseException as error:
                result = (promise, None, error)
            self._results.append(result)
            # Said after the result is there, and unsaid before results are taken: none is left behind.
            if not self._told:
                self._told = True
                try:
                    promise.get_loop().call_soon_threadsafe(self._settle)
                except RuntimeError:
                    self._told = False  # the loop is closed: nobody waits
            # What a call held must not live until the next one comes.
            del entry, call, promise, result

    def _settle(self) -> None:
        self._told = False
        while self._results:
            promise, value, error = self._results.popleft()
            if error is None:
                promise.settle(value)
            else:
                promise.fail(error)


class Lanes:
    """A fixed number of lanes, chosen by namespace, each with a bounded queue."""

    def __init__(self, count: int = DEFAULT_LANES, *, queued_calls: int = DEFAULT_QUEUED_CALLS) -> None:
        self._lanes = [_Lane(f"index-{i}") for i in range(count)]
        self._queued_calls = queued_calls

    async def run(self, namespace: str, call: Callable[[], T], *, must: bool = False) -> T:
        """Run ``call`` on the namespace's lane. Raises OverloadedError when the lane's queue is full, unless it ``must``
        run: views may not miss a change that is already durable."""
        lane = self._lanes[xxhash.xxh32_intdigest(namespace.encode()) % len(self._lanes)]
        if lane.waiting >= self._queued_calls and not must:
            raise OverloadedError(f"index queue is full ({self._queued_calls} calls wait)")
        lane.waiting += 1
        try:
            return await lane.submit(call)
        finally:
            lane.waiting -= 1

    @property
    def waiting(self) -> int:
        """Calls queued or running, over all lanes."""
        return sum(lane.waiting for lane in self._lanes)

    def close(self) -> None:
        """Finish what is queued and end the threads."""
        for lane in self._lanes:
            lane.close()
