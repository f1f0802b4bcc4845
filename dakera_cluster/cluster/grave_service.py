"""The answering side of tombstone collection: what every replica of a shard does when a round is asked of it.

Only under exactly the asker's shard version and with all rows here: a replica that is away or fetches its rows confirms
nothing, and so nothing is collected. Numbers are durable before what they stand for happens (`cluster.rounds`). Called by the
peer server and, for this node's own part in its rounds, by `cluster.collector`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from dakera_cluster.cluster.calls import Registrar, pack, unpack
from dakera_cluster.cluster.collector_wire import COLLECT, HOLD, CollectAnswer, CollectAsk, HoldAnswer, HoldAsk
from dakera_cluster.cluster.door import Door
from dakera_cluster.cluster.intake import Intake
from dakera_cluster.cluster.rounds import Rounds
from dakera_cluster.shard import keys
from dakera_cluster.shard.host import Host


class GraveService:
    """This replica's part in rounds of collection."""

    def __init__(self, door: Door, host: Host, rounds: Rounds, intake: Intake) -> None:
        self._door = door
        self._host = host
        self._rounds = rounds
        self._intake = intake

    def register(self, server: Registrar) -> None:
        server.register(HOLD, self._hold)
        server.register(COLLECT, self._collect)

    async def hold(self, ask: HoldAsk) -> HoldAnswer:
        """Merge, note, tell. Raises OutdatedMapError, NotAReplicaError, StaleRepairError."""
        await self._door.admit_complete(ask.shard, ask.version)
        known = self._rounds.get(ask.shard).confirmed
        if ask.round <= known:
            return HoldAnswer(None, known)
        await self._intake.repair(ask.shard, ask.rows, ask.started_ms)
        if not await self._rounds.confirm(ask.shard, ask.round):
            return HoldAnswer(None, self._rounds.get(ask.shard).confirmed)
        locals_ = [keys.local_key(row.namespace, row.kind, row.id) for row in ask.rows]
        bodies = await asyncio.to_thread(self._host.replica(ask.shard).bodies, locals_)
        held = [local for local, body, row in zip(locals_, bodies, ask.rows, strict=True) if body == row.body]
        # The map or the copy may have changed meanwhile; then this was no confirmation of a current replica.
        await self._door.admit_complete(ask.shard, ask.version)
        return HoldAnswer(held)

    async def collect(self, ask: CollectAsk) -> CollectAnswer:
        """Drop what is unchanged. Nothing when the round is not the last one confirmed here."""
        await self._door.admit_complete(ask.shard, ask.version)
        if not await self._rounds.collect(ask.shard, ask.round):
            return CollectAnswer(0)
        await self._door.admit_complete(ask.shard, ask.version)
        return CollectAnswer(await self._host.collect(ask.shard, ask.rows))

    async def _hold(self, payload: bytes, context: Any) -> bytes:
        return pack(await self.hold(unpack(payload, HoldAsk)))

    async def _collect(self, payload: bytes, context: Any) -> bytes:
        return pack(await self.collect(unpack(payload, CollectAsk)))
