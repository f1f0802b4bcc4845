"""A strong read sees what was acknowledged, whatever one replica has missed and cannot store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dakera_cluster.model.errors import QuorumUnavailableError, StorageError
from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.ids import NodeId
from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, Row, decode_document, put_document
from dakera_cluster.protocols.quorum import ReadLevel
from dakera_cluster.shard import ops
from tests.support.replicas import NAMESPACE, REQUEST, Replicant, World, until

ROW = "m"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield await made.born("a", "b", "c", "d")
    await made.close()


class FullDisk:
    """Three replicas have the row in an old version; two of them got the new one, the third reads but cannot write. Of the
    two, one answers only after the third has been asked to write."""

    def __init__(self, world: World) -> None:
        assert world.map is not None
        shard = world.nodes[0].shard_for(NAMESPACE, ROW)
        names = world.map.shards[shard].replicas
        self.full, self.quick, self.slow = (world.wire.nodes[name] for name in names)
        self.coordinator = next(replicant for replicant in world.nodes if replicant.node not in names)
        self.world, self.shard = world, shard
        self.refused = 0
        world.wire.before = self._before

    async def write(self) -> None:
        for replicant, text, age in ((self.full, "old", 2), (self.quick, "new", 1), (self.slow, "new", 1)):
            stamp = Stamp((self.world.now_ms() - age * 1_000) << 16, age)
            row = Row(NAMESPACE, Kind.DOCUMENT, ROW, put_document(stamp, {Field.TEXT: text}))
            await replicant.host.merge(self.shard, [row])

    async def _before(self, source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
        if method != REQUEST:
            return
        if target == self.full.node and isinstance(ops.decode_request(payload), ops.Apply):
            self.refused += 1
            raise StorageError("no space left")
        if target == self.slow.node:
            await until(lambda: self.refused)


async def text_of(replicant: Replicant, level: ReadLevel) -> str:
    found = await replicant.router.read(NAMESPACE, Kind.DOCUMENT, [ROW], level)
    return str(decode_document(found[ROW]).fields[Field.TEXT])


async def test_a_replica_that_cannot_store_does_not_keep_the_others_from_answering(world: World) -> None:
    scene = FullDisk(world)
    await scene.write()
    assert await text_of(scene.coordinator, ReadLevel.STRONG) == "new"
    assert scene.refused == 1


async def test_what_a_majority_cannot_be_brought_to_hold_is_not_answered(world: World) -> None:
    scene = FullDisk(world)
    await scene.write()
    world.wire.cut.add(frozenset((scene.coordinator.node, scene.slow.node)))
    with pytest.raises(QuorumUnavailableError):
        await text_of(scene.coordinator, ReadLevel.STRONG)


async def test_a_reads_own_level_goes_over_the_default(world: World) -> None:
    scene = FullDisk(world)
    await scene.write()
    assert await text_of(scene.full, ReadLevel.EVENTUAL) == "old"
    assert await text_of(scene.full, ReadLevel.STRONG) == "new"
