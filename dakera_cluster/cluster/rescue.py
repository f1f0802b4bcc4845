"""Rescue: a shard whose every replica lost its disk comes back from the bucket.

A replica that lost its rows fetches them from the others. When every other replica of the shard is there, has answered and has
no rows either, nobody will ever serve them: then, and only then, the rows are restored from the bucket's segments and the
loss of what no segment holds is accepted. A replica that is merely away may have more, and is waited for; an operator who
knows better has ``POST /admin/cluster/nodes/{id}`` with ``remove``. Called by `cluster.replication`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from dakera_cluster.cluster.calls import Caller, Registrar
from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.mover import Mover
from dakera_cluster.cluster.segments import Segments
from dakera_cluster.model.errors import DakeraError
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.shardmap import ShardMap
from dakera_cluster.protocols.transfer import Mode, Stage

log = logging.getLogger(__name__)

SERVES = "rescue.serves"
INTERVAL_S = 3.0
CALL_TIMEOUT_MS = 2_000.0


class Rescue:
    """Watches this node's stuck transfers."""

    def __init__(
        self,
        node: NodeId,
        disk: int,
        maps: Maps,
        holdings: Holdings,
        mover: Mover,
        segments: Segments,
        caller: Caller,
        alive: Callable[[NodeId], bool],
    ) -> None:
        self._node = node
        self._disk = disk
        self._maps = maps
        self._holdings = holdings
        self._mover = mover
        self._segments = segments
        self._caller = caller
        self._alive = alive
        self._sole: set[ShardId] = set()
        self._task: asyncio.Task[None] | None = None
        self.rescued = 0
        maps.subscribe(self._adopted)

    def register(self, server: Registrar) -> None:
        server.register(SERVES, self._serves)

    def start(self) -> None:
        if self._maps.current is not None:
            self._adopted(self._maps.current)
        self._task = asyncio.create_task(self._run(), name="rescue")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def waiting(self) -> int:
        """Shards whose only copy was lost and is not restored yet: the node is not ready before."""
        return len(self._sole)

    def _adopted(self, shardmap: ShardMap) -> None:
        """Note the shards of which this node had the only copy, on a disk it no longer has."""
        member = shardmap.member(self._node)
        if member is None or member.disk in (0, self._disk):
            return
        for number, state in enumerate(shardmap.shards):
            if state.replicas == (self._node,) and self._holdings.get(ShardId(number)) is None:
                self._sole.add(ShardId(number))

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except DakeraError as error:
                log.warning("rescue waits: %s", error.message)
            await asyncio.sleep(INTERVAL_S)

    async def _look(self) -> None:
        for shard in sorted(self._sole):
            holding = self._holdings.get(shard)
            if holding is not None and holding.is_complete:
                await self._restore(shard)
                self._sole.discard(shard)
        stuck = [
            move.shard
            for move in self._mover.moves()
            if move.mode is Mode.REHYDRATE and move.stage in (Stage.STREAMING, Stage.REPAIRING)
        ]
        if not stuck:
            return
        served = await self._served_elsewhere(stuck)
        for shard in stuck:
            if served is not None and served.get(shard) is False:
                await self._restore(shard)
                self._mover.accept_loss(shard)

    async def _restore(self, shard: ShardId) -> None:
        rows = await self._segments.restore(shard)
        self.rescued += 1
        log.warning("shard %d had no copy left and was restored from the bucket: %d rows", shard, rows)

    async def _served_elsewhere(self, shards: list[ShardId]) -> dict[ShardId, bool] | None:
        """shard -> whether another replica has its rows; left out where one could not be asked."""
        peers = {node for shard in shards for node in self._maps.state(shard).old_set if node != self._node}
        answers: dict[NodeId, set[int]] = {}

        async def ask(node: NodeId) -> None:
            with contextlib.suppress(DakeraError):
                data = await self._caller.call(node, SERVES, msgspec.msgpack.encode(shards), CALL_TIMEOUT_MS)
                answers[node] = msgspec.msgpack.decode(data, type=set[int])

        await asyncio.gather(*(ask(node) for node in peers if self._alive(node)))
        known: dict[ShardId, bool] = {}
        for shard in shards:
            others = [node for node in self._maps.state(shard).old_set if node != self._node]
            if any(shard in answers.get(node, ()) for node in others):
                known[shard] = True
            elif all(node in answers for node in others):
                known[shard] = False
        return known

    async def _serves(self, payload: bytes, context: Any) -> bytes:
        asked = msgspec.msgpack.decode(payload, type=list[int])
        mine = [shard for shard in asked if self._holdings.serves(ShardId(shard), self._maps.state(ShardId(shard)))]
        return msgspec.msgpack.encode(mine)
