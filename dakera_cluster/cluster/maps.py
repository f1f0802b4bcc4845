"""The shard map at this node: adopted, durable, and consulted by everything that acts on a shard.

Adoption is monotone: only a greater (epoch, version) replaces the map, and it is on disk before anybody acts under it
(`model.shardmap` says why the safety of moves rests on that). A newer map is heard of by gossip and fetched from the peer
that has it or from the bucket. A node alone makes its own map, at epoch 0; the first leader of a cluster that grows out of it
publishes that map, so the rows stay where they are. Called by the router, the replicator, the gate, the mover and the leader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from dakera_cluster.model.errors import NotReadyError
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.shardmap import ShardMap, ShardState, decode_map, encode_map
from dakera_cluster.shard import keys
from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.rows import RowStore

log = logging.getLogger(__name__)

MAP_KEY = b"node/map"
MAP_OBJECT = "cluster/map"
CATCH_UP_TIMEOUT_S = 2.0

Listener = Callable[[ShardMap], None]
Fetch = Callable[[], Awaitable[ShardMap | None]]


class Maps:
    """Keeper of the adopted map. ``shards`` is the configured count, which holds before there is a map."""

    def __init__(self, store: RowStore, node: NodeId, shards: int) -> None:
        self._store = store
        self.node = node
        self._shards = shards
        self._listeners: list[Listener] = []
        self._adopting = asyncio.Lock()
        self._changed = asyncio.Event()
        data = store.get(keys.META, MAP_KEY)
        self.fetch: Fetch | None = None
        self.current: ShardMap | None = decode_map(data) if data is not None else None

    @property
    def shards(self) -> int:
        return self.current.shard_count if self.current is not None else self._shards

    @property
    def order(self) -> tuple[int, int]:
        """(epoch, version) of the adopted map, (0, 0) before the first."""
        return self.current.order if self.current is not None else (0, 0)

    def subscribe(self, listener: Listener) -> None:
        """Be told of every map that is adopted, after it is durable."""
        self._listeners.append(listener)

    def state(self, shard: ShardId) -> ShardState:
        """Who holds the shard. Raises NotReadyError before the first map."""
        if self.current is None:
            raise NotReadyError("the cluster has no shard map yet: waiting for a leader")
        return self.current.shards[shard]

    def version(self, shard: ShardId) -> int:
        return self.state(shard).version

    async def adopt(self, candidate: ShardMap) -> bool:
        """Make a greater map durable, then current. False when this node knows it, or a greater one, already."""
        async with self._adopting:
            if self.current is not None and candidate.order <= self.current.order:
                return False
            if self.current is not None and candidate.cluster_id != self.current.cluster_id:
                log.error(
                    "refused the map of another cluster: %s, not %s", candidate.cluster_id, self.current.cluster_id
                )
                return False
            await self._store.commit(WriteBatch().put(keys.META, MAP_KEY, encode_map(candidate)))
            self.current = candidate
        log.info("shard map %d.%d adopted", candidate.epoch, candidate.version)
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in self._listeners:
            listener(candidate)
        return True

    async def wait_for_newer(self, order: tuple[int, int], timeout_s: float) -> bool:
        """Wait until the adopted map is greater than ``order``; False when the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.order <= order:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def catch_up(self, order: tuple[int, int]) -> None:
        """Fetch a map greater than ``order``, from where it is to be had. Raises NotReadyError when none comes in time."""
        if self.order > order:
            return
        if self.fetch is not None:
            found = await self.fetch()
            if found is not None and await self.adopt(found):
                return
        if not await self.wait_for_newer(order, CATCH_UP_TIMEOUT_S):
            raise NotReadyError("waiting for the newest shard map")

    def readers(self, shard: ShardId) -> Sequence[NodeId]:
        """Nodes that may answer reads of the shard: this one first, else in the map's order of preference."""
        replicas = self.state(shard).read_set
        if self.node in replicas and replicas[0] != self.node:
            return (self.node, *(node for node in replicas if node != self.node))
        return replicas
