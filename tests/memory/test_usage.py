"""Access counts, written behind the recalls that made them, by a real node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dakera_cluster.memory.usage import PATIENCE_S, ROWS_PER_WRITE
from tests.support.node_process import NodeProcess

AGENT = "reader"


class Caller:
    def __init__(self, node: NodeProcess, session: aiohttp.ClientSession) -> None:
        self._url, self._session = node.url, session

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        async with self._session.request(method, f"{self._url}{path}", json=body) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
            return answer

    async def store(self, *ids: str) -> None:
        memories = [{"id": row_id, "content": f"the {row_id} sails at noon"} for row_id in ids]
        await self.ask("POST", "/v1/memories/store/batch", {"agent_id": AGENT, "memories": memories})

    async def recall(self, top_k: int) -> None:
        await self.ask("POST", "/v1/memory/recall", {"agent_id": AGENT, "query": "what sails at noon", "top_k": top_k})

    async def count(self, row_id: str) -> int:
        memory = await self.ask("GET", f"/v1/memory/get/{row_id}?agent_id={AGENT}")
        return int(memory.get("memory", memory)["access_count"])

    async def counted(self, row_id: str, expected: int) -> None:
        async with asyncio.timeout(20 * PATIENCE_S):
            while await self.count(row_id) != expected:
                await asyncio.sleep(0.1)


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    node = NodeProcess(tmp_path / "node.log").start()
    try:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {node.key}"}) as session:
            yield Caller(node, session)
    finally:
        node.stop()


async def test_every_memory_of_a_recall_is_counted_once_however_many_there_are(caller: Caller) -> None:
    ids = [f"ship-{number}" for number in range(ROWS_PER_WRITE + 6)]
    await caller.store(*ids)
    for _ in range(3):
        await caller.recall(len(ids))
    for row_id in ids:
        await caller.counted(row_id, 3)
    await caller.recall(len(ids))
    await caller.counted(ids[-1], 4)


async def test_a_memory_deleted_before_its_accesses_were_written_takes_no_count_into_its_next_life(
    caller: Caller,
) -> None:
    await caller.store("ferry", "barge")
    for _ in range(3):
        await caller.recall(2)
    await caller.ask("POST", "/v1/memory/forget", {"agent_id": AGENT, "memory_ids": ["ferry"]})
    await caller.counted("barge", 3)
    await caller.store("ferry")
    assert await caller.count("ferry") == 0
