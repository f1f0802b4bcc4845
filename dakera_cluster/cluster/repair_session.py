"""One repair session of this node with one peer: `protocols.reconcile`, carried out.

Large answers come in pages, bodies in messages of bounded size, all under the repair throttle. The session ends with its own
rows durable, so its initiator may report what it promises. Called by `cluster.repair`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec

from dakera_cluster.cluster.calls import Caller, pack, unpack
from dakera_cluster.cluster.intake import Intake, rows_of, size_of
from dakera_cluster.cluster.repair_service import EXCHANGE_BYTES
from dakera_cluster.cluster.repair_wire import (
    BUCKETS,
    EXCHANGE,
    ROOT,
    ROWS,
    BucketsAnswer,
    BucketsAsk,
    ExchangeAnswer,
    ExchangeAsk,
    Message,
    RootAnswer,
    RootAsk,
    RowsAnswer,
    RowsAsk,
)
from dakera_cluster.cluster.rounds import Rounds
from dakera_cluster.cluster.throttle import Throttle
from dakera_cluster.model.errors import DakeraError, ServiceUnavailableError
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.protocols.reconcile import (
    AskBuckets,
    AskRoot,
    AskRows,
    Exchange,
    Finished,
    Reconcile,
    ReconcileConfig,
)
from dakera_cluster.shard.host import Host

A = TypeVar("A", bound=Message)

CALL_TIMEOUT_MS = 10_000.0
EXCHANGE_TIMEOUT_MS = 30_000.0


class MustWipeError(ServiceUnavailableError):
    """This copy may hold rows that are dead without a trace: it is wiped and fetched again, nothing was exchanged.
    ``collected``: the round that it should have confirmed."""

    def __init__(self, shard: ShardId, collected: int) -> None:
        super().__init__(f"shard {shard}: peers have forgotten tombstones that this copy never confirmed")
        self.collected = collected


class Bill(msgspec.Struct):
    """What a session moved."""

    shipped_rows: int = 0
    received_rows: int = 0
    bytes: int = 0


class Session:
    """One comparison of ``shard`` with ``peer`` under ``version``. ``started_ms``: wall clock now."""

    def __init__(
        self,
        host: Host,
        rounds: Rounds,
        intake: Intake,
        caller: Caller,
        throttle: Throttle,
        config: ReconcileConfig,
        shard: ShardId,
        version: int,
        peer: NodeId,
        started_ms: int,
        note: Callable[[int, int], None] | None = None,
    ) -> None:
        self._host = host
        self._rounds = rounds
        self._intake = intake
        self._caller = caller
        self._throttle = throttle
        self._config = config
        self._shard = shard
        self._version = version
        self._peer = peer
        self._started_ms = started_ms
        self._note = note
        self._replica = host.replica(shard)
        self.bill = Bill()

    async def run(self) -> None:
        """Afterwards each side has every row the other had when this began. Raises MustWipeError, what the peer refused
        with, StaleRepairError when it took too long (what was exchanged stays)."""
        reconcile = Reconcile(self._config)
        try:
            effect = reconcile.start((await self._host.roots([self._shard]))[0])
            while not isinstance(effect, Finished):
                match effect:
                    case AskRoot(root):
                        effect = reconcile.root_is(root, await self._root())
                    case AskBuckets():
                        answer = await self._ask(BUCKETS, BucketsAsk(self._shard, self._version), BucketsAnswer)
                        mine = await asyncio.to_thread(self._replica.digests)
                        effect = reconcile.buckets_are(mine, answer.digests)
                    case AskRows(buckets):
                        theirs = await self._rows(list(buckets))
                        effect = reconcile.rows_are(await asyncio.to_thread(self._terms, buckets), theirs)
                    case Exchange(ship, want):
                        await self._exchange(list(ship), list(want))
                        effect = reconcile.exchanged()
            await self._host.settle()
        except DakeraError:
            reconcile.failed()
            raise

    async def _root(self) -> int:
        ask = RootAsk(self._shard, self._version, self._rounds.get(self._shard).collected)
        answer = await self._ask(ROOT, ask, RootAnswer)
        # Ours is read after theirs: a round that ended meanwhile was confirmed here before.
        if self._rounds.must_wipe(self._shard, answer.collected):
            raise MustWipeError(self._shard, answer.collected)
        return answer.root

    async def _rows(self, buckets: list[int]) -> dict[bytes, int]:
        theirs: dict[bytes, int] = {}
        after = b""
        while buckets:
            page = await self._ask(ROWS, RowsAsk(self._shard, self._version, buckets, after), RowsAnswer)
            theirs.update(page.terms)
            await self._pay(sum(len(local) + 9 for local, _ in page.terms))
            buckets = buckets[len(buckets) - page.left :] if page.left else []
            after = page.after
        return theirs

    def _terms(self, buckets: tuple[int, ...]) -> dict[bytes, int]:
        mine: dict[bytes, int] = {}
        for bucket in buckets:
            mine.update(self._replica.terms(bucket))
        return mine

    async def _exchange(self, ship: list[bytes], want: list[bytes]) -> None:
        """Ship first, in as many messages as it takes: what is wanted is then answered merged."""
        bodies = await asyncio.to_thread(self._replica.bodies, ship)
        rows = rows_of(list(zip(ship, bodies, strict=True)))
        while rows or want:
            count, size = 0, 0
            while count < len(rows) and (not count or size < EXCHANGE_BYTES):
                size += size_of(rows[count : count + 1])
                count += 1
            some, rows = rows[:count], rows[count:]
            wanted = [] if rows else want
            ask = ExchangeAsk(self._shard, self._version, self._started_ms, some, wanted)
            answer = await self._ask(EXCHANGE, ask, ExchangeAnswer, EXCHANGE_TIMEOUT_MS)
            if wanted:
                if not answer.served:
                    raise ServiceUnavailableError(f"node {self._peer} serves no rows of shard {self._shard}")
                want = want[answer.served :]
            await self._intake.repair(self._shard, answer.rows, self._started_ms)
            self.bill.shipped_rows += len(some)
            self.bill.received_rows += len(answer.rows)
            await self._pay(size + size_of(answer.rows), rows=len(answer.rows))

    async def _pay(self, size_bytes: int, rows: int = 0) -> None:
        self.bill.bytes += size_bytes
        if self._note is not None:
            self._note(rows, size_bytes)
        await self._throttle.pay(size_bytes)

    async def _ask(self, method: str, ask: Message, kind: type[A], timeout_ms: float = CALL_TIMEOUT_MS) -> A:
        return unpack(await self._caller.call(self._peer, method, pack(ask), timeout_ms), kind)
