"""Admission of what replicas ask of each other: repair, snapshots, hints and tombstone collection.

Like the gate in front of user requests: an older shard version is refused with our map's order, a newer one is fetched and
looked at again. Called by the services of repair, mover, hints and collector.
"""

from __future__ import annotations

from dakera_cluster.cluster.gate import NotAReplicaError, OutdatedMapError
from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.shardmap import Admission, ShardState, admit
from dakera_cluster.protocols.transfer import Stage


class Door:
    """Admission for one node."""

    def __init__(self, node: NodeId, maps: Maps, holdings: Holdings) -> None:
        self._node = node
        self._maps = maps
        self._holdings = holdings

    async def admit(self, shard: ShardId, version: int) -> ShardState:
        """The shard's state when this node is one of its replicas, joining ones included, under exactly ``version``.
        Raises OutdatedMapError, NotAReplicaError, NotReadyError."""
        verdict = admit(self._maps.state(shard), self._node, version)
        if verdict is Admission.BEHIND:
            await self._maps.catch_up(self._maps.order)
            verdict = admit(self._maps.state(shard), self._node, version)
        if verdict is Admission.OUTDATED:
            raise OutdatedMapError("the shard map has moved on", details={"order": list(self._maps.order)})
        if verdict is not Admission.SERVE:
            raise NotAReplicaError(f"node {self._node} does not hold shard {shard}")
        return self._maps.state(shard)

    async def admit_source(self, shard: ShardId, version: int) -> ShardState:
        """As ``admit``, and this node has all rows and answers reads: it may be a source of repair."""
        state = await self.admit(shard, version)
        if not self._holdings.serves(shard, state):
            raise NotAReplicaError(f"node {self._node} is still fetching shard {shard}")
        return state

    def is_source(self, shard: ShardId, version: int) -> bool:
        """Would ``admit_source`` let it in without fetching a newer map?"""
        state = self._maps.state(shard)
        return state.version == version and self._holdings.serves(shard, state)

    async def admit_complete(self, shard: ShardId, version: int) -> ShardState:
        """As ``admit``, and this node has all rows, whether it serves them yet or not."""
        state = await self.admit(shard, version)
        holding = self._holdings.get(shard)
        if holding is None or not holding.is_complete:
            raise NotAReplicaError(f"node {self._node} is still fetching shard {shard}")
        return state

    def takes_rows(self, shard: ShardId) -> bool:
        """Would rows merged now stay? Not before the shard is known here, while it is wiped, or when it is given up."""
        holding = self._holdings.get(shard)
        if holding is None or holding.stage is Stage.WIPING:
            return False
        return self._maps.state(shard).state_of(self._node).takes_writes
