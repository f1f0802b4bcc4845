"""Hinted handoff at work: writes that a replica missed are kept on this node's disk and delivered when the replica is back.

`protocols.hints` decides; here are the disk, the calls and the clock. A hint is two keys (bookkeeping and rows), so that
recovery reads no rows. Disk effects of a decision are queued before anything else can decide, so the disk sees them in order;
what waits goes in one commit. A delivery does not wait for its own hint's fsync, because the target makes the rows durable
itself. A disk that refuses a hint leaves it in memory: hints are speed, never truth. Marks ("repair this replica in full")
are settled by asking the marked replica to compare itself with enough others (`cluster.repair`). The receiving side is here
as well. Called by the replicator (``add``), membership (``peer_up``, ``peer_down``) and the composition root.

======== =================================== =============================
family   key                                 value
======== =================================== =============================
hints    ``h`` | sequence u64                `Hint`
hints    ``r`` | sequence u64                (shard, rows)
hints    ``m`` | shard u16 | target          empty: the mark
======== =================================== =============================
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from dakera_cluster.cluster.calls import Caller, Registrar, pack, unpack
from dakera_cluster.cluster.door import Door
from dakera_cluster.cluster.gate import NotAReplicaError, OutdatedMapError
from dakera_cluster.cluster.intake import Intake, size_of
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.repair_wire import REFRESH, RefreshAsk
from dakera_cluster.model.errors import DakeraError
from dakera_cluster.model.hlc import FarFutureError
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.rows import Row
from dakera_cluster.model.shardmap import MemberState, ShardMap
from dakera_cluster.protocols.hints import (
    Deliver,
    Discard,
    Effect,
    Hint,
    HintLog,
    HintsConfig,
    NeedRepair,
    Repaired,
    Store,
    Verdict,
)
from dakera_cluster.shard import keys
from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.rows import RowStore

log = logging.getLogger(__name__)

APPLY = "hints.apply"
APPLY_TIMEOUT_MS = 10_000.0
REFRESH_TIMEOUT_MS = 120_000.0
TICK_S = 0.5
MARK_RETRY_S = 5.0
DELIVERY_MAX_BYTES = 4 << 20
"""Rows of one delivery; a single larger hint goes alone."""

_SEQ = struct.Struct(">cQ")
_MARK = struct.Struct(">cH")
_HINT = msgspec.msgpack.Decoder(Hint)
_ROWS = msgspec.msgpack.Decoder(tuple[ShardId, list[Row]])
_ENCODER = msgspec.msgpack.Encoder()


class Fate(enum.IntEnum):
    """What a receiver did with a hint. On the wire: append, never renumber."""

    APPLIED = 0
    NOT_HELD = 1
    TOO_OLD = 2
    LATER = 3


class HintRows(msgspec.Struct, frozen=True, array_like=True):
    """``version``: shard version the sender knows, so that a receiver behind it does not call the shard foreign."""

    shard: ShardId
    version: int
    rows: list[Row]


class ApplyAsk(msgspec.Struct, frozen=True, array_like=True):
    hints: list[HintRows]


class ApplyAnswer(msgspec.Struct, frozen=True, array_like=True):
    """One fate for each hint, in order."""

    fates: list[Fate]


class HintStats(msgspec.Struct):
    """Counters since the start."""

    added: int = 0
    delivered: int = 0
    rejected: int = 0
    failed: int = 0
    marked: int = 0
    settled: int = 0
    received: int = 0
    lost_by_disk: int = 0


class Hints:
    """One node's hints, both sides."""

    def __init__(
        self,
        node: NodeId,
        store: RowStore,
        maps: Maps,
        door: Door,
        intake: Intake,
        caller: Caller,
        config: HintsConfig,
        now_ms: Callable[[], int],
    ) -> None:
        self._node = node
        self._store = store
        self._maps = maps
        self._door = door
        self._intake = intake
        self._caller = caller
        self._now_ms = now_ms
        self._log = HintLog(config)
        self._fresh: dict[int, bytes] = {}
        """Rows of hints that are not on the disk yet."""
        self._unsaved: list[tuple[WriteBatch, asyncio.Future[None]]] = []
        self._disk: asyncio.Task[None] | None = None
        self._missed_again: set[tuple[NodeId, ShardId]] = set()
        self._up: set[NodeId] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self.stats = HintStats()
        self._recover()
        maps.subscribe(self._map_adopted)

    def register(self, server: Registrar) -> None:
        server.register(APPLY, self._receive)

    def start(self) -> None:
        """Begin to deliver, expire and settle marks. Targets count as down until ``peer_up``."""
        self._spawn(self._run_clock())
        self._spawn(self._run_marks())

    async def close(self) -> None:
        """Stop. What is not delivered stays on the disk."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._disk is not None:
            await self._disk

    @property
    def total_bytes(self) -> int:
        return self._log.total_bytes

    @property
    def marks(self) -> frozenset[tuple[NodeId, ShardId]]:
        """Replicas that need a full repair, as far as this node knows."""
        return self._log.marks

    def waiting(self, target: NodeId) -> int:
        """Hints kept for a node."""
        return self._log.waiting(target)

    async def add(self, target: NodeId, shard: ShardId, rows: list[Row]) -> None:
        """``target`` missed these rows. Durable on return, unless the disk refuses. Never raises."""
        self.stats.added += 1
        data = _ENCODER.encode((shard, rows))
        self._missed_again.add((target, shard))
        effects = self._log.add(target, shard, size_of(rows), self._now_ms())
        self._targets.add(target)
        for effect in effects:
            if isinstance(effect, Store):
                self._fresh[effect.hint.seq] = data
        saved = self._carry_out(effects)
        if saved is not None:
            await saved

    def peer_up(self, target: NodeId) -> None:
        """Membership calls the node alive."""
        if target != self._node:
            self._up.add(target)
            self._carry_out(self._log.peer_up(target, self._now_ms()))
            self._wake.set()

    def peer_down(self, target: NodeId) -> None:
        self._up.discard(target)
        self._log.peer_down(target)

    def tick(self) -> None:
        """Expire and retry what is due."""
        self._carry_out(self._log.tick(self._now_ms()))

    def _map_adopted(self, shardmap: ShardMap) -> None:
        members = {member.node for member in shardmap.members if member.state is not MemberState.REMOVED}
        owed = {target for target, _ in self._log.marks} | self._targets
        for gone in owed - members:
            log.info("node %s is no member any more: its hints are dropped", gone)
            self._targets.discard(gone)
            self._carry_out(self._log.forget(gone))

    def _recover(self) -> None:
        hints = [_HINT.decode(data) for _, data in self._store.scan(keys.HINTS, prefix=b"h")]
        marks = [
            (NodeId(key[_MARK.size :].decode()), ShardId(_MARK.unpack(key[: _MARK.size])[1]))
            for key, _ in self._store.scan(keys.HINTS, prefix=b"m")
        ]
        self._log.recover(hints, marks)
        self._targets = {hint.target for hint in hints}
        if hints or marks:
            log.info("%d hints and %d repair marks recovered", len(hints), len(marks))

    def _carry_out(self, effects: list[Effect]) -> asyncio.Future[None] | None:
        """Queue what belongs on the disk, start what is to be sent. The future is done when the disk has it, or refused."""
        batch = WriteBatch()
        deliveries: list[Deliver] = []
        for effect in effects:
            match effect:
                case Store(hint):
                    batch.put(keys.HINTS, _SEQ.pack(b"h", hint.seq), _ENCODER.encode(hint))
                    batch.put(keys.HINTS, _SEQ.pack(b"r", hint.seq), self._fresh[hint.seq])
                case Discard(seqs):
                    for seq in seqs:
                        self._fresh.pop(seq, None)
                        batch.delete(keys.HINTS, _SEQ.pack(b"h", seq)).delete(keys.HINTS, _SEQ.pack(b"r", seq))
                case NeedRepair(target, shard):
                    self.stats.marked += 1
                    batch.put(keys.HINTS, _mark_key(target, shard), b"")
                    self._wake.set()
                case Repaired(target, shard):
                    batch.delete(keys.HINTS, _mark_key(target, shard))
                case Deliver():
                    deliveries.append(effect)
        for delivery in deliveries:
            self._spawn(self._deliver(delivery))
        return self._save(batch) if batch else None

    def _save(self, batch: WriteBatch) -> asyncio.Future[None]:
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unsaved.append((batch, saved))
        if self._disk is None:
            self._disk = asyncio.create_task(self._run_disk())
        return saved

    async def _run_disk(self) -> None:
        try:
            while self._unsaved:
                some, self._unsaved = self._unsaved, []
                batch = WriteBatch()
                for one, _ in some:
                    batch.extend(one)
                try:
                    await self._store.commit(batch)
                    for operation in batch.operations:
                        if operation.key[:1] == b"r":
                            self._fresh.pop(_SEQ.unpack(operation.key)[1], None)
                except DakeraError as error:
                    self.stats.lost_by_disk += len(some)
                    log.warning("hints stay in memory, the disk refused them: %s", error)
                for _, saved in some:
                    if not saved.done():
                        saved.set_result(None)
        finally:
            self._disk = None

    async def _deliver(self, delivery: Deliver) -> None:
        target, seqs = delivery.target, delivery.seqs
        try:
            sent, hints = await self._load(seqs)
            if not hints:
                # Bookkeeping without rows: a crash fell between the two, or the disk lost them. Only a full repair can tell.
                self._carry_out(self._log.rejected(target, sent, Verdict.TOO_OLD, self._now_ms()))
                return
            data = await self._caller.call(target, APPLY, pack(ApplyAsk(hints)), APPLY_TIMEOUT_MS)
            fates = unpack(data, ApplyAnswer).fates
        except DakeraError as error:
            log.debug("hints for %s wait: %s", target, error)
            self.stats.failed += 1
            self._carry_out(self._log.delivery_failed(target, self._now_ms()))
            return
        self._settle(target, dict(zip(sent, fates, strict=False)))

    def _settle(self, target: NodeId, fates: dict[int, Fate]) -> None:
        """One delivery has one outcome for the log: the best one there is; the rest comes again with the next delivery."""
        now_ms = self._now_ms()
        for fate, verdict in ((Fate.APPLIED, None), (Fate.NOT_HELD, Verdict.NOT_HELD), (Fate.TOO_OLD, Verdict.TOO_OLD)):
            some = [seq for seq, told in fates.items() if told is fate]
            if not some:
                continue
            if verdict is None:
                self.stats.delivered += len(some)
                self._carry_out(self._log.delivered(target, some, now_ms))
            else:
                self.stats.rejected += len(some)
                self._carry_out(self._log.rejected(target, some, verdict, now_ms))
            return
        self._carry_out(self._log.delivery_failed(target, now_ms))

    async def _load(self, seqs: tuple[int, ...]) -> tuple[list[int], list[HintRows]]:
        """(sequences, rows) of as many hints as one delivery takes; without rows, the sequences that have none."""
        kept = {seq: self._fresh[seq] for seq in seqs if seq in self._fresh}
        stored = [seq for seq in seqs if seq not in kept]
        wanted = [_SEQ.pack(b"r", seq) for seq in stored]
        found = await asyncio.to_thread(self._store.multi_get, keys.HINTS, wanted)
        kept.update((seq, data) for seq, data in zip(stored, found, strict=True) if data is not None)
        lost = [seq for seq in seqs if seq not in kept]
        if lost:
            return lost, []
        sent: list[int] = []
        hints: list[HintRows] = []
        size = 0
        for seq in seqs:
            if hints and size + len(kept[seq]) > DELIVERY_MAX_BYTES:
                break
            size += len(kept[seq])
            shard, rows = _ROWS.decode(kept[seq])
            sent.append(seq)
            hints.append(HintRows(shard, self._maps.version(shard), rows))
        return sent, hints

    async def _receive(self, payload: bytes, context: Any) -> bytes:
        fates = [await self._take(hint) for hint in unpack(payload, ApplyAsk).hints]
        return pack(ApplyAnswer(fates))

    async def _take(self, hint: HintRows) -> Fate:
        if self._maps.version(hint.shard) < hint.version:
            with contextlib.suppress(DakeraError):
                await self._maps.catch_up(self._maps.order)
            if self._maps.version(hint.shard) < hint.version:
                return Fate.LATER
        # Whatever version the write was made under: a merge is right under each, and its age is judged by its stamps.
        if not self._maps.state(hint.shard).state_of(self._node).takes_writes:
            return Fate.NOT_HELD
        if not self._intake.is_fresh_write(hint.rows):
            return Fate.TOO_OLD
        if not self._door.takes_rows(hint.shard):
            return Fate.LATER
        try:
            await self._intake.write(hint.shard, hint.rows)
        except (DakeraError, FarFutureError) as error:
            log.warning("a hint for shard %d was not applied: %s", hint.shard, error)
            return Fate.LATER
        self.stats.received += 1
        return Fate.APPLIED

    async def _run_clock(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.tick()

    async def _run_marks(self) -> None:
        while True:
            self._wake.clear()
            marks = sorted(self._log.marks)
            # One shard of a target at a time, but no target waits for another.
            await asyncio.gather(
                *(self._settle_marks(target, [shard for node, shard in marks if node == target]) for target in self._up)
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), MARK_RETRY_S)

    async def _settle_marks(self, target: NodeId, shards: list[ShardId]) -> None:
        for shard in shards:
            if target in self._up:
                await self._settle_mark(target, shard)

    async def _settle_mark(self, target: NodeId, shard: ShardId) -> None:
        """Have the replica compared with enough others, from now on: that is what a mark asks for."""
        order = self._maps.order
        self._missed_again.discard((target, shard))
        ask = RefreshAsk(shard, self._maps.version(shard))
        try:
            await self._caller.call(target, REFRESH, pack(ask), REFRESH_TIMEOUT_MS)
        except OutdatedMapError:
            with contextlib.suppress(DakeraError):
                await self._maps.catch_up(order)
            return
        except NotAReplicaError:
            if self._maps.state(shard).state_of(target).takes_writes:
                # It is still fetching its rows.
                return
        except DakeraError as error:
            log.debug("shard %d of node %s is still to be repaired: %s", shard, target, error)
            return
        if (target, shard) in self._missed_again:
            # A write was missed, and no hint kept, while the replica was being compared: once more.
            self._wake.set()
            return
        self.stats.settled += 1
        self._carry_out(self._log.repaired(target, shard))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _mark_key(target: NodeId, shard: ShardId) -> bytes:
    return _MARK.pack(b"m", shard) + target.encode()
