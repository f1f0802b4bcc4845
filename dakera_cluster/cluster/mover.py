"""Shard moves at this node: after every adopted map, what `transfer.duty` says is done, shard by shard.

One task for each shard that has something to do, so that nothing of one shard ever overlaps: a drop has ended before the next
join begins, and a page that arrives late under a map that is gone is dropped or wiped with the rest. Fetching is bounded in
shards at once and in bytes a second, and while users ask it rests between pages; waiting for a source that failed, or for the
leader, takes no one's place. A map with another version of the shard cancels its machine in the same step that makes the map
current; what is on disk (`cluster.holdings`) is where the next one starts, after a crash as well.

::

    adopted map -> shards that changed -> duty:  DROP        wipe, then forget the record
                                                 BIRTH       note the record
                                                 JOIN, REHYDRATE, CONFIRM   run a `transfer.Transfer` to its end
                                                 SERVE, NOTHING             nothing, the shard's task ends

Called by the composition root; ``report`` carries READY to whoever leads, `rehydrate` is what `cluster.repair` calls when
this copy is too old.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from dakera_cluster.cluster.calls import Caller, pack, unpack
from dakera_cluster.cluster.gate import OutdatedMapError
from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.intake import Intake, size_of
from dakera_cluster.cluster.local import note_births
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.mover_wire import SNAPSHOT, PageAnswer, PageAsk
from dakera_cluster.cluster.repair import Repair
from dakera_cluster.cluster.repair_session import MustWipeError
from dakera_cluster.cluster.rounds import Rounds
from dakera_cluster.cluster.throttle import Demand, Pace, Throttle
from dakera_cluster.model.errors import DakeraError, ServiceUnavailableError
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.shardmap import ReplicaState, ShardMap, ShardState
from dakera_cluster.protocols import transfer as transfer_events
from dakera_cluster.protocols.rebalance import ReadyReport
from dakera_cluster.protocols.tombstones import must_wipe
from dakera_cluster.protocols.transfer import (
    AcceptLoss,
    Duty,
    Effect,
    Event,
    FetchSnapshot,
    Holding,
    MapChanged,
    Mode,
    Persist,
    RepairDone,
    ReportReady,
    SnapshotChunk,
    SourceFailed,
    Stage,
    Tick,
    Transfer,
    TransferConfig,
    Wipe,
    Wiped,
    duty,
)
from dakera_cluster.shard.host import Host

log = logging.getLogger(__name__)

PAGE_TIMEOUT_MS = 30_000.0
MOST_REST_S = 5.0
"""A map that changes is not waited for longer than this."""
RETRY_S = 1.0
"""Pause after the disk failed in the middle of a transfer."""
SHARDS_PER_SLICE = 2_048
"""Shards looked at before the event loop gets its turn."""

_MODES = {Duty.JOIN: Mode.JOIN, Duty.REHYDRATE: Mode.REHYDRATE, Duty.CONFIRM: Mode.CONFIRM}

Report = Callable[[ReadyReport], Awaitable[None]]


class MoverSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``shards_at_once``: ``DAKERA_CONCURRENT_MOVES``, ``bytes_per_s``: ``DAKERA_MOVE_BYTES_PER_SEC``."""

    shards_at_once: int = 2
    bytes_per_s: float = 32 << 20
    page_bytes: int = 1 << 20
    share: float = 0.125
    """Of the node's processors, for shards that join it while users ask it or the source; a lost disk is refilled at once."""
    transfer: TransferConfig = TransferConfig()


class Move(msgspec.Struct):
    """How far one shard has come. ``rate_bytes_per_s`` is the mean since ``began_ms`` (of the mover's clock)."""

    shard: ShardId
    version: int
    mode: Mode
    stage: Stage
    began_ms: float
    source: NodeId | None = None
    rows: int = 0
    bytes: int = 0
    rate_bytes_per_s: float = 0.0


class MoverStats(msgspec.Struct):
    """Counters since the start."""

    begun: int = 0
    completed: int = 0
    cancelled: int = 0
    dropped: int = 0
    rows: int = 0
    bytes: int = 0
    source_failures: int = 0
    most_at_once: int = 0


