"""The answering side of repair: comparisons, exchanges and write-backs that other replicas begin.

It answers only under exactly the asker's shard version and only while this copy is complete and serves (a joining node takes
write-backs, as it takes writes). What it tells is durable before it is told: an asker that finds everything equal may report
the shard READY. Made by `cluster.repair`; called by the peer server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from dakera_cluster.cluster.calls import Registrar, pack, unpack
from dakera_cluster.cluster.door import Door
from dakera_cluster.cluster.gate import NotAReplicaError
from dakera_cluster.cluster.intake import Intake, rows_of
from dakera_cluster.cluster.repair_wire import (
    BUCKETS,
    EXCHANGE,
    REFRESH,
    ROOT,
    ROOTS,
    ROWS,
    WRITE_BACK,
    BucketsAnswer,
    BucketsAsk,
    Compared,
    Done,
    ExchangeAnswer,
    ExchangeAsk,
    RefreshAsk,
    RootAnswer,
    RootAsk,
    RootsAnswer,
    RootsAsk,
    RowsAnswer,
    RowsAsk,
    WriteBackAsk,
)
from dakera_cluster.cluster.rounds import Rounds
from dakera_cluster.model.ids import ShardId
from dakera_cluster.shard.host import Host
from dakera_cluster.shard.replica import Replica

EXCHANGE_BYTES = 1 << 20
"""Bodies in one message, about; a single larger row goes alone."""
TERMS_PER_PAGE = 20_000


class RepairService:
    """Answers to other replicas. ``refresh`` compares this node's copy of a shard with enough others."""

    def __init__(
        self,
        door: Door,
        host: Host,
        rounds: Rounds,
        intake: Intake,
        refresh: Callable[[ShardId], Awaitable[None]],
        must_wipe: Callable[[ShardId], None],
    ) -> None:
        self._door = door
        self._host = host
        self._rounds = rounds
        self._intake = intake
        self._refresh_shard = refresh
        self._must_wipe = must_wipe

    def register(self, server: Registrar) -> None:
        server.register(ROOTS, self._roots)
        server.register(ROOT, self._root)
        server.register(BUCKETS, self._buckets)
        server.register(ROWS, self._rows)
        server.register(EXCHANGE, self._exchange)
        server.register(REFRESH, self._refresh)
        server.register(WRITE_BACK, self._write_back)

    async def _roots(self, payload: bytes, context: Any) -> bytes:
        asked = unpack(payload, RootsAsk).roots
        compared = [Compared.REFUSED] * len(asked)
        # No newer map is fetched for a comparison: gossip brings it before the next one.
        able = [n for n, one in enumerate(asked) if self._door.is_source(one.shard, one.version)]
        roots = await self._host.roots([asked[position].shard for position in able])
        for position, root in zip(able, roots, strict=True):
            compared[position] = Compared.EQUAL if root == asked[position].root else Compared.DIFFERENT
        return pack(RootsAnswer(compared))

    async def _root(self, payload: bytes, context: Any) -> bytes:
        ask = unpack(payload, RootAsk)
        await self._door.admit_source(ask.shard, ask.version)
        if self._rounds.must_wipe(ask.shard, ask.collected):
            self._must_wipe(ask.shard)
            raise NotAReplicaError(f"this copy of shard {ask.shard} is too old to be a source")
        root = (await self._host.roots([ask.shard]))[0]
        return pack(RootAnswer(root, self._rounds.get(ask.shard).collected))

    async def _buckets(self, payload: bytes, context: Any) -> bytes:
        ask = unpack(payload, BucketsAsk)
        await self._door.admit_source(ask.shard, ask.version)
        digests = await asyncio.to_thread(self._host.replica(ask.shard).digests)
        await self._host.settle()
        return pack(BucketsAnswer(digests))

    async def _rows(self, payload: bytes, context: Any) -> bytes:
        ask = unpack(payload, RowsAsk)
        await self._door.admit_source(ask.shard, ask.version)
        answer = await asyncio.to_thread(_page, self._host.replica(ask.shard), ask)
        await self._host.settle()
        return pack(answer)

    async def _exchange(self, payload: bytes, context: Any) -> bytes:
        ask = unpack(payload, ExchangeAsk)
        await self._door.admit_source(ask.shard, ask.version)
        await self._intake.repair(ask.shard, ask.rows, ask.started_ms)
        replica = self._host.replica(ask.shard)
        bodies = await asyncio.to_thread(replica.bodies, ask.want)
        pairs: list[tuple[bytes, bytes | None]] = []
        size = 0
        for local, body in zip(ask.want, bodies, strict=True):
            if pairs and size >= EXCHANGE_BYTES:
                break
            pairs.append((local, body))
            size += len(local) + len(body or b"")
        await self._host.settle()
        return pack(ExchangeAnswer(rows_of(pairs), len(pairs)))

    async def _refresh(self, payload: bytes, context: Any) -> bytes:
        ask = unpack(payload, RefreshAsk)
        await self._door.admit_source(ask.shard, ask.version)
        await self._refresh_shard(ask.shard)
        return pack(Done())

    async def _write_back(self, payload: bytes, context: Any) -> bytes:
        ask = unpack(payload, WriteBackAsk)
        await self._door.admit(ask.shard, ask.version)
        await self._intake.repair(ask.shard, ask.rows, ask.started_ms)
        return pack(Done())


def _page(replica: Replica, ask: RowsAsk) -> RowsAnswer:
    out: list[tuple[bytes, int]] = []
    for position, bucket in enumerate(ask.buckets):
        after = ask.after if position == 0 else b""
        room = TERMS_PER_PAGE - len(out)
        some = list(replica.terms(bucket, after=after, limit=room + 1).items())
        out += some[:room]
        if len(some) > room:
            return RowsAnswer(out, len(ask.buckets) - position, some[room - 1][0] if room else after)
    return RowsAnswer(out)
