"""Usage: noting that memories were recalled, off the path of the recall.

Recalled ids are collected and written every few seconds as this node's own entry of each memory's usage row (a CRDT), so a
recall rewrites nothing and never waits. A crash loses the counts of the last seconds, never a memory. Called by recall.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable

import msgspec

from dakera_cluster.memory.core import Core
from dakera_cluster.model.errors import DakeraError
from dakera_cluster.model.rows import Kind, Row, note_usage

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 5.0
"""A memory recalled again and again is written this seldom; a crash loses as much of its counts."""
MAX_PENDING = 50_000
"""Memories whose counts wait to be written; further ones are not counted until the next flush."""
ROWS_PER_WRITE = 64
"""Counts written together: a write of thousands would hold the event loop, and with it every recall, for its whole time."""
CLOCK_SKEW_MS = 5_000
"""A memory deleted later than this before its access counts as deleted after it: another node's clock stamped the delete."""


class _Noted(msgspec.Struct):
    """Accesses of one memory that wait to be written, and when the first was (ms since the epoch)."""

    count: int
    since_ms: int


class UsageNotes:
    """Pending access counts of this node."""

    def __init__(self, core: Core, node: int) -> None:
        self._core = core
        self._node = node
        self._pending: dict[tuple[str, str], _Noted] = {}
        self._flusher: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._flusher = asyncio.create_task(self._keep_flushing(), name="usage-notes")

    async def close(self) -> None:
        """Write what is pending and stop."""
        if self._flusher is not None:
            self._flusher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flusher
        with contextlib.suppress(DakeraError):
            await self.flush()

    def note(self, namespace: str, ids: Iterable[str]) -> None:
        """Count one access of each memory."""
        now_ms = self._core.now_ms()
        pending = self._pending
        for row_id in ids:
            noted = pending.get((namespace, row_id))
            if noted is not None:
                noted.count += 1
            else:
                self._add((namespace, row_id), _Noted(1, now_ms))

    async def flush(self) -> None:
        """Write what is pending; on failure the counts stay pending."""
        taken, self._pending = self._pending, {}
        by_namespace: dict[str, list[str]] = {}
        for namespace, row_id in taken:
            by_namespace.setdefault(namespace, []).append(row_id)
        try:
            for namespace, ids in by_namespace.items():
                for start in range(0, len(ids), ROWS_PER_WRITE):
                    some = ids[start : start + ROWS_PER_WRITE]
                    await self._write(namespace, {row_id: taken[namespace, row_id] for row_id in some})
                    for row_id in some:
                        del taken[namespace, row_id]
        finally:
            for key, noted in taken.items():
                self._add(key, noted)

    def _add(self, key: tuple[str, str], noted: _Noted) -> None:
        known = self._pending.get(key)
        if known is not None:
            known.count += noted.count
            known.since_ms = min(known.since_ms, noted.since_ms)
        elif len(self._pending) < MAX_PENDING:
            self._pending[key] = noted

    async def _write(self, namespace: str, noted: dict[str, _Noted]) -> None:
        before = await self._core.usages(namespace, list(noted))
        totals: dict[str, int] = {}
        for row_id, access in noted.items():
            usage = before.get(row_id)
            # A memory that was deleted meanwhile must not get a usage row of its own: its delete stands in the usage row too,
            # which is a hundredth of the memory to read.
            if usage is not None and usage.deleted.wall_ms > access.since_ms - CLOCK_SKEW_MS:
                continue
            own = usage.entries.get(self._node) if usage is not None else None
            totals[row_id] = access.count + (own.count if own is not None else 0)
        node = self._node
        if totals:
            await self._core.replicator.write(
                lambda stamp: [Row(namespace, Kind.USAGE, i, note_usage(node, n, stamp)) for i, n in totals.items()]
            )

    async def _keep_flushing(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            try:
                await self.flush()
            except DakeraError as error:
                log.warning("access counts were not written, trying again: %s", error)
