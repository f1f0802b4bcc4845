"""Each node's own copy of every memory, and whether the copies agree.

A node answers an eventual read from its own rows first; to be certain that it did, all other nodes are stopped (SIGSTOP)
while it is asked, so nobody else can answer for it. Called by the runs after the faults have ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import aiohttp
import msgspec

from chaos.live.checkers import Copy, Violation, check_copies
from chaos.live.cluster import LiveCluster
from chaos.live.workload import EVENTUAL

PAGE = 1_000
FROZEN_TIMEOUT_S = 4.0
OPEN_TIMEOUT_S = 8.0
POLL_S = 1.0
REPLICAS = 3


class Convergence(msgspec.Struct, frozen=True):
    """``after_s``: how long after the end the copies were the same; None when they were not within the time."""

    after_s: float | None
    copies: int
    memories: int
    violations: list[Violation]
    held: dict[str, dict[str, Copy]]
    """Agent -> node -> that node's own copy."""


async def converge(cluster: LiveCluster, agents: Iterable[str], since: float, within_s: float) -> Convergence:
    """Wait until all copies agree, each node's own, at most until ``within_s`` after ``since``.

    Access counts are written up to some seconds after the recalls they count, so one that falls between two nodes' answers
    makes them differ: only copies that still differ when the time is over are different.
    """
    agents = sorted(agents)
    expected = min(REPLICAS, len(cluster.names))
    while True:
        is_late = time.monotonic() + POLL_S > since + within_s
        if is_late or not check_copies(await _read_all(cluster, agents, frozen=False), len(cluster.names), 0.0):
            # A node that holds no copy takes its time to say so while all others are stopped: that is not convergence.
            after_s = time.monotonic() - since
            copies = await _read_all(cluster, agents, frozen=True)
            violations = check_copies(copies, expected, time.monotonic() * 1e3)
            if is_late or not violations:
                break
        await asyncio.sleep(POLL_S)
    memories = sum(max((len(copy) for copy in by_node.values()), default=0) for by_node in copies.values())
    count = sum(len(by_node) for by_node in copies.values())
    return Convergence(after_s if not violations else None, count, memories, violations, copies)


async def _read_all(cluster: LiveCluster, agents: list[str], *, frozen: bool) -> dict[str, dict[str, Copy]]:
    found: dict[str, dict[str, Copy]] = {agent: {} for agent in agents}
    for name in cluster.names:
        others = [node for node in cluster.nodes.values() if node.name != name and frozen]
        for node in others:
            node.pause()
        try:
            timeout = aiohttp.ClientTimeout(total=FROZEN_TIMEOUT_S if frozen else OPEN_TIMEOUT_S)
            async with aiohttp.ClientSession(timeout=timeout) as session:
                got = await asyncio.gather(*(_read(session, cluster.urls[name], agent) for agent in agents))
        finally:
            for node in others:
                node.resume()
        for agent, copy in zip(agents, got, strict=True):
            if copy is not None:
                found[agent][name] = copy
    return found


async def _read(session: aiohttp.ClientSession, url: str, agent: str) -> Copy | None:
    """The memories of an agent as the node lists them; None when it cannot."""
    copy: dict[str, dict[str, Any]] = {}
    try:
        while True:
            query: dict[str, str | int] = {"agent_id": agent, "limit": PAGE, "offset": len(copy)}
            async with session.get(f"{url}/v1/memories", params=query, headers=EVENTUAL) as response:
                if response.status == 404:
                    return copy
                if response.status != 200:
                    return None
                page = (await response.json())["memories"]
            copy.update((memory["id"], memory["memory"]) for memory in page)
            if len(page) < PAGE:
                return copy
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError):
        return None
