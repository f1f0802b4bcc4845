"""Rescue: a shard whose every replica lost its disk comes back from the bucket.

A replica that lost its rows compares itself with so many others that every write a quorum acknowledged is met. When every
other replica of the shard is there and has answered, and fewer than that have their rows, nobody will ever serve the rest:
then, and only then, the rows are restored from the bucket's segments, those who are left are repaired from, and the loss of
what neither holds is accepted. A replica that is merely away may have more, and is waited for; an operator who
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
from dakera_cluster.cluster.repair import Repair
from dakera_cluster.cluster.segments import Segments
from dakera_cluster.model.errors import DakeraError
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.shardmap import ShardMap
from dakera_cluster.protocols.transfer import Mode, Stage, repairs_needed

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
        repair: Repair,
        segments: Segments,
        caller: Caller,
        alive: Callable[[NodeId], bool],
    ) -> None:
        self._node = node
        self._disk = disk
        self._maps = maps
        self._holdings = holdings
        self._mover = mover
        self._repair = repair
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
            move
            for move in self._mover.moves()
            if move.mode is Mode.REHYDRATE and move.stage in (Stage.STREAMING, Stage.REPAIRING)
        ]
        if not stuck:
            return
        servers = await self._servers([move.shard for move in stuck])
        for move in stuck:
            serving = servers.get(move.shard)
            state = self._maps.state(move.shard)
            if serving is None or len(serving) >= repairs_needed(Mode.REHYDRATE, state, self._node):
                continue
            if serving and move.stage is not Stage.REPAIRING:
                continue  # one copy is left: its rows are being streamed
            await self._restore(move.shard)
            for peer in serving:
                await self._repair.session(move.shard, peer)
            self._mover.accept_loss(move.shard)

    async def _restore(self, shard: ShardId) -> None:
        rows = await self._segments.restore(shard)
        self.rescued += 1
        log.warning("shard %d had no copy left and was restored from the bucket: %d rows", shard, rows)

    async def _servers(self, shards: list[ShardId]) -> dict[ShardId, list[NodeId]]:
        """shard -> the other replicas that have its rows; left out where one of them could not be asked."""
        others = {shard: [n for n in self._maps.state(shard).old_set if n != self._node] for shard in shards}
        answers: dict[NodeId, set[int]] = {}

        async def ask(node: NodeId) -> None:
            with contextlib.suppress(DakeraError):
                data = await self._caller.call(node, SERVES, msgspec.msgpack.encode(shards), CALL_TIMEOUT_MS)
                answers[node] = msgspec.msgpack.decode(data, type=set[int])

        await asyncio.gather(
            *(ask(node) for node in {n for nodes in others.values() for n in nodes} if self._alive(node))
        )
        return {
            shard: [node for node in nodes if shard in answers[node]]
            for shard, nodes in others.items()
            if all(node in answers for node in nodes)
        }

    async def _serves(self, payload: bytes, context: Any) -> bytes:
        asked = msgspec.msgpack.decode(payload, type=list[int])
        mine = [shard for shard in asked if self._holdings.serves(ShardId(shard), self._maps.state(ShardId(shard)))]
        return msgspec.msgpack.encode(mine)
