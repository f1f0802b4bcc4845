"""The cluster of one: every shard here, every call inside the process.

It has the same shape as the cluster of many (placement, transport), so nothing above it knows the difference. Called by
the composition root.
"""

from __future__ import annotations

from collections.abc import Sequence

from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.shard import ops
from dakera_cluster.shard.host import Host


class LocalPlacement:
    """All shards on one node."""

    version = 0

    def __init__(self, node: NodeId, shards: int) -> None:
        self.shards = shards
        self._readers = (node,)

    def readers(self, shard: ShardId) -> Sequence[NodeId]:
        return self._readers


class LocalTransport:
    """Requests to this node's own host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def call(self, node: NodeId, request: ops.Request) -> ops.Answer:
        return await self._host.handle(request)
