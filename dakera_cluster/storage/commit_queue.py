"""The bounded queue between the callers of a row store and its disk thread, and the way of the answers back.

Callers wait on a future of their own event loop, or, without one, on a concurrent future. The disk thread takes whole
groups and answers them whole: one wake-up of an event loop for all of its callers in a group, not one for each.

Called by ``storage/rows.py`` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from enum import Enum
from typing import Any, Generic, TypeVar

from dakera_cluster.model.errors import OverloadedError

W = TypeVar("W")


class Recovery(Enum):
    """The type of ``RECOVER``."""

    RECOVER = "recover"


RECOVER = Recovery.RECOVER
"""Work of its own kind: it is always a group by itself."""


class Commit(Generic[W]):
    """One caller's work, and where its outcome goes: ``value``, or ``error`` when that is not None."""

    __slots__ = ("error", "future", "loop", "size_bytes", "value", "work")

    def __init__(self, work: W | Recovery, size_bytes: int, loop: asyncio.AbstractEventLoop | None) -> None:
        self.work = work
        self.size_bytes = size_bytes
        self.loop = loop
        self.future: asyncio.Future[Any] | Future[Any] = loop.create_future() if loop is not None else Future()
        self.value: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        """Hand the outcome to the caller, unless it was cancelled meanwhile. In the thread of its loop, if it has one."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.value)


class CommitQueue(Generic[W]):
    """First in, first out, bounded in commits and in bytes."""

    def __init__(self, *, limit_commits: int, limit_bytes: int) -> None:
        self._limit_commits = limit_commits
        self._limit_bytes = limit_bytes
        self._ready = threading.Condition()
        self._waiting: deque[Commit[W]] = deque()
        self._size_bytes = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def put(self, commit: Commit[W]) -> bool:
        """Append; False when the queue was closed. OverloadedError at a bound; one larger than it passes when alone."""
        with self._ready:
            if self._closed:
                return False
            if commit.work is not RECOVER:
                over = self._size_bytes + commit.size_bytes > self._limit_bytes
                if len(self._waiting) >= self._limit_commits or (self._waiting and over):
                    raise OverloadedError("the disk is behind: too many writes wait for it")
            self._waiting.append(commit)
            self._size_bytes += commit.size_bytes
            self._ready.notify()
        return True

    def take(self, *, most_commits: int, most_bytes: int) -> Sequence[Commit[W]]:
        """Wait for work and take a group of it, in order; empty when the queue is closed and drained."""
        with self._ready:
            while not self._waiting and not self._closed:
                self._ready.wait()
            group: list[Commit[W]] = []
            size_bytes = 0
            while self._waiting and len(group) < most_commits and size_bytes < most_bytes:
                alone = self._waiting[0].work is RECOVER
                if alone and group:
                    break
                group.append(self._waiting.popleft())
                size_bytes += group[-1].size_bytes
                if alone:
                    break
            self._size_bytes -= size_bytes
            return group

    def close(self) -> None:
        """Refuse new work; what waits is still taken."""
        with self._ready:
            self._closed = True
            self._ready.notify()


def answer(group: Iterable[Commit[Any]]) -> None:
    """Settle every commit of a group."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Commit[Any]]] = {}
    for commit in group:
        if commit.loop is None:
            commit.settle()
        else:
            by_loop.setdefault(commit.loop, []).append(commit)
    for loop, commits in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there any more
            loop.call_soon_threadsafe(_settle_all, commits)


def _settle_all(commits: Iterable[Commit[Any]]) -> None:
    for commit in commits:
        commit.settle()
