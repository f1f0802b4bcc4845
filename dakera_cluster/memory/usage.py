"""Usage: noting that memories were recalled, off the path of the recall.

Recalled ids are collected and written every few seconds as this node's own entry of each memory's usage row (a CRDT), so a
recall rewrites nothing and never waits. A crash loses the counts of the last seconds, never a memory. Called by recall.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from dakera_cluster.memory.core import Core
from dakera_cluster.model.errors import DakeraError
from dakera_cluster.model.rows import Kind, Row, note_usage

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 2.0
MAX_PENDING = 50_000
"""Memories whose counts wait to be written; further ones are not counted until the next flush."""


class UsageNotes:
    """Pending access counts of this node."""

    def __init__(self, core: Core, node: int) -> None:
        self._core = core
        self._node = node
        self._pending: dict[tuple[str, str], int] = {}
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
        for row_id in ids:
            key = (namespace, row_id)
            if key in self._pending or len(self._pending) < MAX_PENDING:
                self._pending[key] = self._pending.get(key, 0) + 1

    async def flush(self) -> None:
        """Write what is pending; on failure the counts stay pending."""
        taken, self._pending = self._pending, {}
        by_namespace: dict[str, dict[str, int]] = {}
        for (namespace, row_id), count in taken.items():
            by_namespace.setdefault(namespace, {})[row_id] = count
        for namespace, counts in by_namespace.items():
            try:
                await self._write(namespace, counts)
            except DakeraError:
                for row_id, count in counts.items():
                    self._pending[(namespace, row_id)] = self._pending.get((namespace, row_id), 0) + count
                raise

    async def _write(self, namespace: str, counts: dict[str, int]) -> None:
        # A memory that was deleted meanwhile must not get a usage row of its own.
        alive = await self._core.documents(namespace, list(counts))
        before = await self._core.usages(namespace, list(alive))
        totals: dict[str, int] = {}
        for row_id in alive:
            own = before[row_id].entries.get(self._node) if row_id in before else None
            totals[row_id] = counts[row_id] + (own.count if own is not None else 0)
        node = self._node
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
