"""Eyes on the cluster: every node is asked over and over what it believes, and every answer is kept with its two times.

Invariant: a sighting is what one node said between ``start_ms`` and ``end_ms``; nothing is inferred here. Called by the runs;
read by the checkers (leaders) and the figures (detection, succession).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

POLL_S = 0.2
TIMEOUT_S = 2.5


class Sighting(msgspec.Struct, frozen=True):
    """One node's belief. ``states``: node -> alive, suspect, dead or left, with the age of that belief at ``start_ms``, in
    milliseconds."""

    node: str
    boot: int
    start_ms: float
    end_ms: float
    leader: str | None
    epoch: int
    acting: bool
    map_epoch: int
    map_version: int
    states: dict[str, tuple[str, float]]
    redis_healthy: bool | None = None


class Watch:
    """Polls `/admin/cluster/status` and `/nodes` of every node; ``boot_of`` counts a node's starts."""

    def __init__(self, urls: Mapping[str, str], boot_of: Callable[[str], int], out: Path) -> None:
        self._urls = urls
        self._boot_of = boot_of
        self._out = out.open("wb")
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None
        self.sightings: list[Sighting] = []

    async def __aenter__(self) -> Watch:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        self._tasks = [asyncio.create_task(self._poll(node)) for node in self._urls]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert self._session is not None
        await self._session.close()
        self._out.close()

    async def look(self, node: str) -> Sighting | None:
        """What the node says now; None when it does not answer."""
        assert self._session is not None
        url, boot = self._urls[node], self._boot_of(node)
        try:
            async with self._session.get(f"{url}/admin/cluster/nodes") as response:
                rows = await response.json()
                if response.status != 200:
                    return None
            asked = time.monotonic()
            async with self._session.get(f"{url}/admin/cluster/status") as response:
                status = await response.json()
                if response.status != 200:
                    return None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        if self._boot_of(node) != boot:
            return None
        return _sighting(node, boot, asked, status, rows)

    def newest(self, node: str) -> Sighting | None:
        """The last thing the node said."""
        return next((s for s in reversed(self.sightings) if s.node == node), None)

    async def wait_for(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something is so; False when it never was within the time."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    async def _poll(self, node: str) -> None:
        while True:
            with contextlib.suppress(KeyError, TypeError):
                sight = await self.look(node)
                if sight is not None:
                    self.sightings.append(sight)
                    self._out.write(msgspec.json.encode(sight) + b"\n")
            await asyncio.sleep(POLL_S)


def _sighting(node: str, boot: int, asked: float, status: Mapping[str, Any], rows: Mapping[str, Any]) -> Sighting:
    leadership = status.get("leadership") or {}
    states = {
        row["node_id"]: ("alive" if row["status"] == "active" else row["status"], float(row["belief_age_ms"]))
        for row in rows["nodes"]
    }
    return Sighting(
        node=node,
        boot=boot,
        # The status is asked last: its leader and epochs are what was true between these two times.
        start_ms=asked * 1e3,
        end_ms=time.monotonic() * 1e3,
        leader=status.get("leader"),
        epoch=int(leadership.get("epoch", 0)),
        acting=bool(leadership.get("acting", False)),
        map_epoch=int(status["map"]["epoch"]),
        map_version=int(status["map"]["version"]),
        states=states,
        redis_healthy=status.get("redis_healthy"),
    )
