"""The giving side of a move: pages of a shard's rows for a node that fetches them.

A page is the rows as they are now behind a key, so a stream that goes on after a crash, or with another source, needs nothing
to be kept for it here; what changes behind its cursor the receiver is sent as writes, and compares at the end. Only a replica
that has all rows and serves gives any, under exactly the receiver's shard version. Called by the peer server.
"""

from __future__ import annotations

import asyncio
from typing import Any

from dakera_cluster.cluster.calls import Registrar, pack, unpack
from dakera_cluster.cluster.door import Door
from dakera_cluster.cluster.intake import rows_of
from dakera_cluster.cluster.mover_wire import SNAPSHOT, PageAnswer, PageAsk
from dakera_cluster.cluster.rounds import Round, Rounds
from dakera_cluster.cluster.throttle import Demand
from dakera_cluster.shard.host import Host

PAGE_MAX_BYTES = 4 << 20
PAGE_ROWS = 4_096


class SnapshotService:
    """Pages of this node's replicas."""

    def __init__(self, door: Door, host: Host, rounds: Rounds) -> None:
        self._door = door
        self._host = host
        self._rounds = rounds
        self._demand = Demand(lambda: host.asked)

    def register(self, server: Registrar) -> None:
        server.register(SNAPSHOT, self._page)

    async def _page(self, payload: bytes, context: Any) -> bytes:
        ask = unpack(payload, PageAsk)
        await self._door.admit_source(ask.shard, ask.version)
        confirmed = self._rounds.get(ask.shard).confirmed
        replica = self._host.replica(ask.shard)
        most_bytes = min(ask.most_bytes, PAGE_MAX_BYTES)
        page = await asyncio.to_thread(replica.page, ask.cursor, most_rows=PAGE_ROWS, most_bytes=most_bytes)
        # Each number from the side on which it is the worse: the rows may have been read before or after a round.
        round_ = Round(confirmed, self._rounds.get(ask.shard).collected)
        return pack(PageAnswer(rows_of(page), page[-1][0] if page else None, round_, self._demand.is_high()))
