"""The cluster of one: a map with one member, and every call inside the process.

It has the same shape as the cluster of many, so nothing above it knows the difference, and its map is the seed of a larger
cluster: the first leader publishes it, and moves begin from there. Called by the composition root.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.protocols.rebalance import LiveNode, birth
from dakera_cluster.protocols.transfer import BIRTH_VERSION, Duty, Holding, Mode, Stage, duty
from dakera_cluster.shard import ops

ALONE_EPOCH = 0


class LocalTransport:
    """Requests to this node's own replicas."""

    def __init__(self, handle: Callable[[ops.Request], Coroutine[Any, Any, ops.Answer]]) -> None:
        self._handle = handle

    def call(self, node: NodeId, request: ops.Request) -> Coroutine[Any, Any, ops.Answer]:
        return self._handle(request)


async def be_alone(
    maps: Maps, holdings: Holdings, cluster_id: str, node: NodeId, disk: int, replication_factor: int
) -> None:
    """Give a node its own map when it has none, and its newborn shards their records."""
    if maps.current is None:
        await maps.adopt(birth(cluster_id, ALONE_EPOCH, {node: LiveNode(disk)}, maps.shards, replication_factor))
    await note_births(maps, holdings, node, disk)


async def note_births(maps: Maps, holdings: Holdings, node: NodeId, disk: int) -> None:
    """Record the shards that were born here with the cluster: empty, and complete from the start."""
    assert maps.current is not None
    member = maps.current.member(node)
    same_disk = member is not None and member.disk == disk
    born = [
        Holding(ShardId(shard), BIRTH_VERSION, Mode.JOIN, Stage.READY)
        for shard, state in enumerate(maps.current.shards)
        if duty(holdings.get(ShardId(shard)), state, node, same_disk=same_disk) is Duty.BIRTH
    ]
    if born:
        await holdings.put(*born)
