"""What a node acknowledged survives kill -9 and power failure: there once, found by vector and by keyword.

Each round stores 200 memories concurrently, kills the node in the middle, starts it on the same disk and asks for every
memory that was acknowledged. A memory holds a word of its own, so keyword recall can name it, and its embedding is asked
for by its own text.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.node_process import NodeProcess
from tests.support.powerloss import lose_power, make_powerloss_env

ROUNDS = 20
STORES = 200
AGENT = "survivor"
TOPICS = [
    "trains to Vienna",
    "the blue bicycle",
    "a dentist's bill",
    "chess with Maria",
    "tomato seeds",
    "jazz records",
]


class Storm:
    """Concurrent stores against a node that may die at any moment."""

    def __init__(self, node: NodeProcess, before: Storm | None = None) -> None:
        self._node = node
        self._headers = {"Authorization": f"Bearer {node.key}"}
        self.acknowledged: dict[str, str] = before.acknowledged if before is not None else {}

    async def store(self, round_: int, kill_after: int) -> None:
        """Send STORES stores at once and kill the node when ``kill_after`` have been acknowledged."""
        before = len(self.acknowledged)
        async with aiohttp.ClientSession(headers=self._headers) as session:
            tasks = [asyncio.create_task(self._one(session, round_, number)) for number in range(STORES)]
            while len(self.acknowledged) - before < kill_after and not all(task.done() for task in tasks):
                await asyncio.sleep(0.001)
            self._node.kill()
            await asyncio.gather(*tasks)

    async def _one(self, session: aiohttp.ClientSession, round_: int, number: int) -> None:
        word = f"w{round_}x{number}"
        content = f"{word} is about {TOPICS[number % len(TOPICS)]}, item {number} of round {round_}"
        body = {"agent_id": AGENT, "content": content}
        try:
            async with session.post(f"{self._node.url}/v1/memory/store", json=body) as response:
                answer: dict[str, Any] = await response.json()
                if response.status == 200:
                    self.acknowledged[answer["id"]] = content
        except aiohttp.ClientError:
            return  # not acknowledged: it may or may not be there

    async def check(self) -> None:
        """Every acknowledged memory is there exactly once and found both ways."""
        async with aiohttp.ClientSession(headers=self._headers) as session:
            listed = await self._list(session)
            contents = [memory["content"] for memory in listed]
            assert len(contents) == len(set(contents)), "a memory is there twice"
            by_id = {memory["id"]: memory["content"] for memory in listed}
            lost = {i: content for i, content in self.acknowledged.items() if by_id.get(i) != content}
            assert not lost, f"acknowledged and lost: {list(lost.items())[:5]} of {len(self.acknowledged)}"
            some = random.Random(len(self.acknowledged)).sample(sorted(self.acknowledged), 40)
            for memory_id in some:
                word = self.acknowledged[memory_id].split()[0]
                assert memory_id in await self._recall(session, word, "bm25"), f"{word} is not found by keyword"
                text = self.acknowledged[memory_id]
                assert memory_id in await self._recall(session, text, "vector"), f"{text} is not found by vector"

    async def _list(self, session: aiohttp.ClientSession) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            query = {"limit": 1000, "offset": len(found)}
            async with session.get(f"{self._node.url}/v1/agents/{AGENT}/memories", params=query) as response:
                page = await response.json()
            assert response.status == 200, page
            found += page
            if len(page) < 1000:
                return found

    async def _recall(self, session: aiohttp.ClientSession, query: str, routing: str) -> list[str]:
        body = {"agent_id": AGENT, "query": query, "top_k": 5, "routing": routing}
        async with session.post(f"{self._node.url}/v1/memory/recall", json=body) as response:
            answer = await response.json()
        assert response.status == 200, answer
        return [memory["id"] for memory in answer["memories"]]


def node_on(directory: Path, env: dict[str, str] | None = None) -> NodeProcess:
    settings = {"DAKERA_STORAGE": "filesystem", "DAKERA_STORAGE_PATH": str(directory / "data")}
    return NodeProcess(directory / "node.log", {**(env or {}), **settings})


@pytest.mark.slow
async def test_acknowledged_memories_survive_kill_9_in_the_middle_of_200_stores(tmp_path: Path) -> None:
    rng = random.Random(7)
    node = node_on(tmp_path)
    storm = Storm(node)
    for round_ in range(ROUNDS):
        await asyncio.to_thread(node.start)
        await storm.store(round_, rng.randint(1, STORES - 20))
        assert not node.running
        if round_ % 5 == 4:
            await asyncio.to_thread(node.start)
            await storm.check()
            node.kill()
    assert len(storm.acknowledged) > ROUNDS


@pytest.mark.slow
async def test_acknowledged_memories_survive_a_power_failure(tmp_path: Path) -> None:
    rng = random.Random(11)
    watched = tmp_path / "data"
    storm: Storm | None = None
    for round_ in range(5):
        node = node_on(tmp_path, make_powerloss_env(watched, base={}))
        storm = Storm(node, storm)
        await asyncio.to_thread(node.start)
        if round_:
            await storm.check()
        await storm.store(round_, rng.randint(1, STORES - 20))
        lose_power(watched, seed=round_)


@pytest.mark.slow
async def test_the_power_failure_test_notices_a_disk_that_does_not_sync(tmp_path: Path) -> None:
    watched = tmp_path / "data"
    node = node_on(tmp_path, make_powerloss_env(watched, lying_disk=True, base={}))
    storm = Storm(node)
    await asyncio.to_thread(node.start)
    await storm.store(0, STORES // 2)
    lose_power(watched)
    node = node_on(tmp_path, make_powerloss_env(watched, base={}))
    storm = Storm(node, storm)
    try:
        with pytest.raises((AssertionError, aiohttp.ClientError)):
            await asyncio.to_thread(node.start)
            await storm.check()
    finally:
        node.stop()


def test_a_stopped_node_leaves_with_status_0_and_keeps_everything(tmp_path: Path) -> None:
    node = node_on(tmp_path).start()
    pid = node.pid
    os.kill(pid, signal.SIGTERM)
    assert node.wait() == 0
