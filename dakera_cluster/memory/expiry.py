"""Expiry: what is past its time is deleted for good.

Reads pass over expired documents from the second they expire, so the sweep only reclaims space; it writes tombstones like
any delete, and the same sweep on two nodes is harmless. Called by the composition root.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from dakera_cluster.memory.core import Core
from dakera_cluster.model.errors import DakeraError

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 60.0
SWEEP_BATCH = 256
"""Documents of a shard deleted at a time: bounds what one round of the sweep puts before other writes."""


class Expiry:
    """Periodic sweep over the namespaces this node serves."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._sweeper: asyncio.Task[None] | None = None
        self.removed = 0

    def start(self) -> None:
        self._sweeper = asyncio.create_task(self._keep_sweeping(), name="expiry")

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper

    async def sweep(self) -> int:
        """Delete every expired document; returns how many."""
        removed = 0
        while found := await self._core.router.expired(self._core.now_ms(), SWEEP_BATCH):
            for namespace, ids in found.items():
                await self._core.delete(namespace, ids)
                removed += len(ids)
        self.removed += removed
        return removed

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            try:
                await self.sweep()
            except DakeraError as error:
                log.warning("the expiry sweep stopped early, trying again: %s", error)
