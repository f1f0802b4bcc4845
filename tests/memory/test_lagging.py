"""A write that depends on what is there reads what a majority has: the replica at hand may have missed it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dakera_cluster.inference.models import resolve
from dakera_cluster.inference.service import UnavailableEmbedder
from dakera_cluster.memory.core import Core, MemorySettings
from dakera_cluster.memory.events import EventBus
from dakera_cluster.memory.requests import ForgetQuery, MemoryChanges
from dakera_cluster.memory.store import Memories
from dakera_cluster.model.errors import ServiceUnavailableError
from dakera_cluster.model.ids import NodeId
from dakera_cluster.model.keys import Access
from dakera_cluster.model.rows import Kind, decode_document
from dakera_cluster.protocols.quorum import ReadLevel
from dakera_cluster.shard import ops
from tests.support.replicas import NAMESPACE, REQUEST, Replicant, World, until

AGENT, ROW = "ada", "m"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield await made.born("a", "b", "c")
    await made.close()


def lags(world: World, name: str) -> None:
    """From now on the node hears questions, but of nothing that changed."""

    def before(source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
        if target == name and not (method == REQUEST and isinstance(ops.decode_request(payload), ops.Read)):
            raise ServiceUnavailableError(f"node {target} does not answer")

    world.wire.before = before


def memories_at(replicant: Replicant) -> Memories:
    world = replicant.world
    embedder = UnavailableEmbedder(resolve("minilm"), "not installed")
    core = Core(
        replicant.router, replicant.replicator, world.catalog, embedder, world.now_ms, MemorySettings(),
        EventBus(world.now_ms),
    )  # fmt: skip
    return Memories(core)


@pytest.fixture
async def behind(world: World) -> Replicant:
    """A node that knows of the memory's end, and not of its return."""
    shard = world["c"].shard_for(NAMESPACE, ROW)
    await world["a"].put(ROW)
    await until(lambda: ROW in world["c"].alive_ids(shard))
    await world["a"].delete(ROW)
    await until(lambda: ROW not in world["c"].alive_ids(shard))
    lags(world, "c")
    await world["a"].put(ROW)
    assert ROW not in world["c"].alive_ids(shard)
    return world["c"]


async def test_a_forget_through_a_node_that_lags_deletes(world: World, behind: Replicant) -> None:
    assert await memories_at(behind).forget(AGENT, ForgetQuery(memory_ids=[ROW])) == 1
    found = await world["a"].router.read(NAMESPACE, Kind.DOCUMENT, [ROW], ReadLevel.STRONG)
    assert not decode_document(found[ROW]).alive


async def test_a_change_through_a_node_that_lags_finds_the_memory(behind: Replicant) -> None:
    memories = memories_at(behind)
    changed = await memories.update(ROW, AGENT, MemoryChanges(importance=0.75), Access())
    assert changed.importance == 0.75


async def test_an_importance_through_a_node_that_lags_finds_the_memory(behind: Replicant) -> None:
    (changed,) = await memories_at(behind).set_importance(AGENT, [ROW], 0.25)
    assert changed.memory.importance == 0.25
