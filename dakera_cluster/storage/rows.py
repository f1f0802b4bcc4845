"""The row store of a node: ordered byte keys in column families, durable on return, one fsync for all that wait.

``commit`` puts work in a bounded queue. One disk thread takes everything that arrived while the previous fsync ran (a
*group*), writes each batch unsynced, syncs the log once, and then answers every caller of the group::

    callers   c1 c2 c3 ....... c4 c5 c6 c7 ......
    disk      [w1 w2 w3 | fsync] [w4 w5 w6 w7 | fsync]
    answers                    ^1 2 3                 ^4 5 6 7

Invariants:

- No caller is answered before an fsync that began after its write. An empty batch is answered after the group's fsync
  too: what its ``prepare`` read may have been written a moment before by another commit of the group.
- One batch is one RocksDB write: after any crash it is there as a whole or not at all.
- ``prepare`` functions run one at a time on the disk thread, in queue order, and see the writes of all earlier commits:
  a read-merge-write of a key needs no other lock.
- When the disk fails, every caller of the group is told, nothing is acknowledged, and the store refuses commits until
  ``recover`` has reopened the files and written a probe. A failed fsync is never retried on the same file: the kernel
  may have dropped the dirty pages and would report success. Reads go on where RocksDB still answers them.

Reads do not wait for durability: a row may be read between its write and its fsync. Views are updated after ``commit``.

Called by the shards (rows, digests, hints), by the node (its own identity and boot number) and by backup (checkpoints).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, overload

import msgspec

from dakera_cluster.model.errors import DakeraError, StorageError
from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.commit_queue import RECOVER, Commit, CommitQueue, answer
from dakera_cluster.storage.rocks import (
    DEFAULT_FAMILY,
    Cursor,
    RocksHandle,
    RowStoreSettings,
    prefix_end,
    storage_error,
)

T = TypeVar("T")

PAGE_ROWS = 256
PAGE_BYTES = 256 * 1024
PROBE_KEY = b"probe"
READER_THREADS = 2
REOPEN_ATTEMPTS = 20
REOPEN_PAUSE_S = 0.05


class ReadView(Protocol):
    """What a ``prepare`` function may read: everything written before it, durable or not."""

    def get(self, family: str, key: bytes) -> bytes | None: ...

    def multi_get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]: ...


Prepare = Callable[[ReadView], tuple[WriteBatch, T]]
"""Reads, and returns the batch to write and the value for the caller. Runs on the disk thread: short, no waiting."""

_Work = WriteBatch | Prepare[Any]


class StoreState(Enum):
    OPEN = "open"
    FAILED = "failed"
    CLOSED = "closed"


class FamilySize(msgspec.Struct, frozen=True):
    """Estimated number of rows, bytes in files and bytes in memory of one column family."""

    rows: int
    disk_bytes: int
    memory_bytes: int


class RowStoreStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the store was opened, and what waits now."""

    state: StoreState
    failure: str | None
    queued_commits: int
    queued_bytes: int
    commits: int
    refused: int
    groups: int
    syncs: int
    rows: int
    written_bytes: int
    largest_group: int
    sync_seconds: float
    slowest_sync_ms: float
    free_bytes: int
    families: dict[str, FamilySize]


