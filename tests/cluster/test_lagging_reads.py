"""A replica that has heard of nothing in a namespace is not believed before the others were asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, Row, put_document
from dakera_cluster.shard import ops
from tests.support.replicas import NAMESPACE, Replicant, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.born("a", "b", "c")
    shard = made["a"].shard_for(NAMESPACE, "m")
    stamp = Stamp(made.now_ms() << 16, 1)
    row = Row(NAMESPACE, Kind.DOCUMENT, "m", put_document(stamp, {Field.TEXT: "the first of its agent"}))
    # Acknowledged by a majority of which "a" is no part.
    for name in "bc":
        await made[name].host.merge(shard, [row])
    yield made
    await made.close()


def select(world: World) -> ops.Select:
    return ops.Select(0, 0, NAMESPACE, world.now_ms(), None, ops.Order.NEWEST, 10)


async def found(node: Replicant, world: World) -> list[str]:
    def search(shard: ShardId, version: int) -> ops.Request:
        return ops.Search(shard, version, NAMESPACE, world.now_ms(), ops.Mode.TEXT, 10, text="first agent")

    return [hit.id for hit in (await node.router.search(NAMESPACE, search, 10)).hits]


async def test_the_first_memory_of_an_agent_is_shown_by_a_replica_that_missed_it(world: World) -> None:
    lagging = world["a"]
    assert (await lagging.router.select(select(world))).ids == ["m"]
    assert await found(lagging, world) == ["m"]
    assert [part.known for part in await lagging.router.describe(NAMESPACE)] == [True]
    assert (await lagging.router.profile(NAMESPACE, world.now_ms())).count == 1


async def test_one_of_the_others_may_lag_as_well(world: World) -> None:
    order = world["a"].maps.readers(world["a"].shard_for(NAMESPACE, "m"))
    assert order[0] == NodeId("a")
    await world.restart(str(order[1]), new_disk=True)
    assert (await world["a"].router.select(select(world))).ids == ["m"]


async def test_a_replica_alone_answers_with_what_it_has(world: World) -> None:
    world.isolate("a")
    assert (await world["a"].router.select(select(world))).ids == []
    assert await found(world["a"], world) == []
    world.heal()
    assert await found(world["a"], world) == ["m"]


async def test_a_replica_with_anything_of_the_namespace_asks_nobody(world: World) -> None:
    await world["b"].router.select(select(world))
    assert not [call for call in world.wire.calls if call[0] == NodeId("b")]
