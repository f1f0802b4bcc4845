"""What a coordinator tells about a write that did not succeed: "not written" only when no replica has it or will get it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dakera_cluster.cluster import maps
from dakera_cluster.cluster.levels import write_level
from dakera_cluster.model.errors import QuorumUnavailableError, ServiceUnavailableError
from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.ids import NodeId, ShardId, agent_namespace
from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, Row, put_document
from dakera_cluster.model.shardmap import ShardMap, ShardState
from dakera_cluster.protocols.quorum import WriteLevel
from dakera_cluster.shard import ops
from tests.support.replicas import NAMESPACE, REQUEST, Replicant, World

ROW = "m"
TEXT = {Field.TEXT: "x"}


class Scene:
    """A coordinator that holds no replica of the row's shard, and what its replicas do with the rows it sends.

    ``first`` stores them; ``second`` answers after ``first`` has; ``third`` keeps silent. From the second round on nobody can
    be reached.
    """

    def __init__(self, world: World) -> None:
        assert world.map is not None
        self.world = world
        self.shard: ShardId = world.nodes[0].shard_for(NAMESPACE, ROW)
        names = world.map.shards[self.shard].replicas
        self.first, self.second, self.third = (world.wire.nodes[name] for name in names)
        self.coordinator = next(replicant for replicant in world.nodes if replicant.node not in names)
        self.before_second: Callable[[], None] = lambda: None
        self._asked: set[NodeId] = set()
        self._stored = asyncio.Event()
        world.wire.before = self._before
        world.wire.after = self._after

    async def _before(self, source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
        if method != REQUEST:
            return
        if target in self._asked:
            raise ServiceUnavailableError(f"node {target} cannot be reached")
        self._asked.add(target)
        if target == self.second.node:
            await self._stored.wait()
            self.before_second()
        elif target == self.third.node:
            await asyncio.Event().wait()

    async def _after(self, source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
        if target == self.first.node:
            self._stored.set()

    @property
    def next_map(self) -> ShardMap:
        """The shard's version has moved on, its replicas are the same."""
        assert self.world.map is not None
        state = self.world.map.shards[self.shard]
        return self.world.map.replace(
            epoch=self.world.map.epoch, shards={self.shard: ShardState(state.version + 1, state.replicas)}
        )

    async def failure(self) -> QuorumUnavailableError:
        with pytest.raises(QuorumUnavailableError) as caught:
            await self.coordinator.put(ROW)
        return caught.value

    def has_row(self, replicant: Replicant) -> bool:
        return ROW in replicant.alive_ids(self.shard)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield await made.born("a", "b", "c", "d")
    await made.close()


def refuse(source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
    raise ServiceUnavailableError(f"node {target} cannot be reached")


async def test_a_write_that_reached_nobody_is_known_not_to_be_written(world: World) -> None:
    scene = Scene(world)
    world.wire.before = refuse
    error = await scene.failure()
    assert not error.ambiguous
    stats = scene.coordinator.replicator.stats
    assert (stats.failed, stats.ambiguous) == (1, 0)


async def test_a_write_that_one_replica_took_before_the_map_moved_on_is_never_called_not_written(world: World) -> None:
    scene = Scene(world)
    world.map = scene.next_map
    await scene.second.maps.adopt(world.map)
    error = await scene.failure()
    assert scene.coordinator.replicator.stats.refreshed == 1
    assert scene.has_row(scene.first)
    assert error.ambiguous
    assert scene.coordinator.replicator.stats.failed == 0


async def test_a_store_without_a_vote_is_remembered_when_everybody_refuses_afterwards(world: World) -> None:
    scene = Scene(world)
    world.map = scene.next_map
    await scene.second.maps.adopt(world.map)
    handle = scene.first.host.handle

    async def handle_while_the_map_moves_on(request: ops.Request) -> ops.Answer:
        answer = await handle(request)
        assert world.map is not None
        await scene.first.maps.adopt(world.map)
        return answer

    scene.first.host.handle = handle_while_the_map_moves_on  # type: ignore[method-assign]
    token = write_level.set(WriteLevel.ONE)
    try:
        error = await scene.failure()
    finally:
        write_level.reset(token)
    assert scene.has_row(scene.first)
    assert error.ambiguous


async def test_a_write_is_unsure_too_when_the_newer_map_cannot_be_had(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "CATCH_UP_TIMEOUT_S", 0.01)
    scene = Scene(world)
    await scene.second.maps.adopt(scene.next_map)
    error = await scene.failure()
    assert scene.has_row(scene.first)
    assert error.ambiguous


async def test_a_write_that_was_stamped_anew_stays_unsure_for_its_first_stamp(world: World) -> None:
    scene = Scene(world)
    younger = Stamp((world.now_ms() + 200) << 16, 7)
    await scene.second.host.merge(scene.shard, [Row(NAMESPACE, Kind.DOCUMENT, ROW, put_document(younger, TEXT))])
    error = await scene.failure()
    assert scene.coordinator.replicator.stats.restamped == 1
    assert scene.has_row(scene.first)
    assert error.ambiguous


async def test_a_write_of_two_shards_is_unsure_when_one_of_them_has_it(world: World) -> None:
    scene = Scene(world)
    coordinator = scene.coordinator
    elsewhere = next(
        name for name in map(agent_namespace, "abcdefgh") if coordinator.shard_for(name, ROW) != scene.shard
    )
    others = coordinator.maps.state(coordinator.shard_for(elsewhere, ROW)).replicas

    def before(source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
        request = ops.decode_request(payload) if method == REQUEST else None
        if isinstance(request, ops.Apply) and request.shard == scene.shard:
            raise ServiceUnavailableError(f"node {target} cannot be reached")

    world.wire.before = before
    with pytest.raises(QuorumUnavailableError) as caught:
        await coordinator.write(
            lambda stamp: [Row(name, Kind.DOCUMENT, ROW, put_document(stamp, TEXT)) for name in (NAMESPACE, elsewhere)]
        )
    assert caught.value.ambiguous
    assert any(
        ROW in world.wire.nodes[node].alive_ids(coordinator.shard_for(elsewhere, ROW), elsewhere) for node in others
    )