class RowStore:
    """See the module docstring. Built by ``RowStore.open``; used from one or many event loops and threads."""

    def __init__(self, path: Path, families: Sequence[str], settings: RowStoreSettings) -> None:
        self.path = path
        self.settings = settings
        self._family_names = tuple(families)
        self._handle: RocksHandle | None = RocksHandle(path, families, settings)
        self._cursors: weakref.WeakSet[Cursor] = weakref.WeakSet()
        self._queue: CommitQueue[_Work] = CommitQueue(
            limit_commits=settings.queued_commits, limit_bytes=settings.queued_bytes
        )
        self._changing = threading.Lock()
        self._state = StoreState.OPEN
        self._failure: str | None = None
        self._commits = self._refused = self._groups = self._syncs = self._rows = self._written_bytes = 0
        self._largest_group = 0
        self._sync_seconds = self._slowest_sync_s = 0.0
        self._readers = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="dakera-read")
        self._thread = threading.Thread(target=self._run, name="dakera-disk", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path | str, families: Sequence[str], *, settings: RowStoreSettings | None = None) -> RowStore:
        """Open or create the store in the directory ``path`` with at least these column families.

        Blocks while the log is replayed. Raises StorageError when another process has it open or it cannot be read,
        CorruptionError when its files are damaged.
        """
        return cls(Path(path), families, settings or RowStoreSettings())

    @property
    def state(self) -> StoreState:
        return self._state

    @property
    def failure(self) -> str | None:
        """Why commits are refused, or None."""
        return self._failure

    @overload
    async def commit(self, work: WriteBatch, *, size_bytes: int = 0) -> None: ...

    @overload
    async def commit(self, work: Prepare[T], *, size_bytes: int = 0) -> T: ...

    async def commit(self, work: WriteBatch | Prepare[T], *, size_bytes: int = 0) -> T | None:
        """Apply a batch, or what a prepare function makes of the present rows, and return when it is durable.

        ``size_bytes`` is what a prepare function is expected to write; it counts towards the queue's bound.
        Raises OverloadedError when the queue is full, StorageError when the store has failed or is closed or the disk
        fails during this commit (the rows may or may not survive then), and whatever ``work`` raises, in which case
        nothing of it was written. A caller that is cancelled while it waits leaves the outcome open.
        """
        future = self._submit(work, size_bytes, asyncio.get_running_loop())
        return await cast("asyncio.Future[T | None]", future)

    def commit_blocking(self, work: WriteBatch | Prepare[T], *, size_bytes: int = 0) -> T | None:
        """``commit`` for a thread without an event loop."""
        return cast("Future[T | None]", self._submit(work, size_bytes, None)).result()

    async def delete_range(self, family: str, start: bytes, end: bytes) -> None:
        """Remove every key in ``[start, end)``, durably."""
        await self.commit(WriteBatch().delete_range(family, start, end))

    async def recover(self) -> None:
        """Reopen a failed store and prove that it can write. Raises StorageError, and stays failed, when it cannot."""
        if self._state is StoreState.OPEN:
            return
        commit: Commit[_Work] = Commit(RECOVER, 0, asyncio.get_running_loop())
        if not self._queue.put(commit):
            raise StorageError("row store: closed")
        await cast("asyncio.Future[None]", commit.future)

    def get(self, family: str, key: bytes) -> bytes | None:
        """The value of ``key``, or None. KeyError for an unknown column family, StorageError from the disk."""
        return self._open_handle().get(family, key)

    def multi_get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of ``keys`` in their order; None for each that is not there."""
        return self._open_handle().multi_get(family, keys)

    def scan(
        self,
        family: str,
        *,
        prefix: bytes | None = None,
        start: bytes | None = None,
        end: bytes | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows of ``prefix``, or of ``[start, end)``, in key order, as of now. For short scans or worker threads."""
        cursor = self._cursor(family, prefix, start, end, reverse=reverse)
        left = limit if limit is not None else -1
        while left and (page := cursor.take(PAGE_ROWS if left < 0 else min(left, PAGE_ROWS), PAGE_BYTES)):
            yield from page
            left -= len(page) if left > 0 else 0

    async def pages(
        self,
        family: str,
        *,
        prefix: bytes | None = None,
        start: bytes | None = None,
        end: bytes | None = None,
        reverse: bool = False,
        page_rows: int = PAGE_ROWS,
        page_bytes: int = PAGE_BYTES,
    ) -> AsyncIterator[list[tuple[bytes, bytes]]]:
        """Like ``scan``, as pages that are read in a worker thread. The view is of the moment of the first page."""
        cursor = self._cursor(family, prefix, start, end, reverse=reverse)
        while page := await self._in_reader(lambda: cursor.take(page_rows, page_bytes)):
            yield page

    async def checkpoint(self, path: Path | str) -> None:
        """Write a consistent copy to ``path``, which must not exist, sharing files by hard links where it can.

        It holds every commit acknowledged before the call, and perhaps later ones.
        """
        handle = self._open_handle()
        await self._in_reader(lambda: handle.checkpoint(Path(path)))

    async def compact(self, family: str) -> None:
        """Give the space of deleted rows back to the file system."""
        handle = self._open_handle()
        await self._in_reader(lambda: handle.compact(family))

    def approximate_size(self, family: str) -> FamilySize:
        """Estimate of one column family, from counters RocksDB keeps."""
        for name, rows, disk_bytes, memory_bytes in self._open_handle().properties():
            if name == family:
                return FamilySize(rows, disk_bytes, memory_bytes)
        raise KeyError(family)

    def stats(self) -> RowStoreStats:
        """A snapshot of the counters; never raises."""
        handle = self._handle
        families: dict[str, FamilySize] = {}
        free_bytes = 0
        if handle is not None and self._state is not StoreState.CLOSED:
            with contextlib.suppress(Exception):
                families = {name: FamilySize(*sizes) for name, *sizes in handle.properties() if name != DEFAULT_FAMILY}
                free_bytes = handle.free_bytes()
        return RowStoreStats(
            state=self._state,
            failure=self._failure,
            queued_commits=len(self._queue),
            queued_bytes=self._queue.size_bytes,
            commits=self._commits,
            refused=self._refused,
            groups=self._groups,
            syncs=self._syncs,
            rows=self._rows,
            written_bytes=self._written_bytes,
            largest_group=self._largest_group,
            sync_seconds=self._sync_seconds,
            slowest_sync_ms=self._slowest_sync_s * 1e3,
            free_bytes=free_bytes,
            families=families,
        )

    def close(self) -> None:
        """Finish the queued commits, sync and close. Blocks until the disk thread has ended. Idempotent."""
        with self._changing:
            was, self._state = self._state, StoreState.CLOSED
        if was is StoreState.CLOSED:
            return
        self._queue.close()
        self._thread.join()
        self._readers.shutdown(wait=True)
        handle, self._handle = self._handle, None
        self._drop_cursors()
        if handle is not None:
            try:
                handle.close()
            except StorageError:
                if was is StoreState.OPEN:
                    raise

    def _cursor(
        self, family: str, prefix: bytes | None, start: bytes | None, end: bytes | None, *, reverse: bool
    ) -> Cursor:
        if prefix is not None:
            if start is not None or end is not None:
                raise ValueError("scan: give a prefix or a range, not both")
            start, end = prefix, prefix_end(prefix)
        cursor = self._open_handle().cursor(family, start, end, reverse=reverse)
        self._cursors.add(cursor)
        return cursor

    async def _in_reader(self, work: Callable[[], T]) -> T:
        try:
            waiting = asyncio.get_running_loop().run_in_executor(self._readers, work)
        except RuntimeError:
            raise StorageError("row store: closed") from None
        return await waiting

    def _open_handle(self) -> RocksHandle:
        handle = self._handle
        if handle is None:
            raise StorageError(f"row store: {self._failure or 'closed'}")
        return handle

    def _submit(
        self, work: _Work, size_bytes: int, loop: asyncio.AbstractEventLoop | None
    ) -> asyncio.Future[Any] | Future[Any]:
        if self._state is not StoreState.OPEN:
            self._refused += 1
            raise StorageError(f"row store: {self._failure or 'closed'}")
        commit: Commit[_Work] = Commit(work, work.size_bytes if isinstance(work, WriteBatch) else size_bytes, loop)
        try:
            if not self._queue.put(commit):
                raise StorageError("row store: closed")
        except DakeraError:
            self._refused += 1
            raise
        return commit.future

    def _run(self) -> None:
        settings = self.settings
        while group := self._queue.take(most_commits=settings.group_commits, most_bytes=settings.group_bytes):
            error = self._recover() if group[0].work is RECOVER else self._commit_group(group)
            for commit in group:
                commit.error = error or commit.error
            answer(group)

    def _commit_group(self, group: Sequence[Commit[_Work]]) -> StorageError | None:
        """Write, sync; the error that all of the group's callers get, or None."""
        handle = self._handle
        refusal = self._refusal(handle)
        if handle is None or refusal is not None:
            return refusal
        try:
            if self._write_group(handle, group):
                self._sync(handle)
        except Exception as error:
            failure = storage_error("write", error)
            self._fail(failure.message)
            return failure
        self._groups += 1
        self._commits += len(group)
        self._largest_group = max(self._largest_group, len(group))
        return None

    def _refusal(self, handle: RocksHandle | None) -> StorageError | None:
        if self._failure is not None or handle is None:
            return StorageError(f"row store: {self._failure}")
        try:
            free_bytes = handle.free_bytes()
        except OSError as error:
            return storage_error("reading the free space", error)
        if free_bytes < self.settings.minimum_free_bytes:
            least = self.settings.minimum_free_bytes
            return StorageError(f"row store: the disk is full: {free_bytes} bytes are free, {least} are needed")
        return None

    def _write_group(self, handle: RocksHandle, group: Sequence[Commit[_Work]]) -> bool:
        """Write each batch unsynced; True when anything was written. What a prepare function raises is its caller's."""
        settings = self.settings
        written = False
        burst_bytes = burst_rows = 0
        for commit in group:
            work = commit.work
            assert work is not RECOVER
            try:
                batch, commit.value = (work, None) if isinstance(work, WriteBatch) else work(handle)
                native = handle.native(batch) if batch else None
            except Exception as error:
                commit.error = error
                continue
            if native is None:
                continue
            handle.write(native)
            written = True
            self._rows += len(batch)
            self._written_bytes += batch.size_bytes
            burst_bytes += batch.size_bytes
            burst_rows += len(batch)
            if burst_bytes >= settings.yield_bytes or burst_rows >= settings.yield_rows:
                burst_bytes = burst_rows = 0
                time.sleep(0)  # lets the event loop take the interpreter lock between writes
        return written

    def _sync(self, handle: RocksHandle) -> None:
        began = time.perf_counter()
        handle.sync()
        took = time.perf_counter() - began
        self._syncs += 1
        self._sync_seconds += took
        self._slowest_sync_s = max(self._slowest_sync_s, took)

    def _fail(self, reason: str) -> None:
        with self._changing:
            self._failure = reason.removeprefix("row store: ")
            if self._state is StoreState.OPEN:
                self._state = StoreState.FAILED

    def _recover(self) -> StorageError | None:
        """Reopen and write a probe; the error that kept the store failed, or None."""
        if self._failure is None:
            return None
        handle, self._handle = self._handle, None
        self._drop_cursors()
        if handle is not None:
            with contextlib.suppress(StorageError):
                handle.close()
        try:
            fresh = self._reopen()
            self._handle = fresh
            fresh.write(fresh.native(WriteBatch().put(DEFAULT_FAMILY, PROBE_KEY, b"")))
            self._sync(fresh)
        except Exception as error:
            failure = error if isinstance(error, StorageError) else storage_error("probe write", error)
            self._fail(failure.message)
            return failure
        with self._changing:
            self._failure = None
            if self._state is StoreState.FAILED:
                self._state = StoreState.OPEN
        return None

    def _reopen(self) -> RocksHandle:
        """Open again. A reader that was inside a cursor holds the files for a moment: wait for it, a bounded time."""
        for _ in range(REOPEN_ATTEMPTS - 1):
            try:
                return RocksHandle(self.path, self._family_names, self.settings)
            except StorageError as error:
                if "lock" not in error.message.lower():
                    raise
                time.sleep(REOPEN_PAUSE_S)
        return RocksHandle(self.path, self._family_names, self.settings)

    def _drop_cursors(self) -> None:
        for cursor in list(self._cursors):
            cursor.close()
