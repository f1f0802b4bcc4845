"""Usage: noting that memories were recalled, off the path of the recall.

Recalled ids are collected and written some seconds later as this node's own entry of each memory's usage row (a CRDT), so a
recall rewrites nothing and never waits. Writing goes on all the time, a few rows at a time, the longest waiting first: a
flush of everything every few seconds would be felt by every recall beside it. While few memories wait each is written
`PATIENCE_S` after its first access; while many do, up to `BUSY_PATIENCE_S`, because a memory recalled again and again is then
written once for all of it. A crash loses the counts of that time, never a memory.

A count is written as a total, never as an increment, and a total that may have been written stays with its memory until its
write has succeeded: what a replica took although the answer was lost is not counted twice. Called by recall.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from itertools import islice

import msgspec

from dakera_cluster.memory.core import Core
from dakera_cluster.model.errors import DakeraError
from dakera_cluster.model.rows import Kind, Row, note_usage

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""From a memory's first access until its count is written."""
BUSY_PATIENCE_S = 15.0
"""The same while more than `BUSY_PENDING` memories wait."""
BUSY_PENDING = 2_000
MAX_PENDING = 50_000
"""Memories whose counts wait to be written; further ones are not counted. From half of it on patience is at an end."""
LOOK_INTERVAL_S = 0.25
RETRY_S = 5.0
"""Pause after a write that failed."""
ROWS_PER_WRITE = 128
"""Counts written together, with one fsync: a write of thousands would hold the event loop, and with it every recall, for its
whole time."""
CLOCK_SKEW_MS = 5_000
"""A memory deleted later than this before its access counts as deleted after it: another node's clock stamped the delete."""

_Key = tuple[str, str]
"""Namespace and id of a memory."""


class _Noted(msgspec.Struct, gc=False):
    """Accesses of one memory that wait to be written, when the first was (ms since the epoch), and the total of earlier ones
    whose write failed or was cut off, 0 when there was none."""

    count: int
    since_ms: int
    tried: int = 0


class UsageNotes:
    """Pending access counts of this node."""

    def __init__(self, core: Core, node: int) -> None:
        self._core = core
        self._node = node
        self._pending: dict[_Key, _Noted] = {}
        """In the order of their first accesses, but for what failed once."""
        self._writer: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._writer = asyncio.create_task(self._keep_writing(), name="usage-notes")

    async def close(self) -> None:
        """Write what is pending and stop."""
        if self._writer is not None:
            self._writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writer
        with contextlib.suppress(DakeraError):
            await self.flush()

    def note(self, namespace: str, ids: Iterable[str]) -> None:
        """Count one access of each memory."""
        now_ms = self._core.now_ms()
        pending = self._pending
        for row_id in ids:
            key = (namespace, row_id)
            noted = pending.get(key)
            if noted is not None:
                noted.count += 1
            elif len(pending) < MAX_PENDING:
                pending[key] = _Noted(1, now_ms)

    async def flush(self) -> None:
        """Write what is pending; on failure the counts stay pending."""
        await self._write_first(len(self._pending))

    async def write_due(self) -> None:
        """Write what has waited long enough; on failure the counts stay pending."""
        waiting = len(self._pending)
        patience_s = PATIENCE_S if waiting <= BUSY_PENDING else BUSY_PATIENCE_S
        latest_ms = self._core.now_ms() - int(patience_s * 1000)
        due = max(0, waiting - MAX_PENDING // 2)
        for noted in islice(self._pending.values(), due, None):
            if noted.since_ms > latest_ms:
                break
            due += 1
        await self._write_first(due)

    async def _write_first(self, count: int) -> None:
        for start in range(0, count, ROWS_PER_WRITE):
            taken: dict[str, dict[str, _Noted]] = {}
            for namespace, row_id in list(islice(self._pending, min(ROWS_PER_WRITE, count - start))):
                taken.setdefault(namespace, {})[row_id] = self._pending.pop((namespace, row_id))
            # At once, so that they share an fsync; each fails alone.
            writes = [self._write(namespace, accesses) for namespace, accesses in taken.items()]
            for failure in await asyncio.gather(*writes, return_exceptions=True):
                if failure is not None:
                    raise failure

    async def _write(self, namespace: str, accesses: dict[str, _Noted]) -> None:
        """Write counts of one namespace; what is not surely written is pending again when this ends."""
        try:
            totals = await self._totals(namespace, accesses)
            if totals:
                node = self._node
                await self._core.replicator.write(
                    lambda stamp: [Row(namespace, Kind.USAGE, i, note_usage(node, n, stamp)) for i, n in totals.items()]
                )
        except BaseException:
            self._put_back(namespace, accesses)
            raise

    async def _totals(self, namespace: str, accesses: dict[str, _Noted]) -> dict[str, int]:
        """This node's new total for each memory, noted as ``tried``; none for one that was deleted meanwhile."""
        before = await self._core.usages(namespace, list(accesses))
        totals: dict[str, int] = {}
        for row_id, noted in accesses.items():
            usage = before.get(row_id)
            # A memory that was deleted meanwhile must not get a usage row of its own: its delete stands in the usage row too,
            # which is a hundredth of the memory to read.
            if usage is not None and usage.deleted.wall_ms > noted.since_ms - CLOCK_SKEW_MS:
                continue
            own = usage.entries.get(self._node) if usage is not None else None
            noted.tried = max(noted.tried, own.count if own is not None else 0) + noted.count
            noted.count = 0
            totals[row_id] = noted.tried
        return totals

    def _put_back(self, namespace: str, accesses: dict[str, _Noted]) -> None:
        for row_id, noted in accesses.items():
            later = self._pending.get((namespace, row_id))
            if later is not None:
                later.count += noted.count
                later.since_ms = min(later.since_ms, noted.since_ms)
                later.tried = max(later.tried, noted.tried)
            elif len(self._pending) < MAX_PENDING:
                self._pending[namespace, row_id] = noted

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            try:
                await self.write_due()
            except DakeraError as error:
                log.warning("access counts were not written, trying again: %s", error)
                await asyncio.sleep(RETRY_S)