class _Job:
    """What is known of a shard that has something to do."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.transfer: Transfer | None = None
        self.move: Move | None = None
        self.restart = False
        self.accept_loss = False
        self.forgotten = 0
        """Highest round in which a peer is known to have forgotten tombstones: older copies are no sources."""


class Mover:
    """One node's transfers. ``disk`` is the number of this node's disk."""

    def __init__(
        self,
        node: NodeId,
        disk: int,
        maps: Maps,
        holdings: Holdings,
        host: Host,
        rounds: Rounds,
        repair: Repair,
        intake: Intake,
        caller: Caller,
        report: Report,
        settings: MoverSettings,
        now_ms: Callable[[], int],
        *,
        clock_ms: Callable[[], float] = lambda: time.monotonic() * 1000.0,
    ) -> None:
        self._node = node
        self._disk = disk
        self._maps = maps
        self._holdings = holdings
        self._host = host
        self._rounds = rounds
        self._repair = repair
        self._intake = intake
        self._caller = caller
        self._report = report
        self._settings = settings
        self._now_ms = now_ms
        self._clock_ms = clock_ms
        self._throttle = Throttle(settings.bytes_per_s)
        self._demand = Demand(lambda: host.asked)
        self._pace = Pace(settings.share, settings.shards_at_once)
        self._busy_sources: dict[NodeId, bool] = {}
        self._free = asyncio.Semaphore(settings.shards_at_once)
        self._at_once = 0
        self._jobs: dict[ShardId, _Job] = {}
        self._tasks: dict[ShardId, asyncio.Task[None]] = {}
        self._seen: ShardMap | None = None
        self._changed = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self.stats = MoverStats()
        maps.subscribe(self._map_adopted)
        repair.must_wipe = self.rehydrate

    def start(self) -> None:
        """Begin with the map there is, and go on with every map that is adopted."""
        self._changed.set()
        self._watch = asyncio.create_task(self._run(), name="mover")

    async def close(self) -> None:
        """Stop. What was fetched stays, and is gone on with at the next start."""
        tasks = [*self._tasks.values(), *([self._watch] if self._watch is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def rehydrate(self, shard: ShardId) -> None:
        """This copy is lost or too old: wipe it and fetch it again. Begins now, survives a crash from the first step on."""
        self._job(shard).restart = True
        self._poke(shard)

    def accept_loss(self, shard: ShardId) -> None:
        """An operator's word: the sources that are missing will never come back, serve what there is."""
        job = self._jobs.get(shard)
        if job is not None and job.transfer is not None:
            job.accept_loss = True
            job.wake.set()

    def moves(self) -> list[Move]:
        """The transfers under way, by shard, READY ones included as long as they wait for the leader."""
        out = []
        for shard in sorted(self._jobs):
            job = self._jobs[shard]
            if job.move is None or job.transfer is None:
                continue
            job.move.stage = job.transfer.stage
            seconds = max(1e-3, (self._clock_ms() - job.move.began_ms) / 1000.0)
            job.move.rate_bytes_per_s = job.move.bytes / seconds
            out.append(msgspec.structs.replace(job.move))
        return out

    @property
    def idle(self) -> bool:
        """Everything that the current map asks of this node is done."""
        return not self._jobs and self._seen is self._maps.current

    def _map_adopted(self, shardmap: ShardMap) -> None:
        # In the same step in which the map became current: no machine goes on under a version that is gone.
        for shard, job in self._jobs.items():
            if job.transfer is not None:
                job.transfer.handle(MapChanged(shardmap.shards[shard]), self._clock_ms())
                job.wake.set()
        self._changed.set()

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._look()
            except DakeraError as error:
                log.error("the shard map could not be acted on, trying again: %s", error)
                await asyncio.sleep(RETRY_S)
                self._changed.set()

    async def _look(self) -> None:
        """Find the shards that have something to do under the current map: those that changed since the last look, and those
        with a record that the map does not explain."""
        current, before = self._maps.current, self._seen
        if current is None:
            return
        born = False
        for start in range(0, current.shard_count, SHARDS_PER_SLICE):
            for number in range(start, min(start + SHARDS_PER_SLICE, current.shard_count)):
                if before is not None and before.shards[number] == current.shards[number]:
                    continue
                shard = ShardId(number)
                match self._duty(shard, current):
                    case Duty.NOTHING | Duty.SERVE:
                        pass
                    case Duty.BIRTH:
                        born = True
                    case _:
                        self._poke(shard)
            await asyncio.sleep(0)
        if born:
            await note_births(self._maps, self._holdings, self._node, self._disk)
        self._seen = current

    def _duty(self, shard: ShardId, current: ShardMap) -> Duty:
        member = current.member(self._node)
        same_disk = member is not None and member.disk == self._disk
        return duty(self._holdings.get(shard), current.shards[shard], self._node, same_disk=same_disk)

    def _job(self, shard: ShardId) -> _Job:
        return self._jobs.setdefault(shard, _Job())

    def _poke(self, shard: ShardId) -> None:
        self._job(shard).wake.set()
        if shard not in self._tasks:
            self._tasks[shard] = asyncio.create_task(self._work(shard), name=f"move-{shard}")

    async def _work(self, shard: ShardId) -> None:
        """Everything about one shard, one thing after the other, until nothing is left to do."""
        job = self._job(shard)
        try:
            while await self._step(shard, job):
                pass
        finally:
            # Without a wait since the last look: whoever comes now makes a new job.
            self._tasks.pop(shard, None)
            self._jobs.pop(shard, None)

    async def _step(self, shard: ShardId, job: _Job) -> bool:
        current = self._maps.current
        assert current is not None
        try:
            if job.restart:
                job.restart = False
                await self._note_restart(shard, current.shards[shard])
                return True
            match self._duty(shard, current):
                case Duty.NOTHING | Duty.SERVE:
                    return False
                case Duty.BIRTH:
                    await note_births(self._maps, self._holdings, self._node, self._disk)
                case Duty.DROP:
                    await self._host.wipe(shard)
                    await self._holdings.forget(shard)
                    self.stats.dropped += 1
                case task:
                    await self._transfer(shard, job, current.shards[shard], _MODES[task])
        except DakeraError as error:
            log.error("shard %d: %s; going on where the disk says", shard, error)
            await asyncio.sleep(RETRY_S)
        except Exception:
            # A shard must never be left half fetched for good: what went wrong is in the log, the next try may be better.
            log.exception("shard %d: going on where the disk says", shard)
            await asyncio.sleep(RETRY_S)
        finally:
            job.transfer = job.move = None
        return True

    async def _note_restart(self, shard: ShardId, state: ShardState) -> None:
        role = state.state_of(self._node)
        if role is ReplicaState.ABSENT:
            return
        log.warning("shard %d: this copy is wiped and fetched again", shard)
        mode = Mode.JOIN if role is ReplicaState.JOINING else Mode.REHYDRATE
        await self._holdings.put(Holding(shard, state.version, mode, Stage.WIPING))

    async def _transfer(self, shard: ShardId, job: _Job, state: ShardState, mode: Mode) -> None:
        transfer = Transfer(
            shard, state, self._node, mode, config=self._settings.transfer, holding=self._holdings.get(shard)
        )
        job.transfer = transfer
        job.move = Move(shard, state.version, mode, transfer.stage, self._clock_ms())
        self.stats.begun += 1
        was_ready = transfer.stage is Stage.READY
        effects = transfer.start(self._clock_ms())
        while True:
            if transfer.stage is Stage.READY:
                await self._carry_out(job, transfer, effects)
            else:
                await self._carry_out_in_turn(job, transfer, effects)
            if job.restart or transfer.stage is Stage.CANCELLED:
                break
            if transfer.stage is Stage.READY:
                self.stats.completed += not was_ready
                was_ready = True
                if mode is Mode.REHYDRATE:
                    # Nobody waits for a rehydration; the others say READY until the leader changes the map.
                    break
            event = await self._next_event(job, transfer)
            effects = transfer.handle(event, self._clock_ms())
        self.stats.cancelled += transfer.stage is Stage.CANCELLED

    async def _next_event(self, job: _Job, transfer: Transfer) -> Event:
        job.wake.clear()
        deadline_ms = transfer.next_deadline_ms()
        if deadline_ms is not None and not job.accept_loss and not job.restart:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(job.wake.wait(), max(0.0, deadline_ms - self._clock_ms()) / 1000.0)
        if job.accept_loss:
            job.accept_loss = False
            return AcceptLoss()
        return Tick()

    async def _carry_out_in_turn(self, job: _Job, transfer: Transfer, effects: Iterable[Effect]) -> None:
        async with self._free:
            self._at_once += 1
            self.stats.most_at_once = max(self.stats.most_at_once, self._at_once)
            try:
                await self._carry_out(job, transfer, effects)
            finally:
                self._at_once -= 1

    async def _carry_out(self, job: _Job, transfer: Transfer, effects: Iterable[Effect]) -> None:
        """Effects in order, each answered once; what an answer asks for comes behind what is already asked."""
        waiting = deque(effects)
        while waiting and transfer.stage is not Stage.CANCELLED:
            event = await self._perform(job, waiting.popleft())
            if job.restart:
                return
            if event is not None:
                waiting.extend(transfer.handle(event, self._clock_ms()))

    async def _perform(self, job: _Job, effect: Effect) -> Event | None:
        assert job.move is not None
        match effect:
            case Persist(holding):
                await self._holdings.put(holding)
                return None
            case Wipe(shard):
                await self._host.wipe(shard)
                return Wiped()
            case FetchSnapshot(shard, source, cursor):
                job.move.source = source
                return await self._fetch(job, job.move, shard, source, cursor)
            case transfer_events.Repair(shard, source, _):
                job.move.source = source
                return await self._compare(job, job.move, shard, source)
            case ReportReady(shard, version):
                with contextlib.suppress(DakeraError):
                    await self._report(ReadyReport(shard, version, self._node))
                return None

    async def _fetch(self, job: _Job, move: Move, shard: ShardId, source: NodeId, cursor: bytes) -> Event:
        started_ms, began_s = self._now_ms(), time.perf_counter()
        ask = PageAsk(shard, move.version, cursor, self._settings.page_bytes)
        try:
            page = unpack(await self._caller.call(source, SNAPSHOT, pack(ask), PAGE_TIMEOUT_MS), PageAnswer)
        except DakeraError as error:
            return await self._failed(shard, source, error)
        if must_wipe(page.round.confirmed, job.forgotten):
            return await self._failed(shard, source, ServiceUnavailableError("its copy is too old"))
        # The numbers before the rows: a copy must never look younger than its rows are.
        await self._rounds.inherit(shard, page.round)
        if self._rounds.must_wipe(shard, 0):
            job.forgotten, job.restart = self._rounds.get(shard).collected, True
            return SourceFailed(source)
        await self._intake.repair(shard, page.rows, started_ms)
        size = size_of(page.rows)
        self._count(move, len(page.rows), size)
        self._busy_sources[source] = page.busy
        worked_s = time.perf_counter() - began_s
        await self._throttle.pay(size)
        await self._rest(move, source, worked_s)
        return SnapshotChunk(source, page.cursor)

    async def _compare(self, job: _Job, move: Move, shard: ShardId, source: NodeId) -> Event:
        began_s = time.perf_counter()
        try:
            version = await self._repair.session(shard, source, lambda rows, size: self._count(move, rows, size))
        except MustWipeError as error:
            log.warning("%s", error)
            job.forgotten, job.restart = max(job.forgotten, error.collected), True
            return SourceFailed(source)
        except DakeraError as error:
            return await self._failed(shard, source, error)
        await self._rest(move, source, time.perf_counter() - began_s)
        return RepairDone(source, version)

    async def _rest(self, move: Move, source: NodeId, worked_s: float) -> None:
        if move.mode is Mode.JOIN and (self._demand.is_high() or self._busy_sources.get(source, False)):
            await asyncio.sleep(min(MOST_REST_S, self._pace.rest_s(worked_s)))

    async def _failed(self, shard: ShardId, source: NodeId, error: DakeraError) -> Event:
        self.stats.source_failures += 1
        log.info("shard %d: %s is no source now: %s", shard, source, error)
        if isinstance(error, OutdatedMapError):
            with contextlib.suppress(DakeraError):
                await self._maps.catch_up(self._maps.order)
        return SourceFailed(source)

    def _count(self, move: Move, rows: int, size_bytes: int) -> None:
        move.rows += rows
        move.bytes += size_bytes
        self.stats.rows += rows
        self.stats.bytes += size_bytes
