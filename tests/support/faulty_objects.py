"""An object store that fails as real ones do, by a seeded plan: outages, lost replies, refusals and delays.

Wraps any ObjectStore. What it raises is what the contract allows, so that code which survives it survives a bad bucket.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dakera_cluster.model.errors import BucketUnavailableError
from dakera_cluster.storage.objects import LIST_LIMIT, Absent, AmbiguousWriteError, Object, ObjectInfo, ObjectStore

T = TypeVar("T")


@dataclass
class FaultPlan:
    """Probabilities for one request, and its delay in milliseconds. May be changed while it is in use."""

    unavailable: float = 0.0
    """Nothing happens, and the caller is told so: a refusal, or conflicts and throttling beyond the retries."""
    lost_reply: float = 0.0
    """It happens, and the caller is not told."""
    lost_request: float = 0.0
    """It does not happen, and the caller cannot know."""
    delay_ms: tuple[float, float] = (0.0, 0.0)
    outage: bool = False
    """Everything is refused."""


class FaultyObjectStore:
    """See the module docstring. ``met`` counts the faults by name; the same seed and requests meet the same faults."""

    def __init__(self, inner: ObjectStore, seed: int, plan: FaultPlan | None = None) -> None:
        self.plan = plan or FaultPlan()
        self.met: Counter[str] = Counter()
        self._inner = inner
        self._random = random.Random(seed)

    async def get(self, key: str) -> Object | None:
        return await self._read(lambda: self._inner.get(key))

    async def put(self, key: str, data: bytes) -> str:
        return await self._write(lambda: self._inner.put(key, data), BucketUnavailableError)

    async def put_if(self, key: str, data: bytes, *, etag: str | Absent) -> str:
        return await self._write(lambda: self._inner.put_if(key, data, etag=etag), AmbiguousWriteError)

    async def delete(self, key: str) -> None:
        await self._write(lambda: self._inner.delete(key), BucketUnavailableError)

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_LIMIT) -> Sequence[ObjectInfo]:
        return await self._read(lambda: self._inner.list(prefix, after=after, limit=limit))

    async def probe(self) -> None:
        await self._read(self._inner.probe)

    async def close(self) -> None:
        await self._inner.close()

    async def _read(self, request: Callable[[], Awaitable[T]]) -> T:
        fault = await self._fault()
        if fault is not None:
            raise BucketUnavailableError(f"injected: {fault}")
        return await request()

    async def _write(self, request: Callable[[], Awaitable[T]], unsure: type[BucketUnavailableError]) -> T:
        fault = await self._fault()
        if fault == "lost_reply":
            await request()
        if fault in ("lost_reply", "lost_request"):
            raise unsure(f"injected: {fault}")
        if fault is not None:
            raise BucketUnavailableError(f"injected: {fault}")
        return await request()

    async def _fault(self) -> str | None:
        # All draws are made in any case: a changed probability does not shift those that follow.
        draw, delay = self._random.random(), self._random.uniform(*self.plan.delay_ms)
        if delay:
            await asyncio.sleep(delay / 1e3)
        fault = "outage" if self.plan.outage else None
        for name in ("unavailable", "lost_reply", "lost_request"):
            share: float = getattr(self.plan, name)
            if fault is None and draw < share:
                fault = name
            draw -= share
        if fault is not None:
            self.met[fault] += 1
        return fault
