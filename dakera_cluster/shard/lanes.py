"""Lanes: worker threads that own views.

Every namespace belongs to one lane, and everything that touches its views (loading, applying, searching) runs there, so
views need no locks, see changes in the order they were applied, and never block the event loop. One lane is right for two
cores: the work is mostly numpy, which holds the interpreter between its kernels. Called by `shard.host`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import xxhash

from dakera_cluster.model.errors import OverloadedError

T = TypeVar("T")

DEFAULT_LANES = 1
DEFAULT_QUEUED_CALLS = 1024


class Lanes:
    """A fixed number of single-threaded executors, chosen by namespace, each with a bounded queue."""

    def __init__(self, count: int = DEFAULT_LANES, *, queued_calls: int = DEFAULT_QUEUED_CALLS) -> None:
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"index-{i}") for i in range(count)]
        self._waiting = [0] * count
        self._queued_calls = queued_calls

    async def run(self, namespace: str, call: Callable[[], T], *, must: bool = False) -> T:
        """Run ``call`` on the namespace's lane. Raises OverloadedError when the lane's queue is full, unless it ``must``
        run: views may not miss a change that is already durable."""
        lane = xxhash.xxh32_intdigest(namespace.encode()) % len(self._threads)
        if self._waiting[lane] >= self._queued_calls and not must:
            raise OverloadedError(f"index queue is full ({self._queued_calls} calls wait)")
        self._waiting[lane] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads[lane], call)
        finally:
            self._waiting[lane] -= 1

    @property
    def waiting(self) -> int:
        """Calls queued or running, over all lanes."""
        return sum(self._waiting)

    def close(self) -> None:
        """Finish what is queued and end the threads."""
        for thread in self._threads:
            thread.shutdown(wait=True)
