"""The leader loop: the lease against a real bucket, and, while it is held, one plan after another.

Authority comes from `protocols.lease` and is checked right before every act; every map is written by compare-and-swap on the
one this leader read, under its epoch, so a leader that was overtaken in its sleep writes nothing. Its first act is to stamp
the map with its epoch. Moves under way stand in the map, so a leader may die at any step. Called by the cluster's runtime;
what a member may know of it is in ``view``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from dakera_cluster.cluster.maps import MAP_OBJECT, Maps
from dakera_cluster.model.errors import BucketUnavailableError, ConflictError, DakeraError, InvalidRequestError
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.model.shardmap import MemberState, ShardMap, decode_map, encode_map
from dakera_cluster.protocols import lease_events as le
from dakera_cluster.protocols.lease import Lease
from dakera_cluster.protocols.rebalance import (
    LiveNode,
    Plan,
    ReadyReport,
    RebalanceConfig,
    Situation,
    birth,
    has_majority,
    plan,
    set_member_state,
)
from dakera_cluster.storage.objects import (
    ABSENT,
    AmbiguousWriteError,
    ConditionsIgnoredError,
    ObjectStore,
    PreconditionFailedError,
)

log = logging.getLogger(__name__)

LEASE_OBJECT = "cluster/lease"
PLAN_INTERVAL_S = 0.5
LEASE_TICK_S = 0.25
OPERATION_TIMEOUT_S = 4.0
PROBE_RETRY_S = 5.0
READY_KEPT = 200_000
"""READY reports remembered at most; they are told again until the map changes."""


class LeaderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``birth_members``: nodes a new cluster waits for before its first map, at most ``birth_wait_ms``."""

    lease: le.LeaseConfig = le.LeaseConfig()
    rebalance: RebalanceConfig = RebalanceConfig()
    shards: int = 64
    replication_factor: int = 3
    birth_members: int = 1
    birth_wait_ms: float = 15_000.0


class LeaderView(msgspec.Struct, frozen=True):
    """What this node knows of the leadership: who holds it, since when this node believes that, and whether the bucket has
    proved that it honours conditions (None: not known yet). ``acting``: this node may act as leader at this instant."""

    leader: NodeId | None
    epoch: int
    is_self: bool
    acting: bool
    age_ms: float
    bucket_proved: bool | None
    bucket_problem: str | None


class Leadership:
    """One node's part in leading. ``live`` tells who is alive, this node included."""

    def __init__(
        self,
        objects: ObjectStore,
        maps: Maps,
        cluster_id: str,
        node: NodeId,
        boot: BootId,
        live: Callable[[], Mapping[NodeId, LiveNode]],
        settings: LeaderSettings,
        published: Callable[[ShardMap], None],
        rng: random.Random,
    ) -> None:
        self._objects = objects
        self._maps = maps
        self._cluster_id = cluster_id
        self._node = node
        self._live = live
        self._settings = settings
        self._published = published
        self._lease = Lease(cluster_id, node, boot, config=settings.lease, rng=rng, floor_epoch=maps.order[0])
        self._proved: bool | None = None
        self._problem: str | None = None
        self._bucket_map: tuple[ShardMap | None, str | None] | None = None
        self._ready: set[ReadyReport] = set()
        self._absent_since: dict[NodeId, float] = {}
        self._alone_since = time.monotonic()
        self._seen_leader: tuple[NodeId | None, int] = (None, 0)
        self._seen_at = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._acting = asyncio.Lock()
        self._stopped = asyncio.Event()
        self.paused = False
        self.last_plan: Plan | None = None

    def start(self) -> None:
        for run, name in ((self._prove, "prove"), (self._keep_lease, "lease"), (self._keep_planning, "plan")):
            self._tasks.append(asyncio.create_task(run(), name=f"leader-{name}"))

    async def close(self) -> None:
        """Give the lease back, when it is ours, and stop."""
        self._feed(le.Resign())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OPERATION_TIMEOUT_S):
                await self._stopped.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what others ask

    @property
    def is_leader(self) -> bool:
        """Whether this node may act now; never the safety check, which is the epoch."""
        return self._lease.can_act(_now_ms())

    def view(self) -> LeaderView:
        record = self._lease.observed
        holder = record.holder if record is not None and not record.is_released else None
        epoch = record.epoch if record is not None else 0
        self._note_holder()
        age_ms = (time.monotonic() - self._seen_at) * 1000
        return LeaderView(holder, epoch, holder == self._node, self.is_leader, age_ms, self._proved, self._problem)

    def _note_holder(self) -> None:
        record = self._lease.observed
        seen = (None, 0) if record is None else (None if record.is_released else record.holder, record.epoch)
        if seen != self._seen_leader:
            self._seen_leader, self._seen_at = seen, time.monotonic()

    def ready(self, report: ReadyReport) -> None:
        """A joining replica has everything."""
        if len(self._ready) < READY_KEPT:
            self._ready.add(report)
        self._wake.set()

    def members_changed(self) -> None:
        """Membership has news: judge eligibility and plan now."""
        self._judge()
        self._wake.set()

    def dry_run(self) -> Plan:
        """What a plan made now would begin. Any node may ask; it changes nothing."""
        if self._maps.current is None:
            return Plan(None, {}, ())
        return plan(self._maps.current, max(1, self._maps.order[0]), self._situation(), self._settings.rebalance)

    async def set_member(self, node: NodeId, state: MemberState) -> ShardMap:
        """Drain, remove or reinstate a member. Raises ConflictError when this node is not the leader."""
        async with self._acting:
            if not self.is_leader:
                raise ConflictError("this node is not the leader")
            current, etag = await self._read_map()
            if current is None:
                raise ConflictError("the cluster has no shard map yet")
            try:
                changed = set_member_state(current, self._epoch, node, state)
            except KeyError:
                raise InvalidRequestError(f"{node!r} is no member of the cluster", field="node_id") from None
            await self._write_map(changed, etag)
        self._wake.set()
        return changed

    # -- the lease

    @property
    def _epoch(self) -> int:
        epoch = self._lease.epoch
        assert epoch is not None
        return epoch

    async def _prove(self) -> None:
        """Prove that the bucket honours conditions; until then nobody campaigns from here."""
        while True:
            try:
                await self._objects.probe()
                self._proved, self._problem = True, None
                self._judge()
                return
            except ConditionsIgnoredError as error:
                self._proved, self._problem = False, error.message
                log.error("the bucket cannot hold a lease: %s", error.message)
                return
            except DakeraError as error:
                self._problem = error.message
                await asyncio.sleep(PROBE_RETRY_S)

    def _judge(self) -> None:
        live = self._live()
        current = self._maps.current
        majority = has_majority(current, live.keys()) if current is not None else self._may_found(live)
        self._feed(le.EligibilityChanged(self._proved is True and majority))

    def _may_found(self, live: Mapping[NodeId, LiveNode]) -> bool:
        waited_ms = (time.monotonic() - self._alone_since) * 1000
        return len(live) >= self._settings.birth_members or waited_ms >= self._settings.birth_wait_ms

    async def _keep_lease(self) -> None:
        while True:
            # None: an operation is under way, whose answer comes by itself.
            deadline = self._lease.next_deadline_ms()
            wait_s = LEASE_TICK_S if deadline is None else (deadline - _now_ms()) / 1000
            await asyncio.sleep(max(0.005, min(LEASE_TICK_S, wait_s)))
            self._judge()
            self._note_holder()
            self._feed(le.Tick())

    def _feed(self, event: le.Event) -> None:
        for effect in self._lease.handle(event, _now_ms()):
            self._carry_out(effect)
        self._note_holder()

    def _carry_out(self, effect: le.Effect) -> None:
        match effect:
            case le.ReadLease(attempt):
                self._spawn(self._read_lease(attempt))
            case le.PutLease(attempt, record, if_match):
                self._spawn(self._put_lease(attempt, record, if_match))
            case le.BecameLeader(epoch, _):
                log.info("this node leads, epoch %d", epoch)
                self._bucket_map = None
                self._absent_since.clear()
                self._wake.set()
            case le.LostLeadership(epoch, reason):
                log.warning("leadership of epoch %d lost: %s", epoch, reason.value)
            case le.ForeignCluster(cluster_id):
                self._problem = f"the bucket belongs to cluster {cluster_id}, this node to {self._cluster_id}"
                log.error("%s", self._problem)
            case le.Stopped():
                self._stopped.set()
            case le.LeaseExtended() | le.HolderObserved():
                pass

    def _spawn(self, work: Awaitable[le.Event]) -> None:
        async def run() -> None:
            self._feed(await work)

        task = asyncio.create_task(run())
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    async def _read_lease(self, attempt: int) -> le.Event:
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT_S):
                found = await self._objects.get(LEASE_OBJECT)
        except (DakeraError, TimeoutError):
            return le.ReadFailed(attempt)
        if found is None:
            return le.ReadDone(attempt, None, None)
        return le.ReadDone(attempt, le.decode_lease(found.data), found.etag)

    async def _put_lease(self, attempt: int, record: le.LeaseRecord, if_match: str | None) -> le.Event:
        condition = ABSENT if if_match is None else if_match
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT_S):
                return le.PutDone(
                    attempt, await self._objects.put_if(LEASE_OBJECT, le.encode_lease(record), etag=condition)
                )
        except PreconditionFailedError:
            return le.PutRefused(attempt)
        except (DakeraError, TimeoutError):
            return le.PutUnknown(attempt)

    # -- planning

    async def _keep_planning(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PLAN_INTERVAL_S):
                    await self._wake.wait()
            self._wake.clear()
            self._note_absences()
            if not self.is_leader:
                continue
            try:
                async with self._acting:
                    await self._plan_once()
            except PreconditionFailedError:
                self._bucket_map = None
            except AmbiguousWriteError:
                self._bucket_map = None
            except BucketUnavailableError as error:
                log.warning("the leader waits for the bucket: %s", error.message)
            except DakeraError:
                log.exception("planning failed")
                self._bucket_map = None
            # A tight loop over maps would outrun those who have to adopt them.
            await asyncio.sleep(0.05)

    async def _plan_once(self) -> None:
        current, etag = await self._read_map()
        if current is None:
            await self._found_cluster()
            return
        if current.epoch > self._epoch:
            self._feed(le.EpochSeen(current.epoch, taken=True))
            return
        self._ready = {
            report
            for report in self._ready
            if report.shard < current.shard_count and current.shards[report.shard].version == report.version
        }
        made = plan(current, self._epoch, self._situation(), self._settings.rebalance)
        self.last_plan = made
        if made.next_map is not None:
            await self._write_map(made.next_map, etag)
        else:
            await self._adopt(current)

    async def _found_cluster(self) -> None:
        own = self._maps.current
        settings = self._settings
        if own is not None:
            first = ShardMap(
                self._cluster_id, self._epoch, own.version + 1, own.replication_factor, own.members, own.shards
            )
        else:
            first = birth(self._cluster_id, self._epoch, self._live(), settings.shards, settings.replication_factor)
        log.info("the cluster is born with %d members", len(first.members))
        await self._write_map(first, None)

    def _situation(self) -> Situation:
        now = time.monotonic()
        absent = {node: (now - since) * 1000 for node, since in self._absent_since.items()}
        return Situation(self._live(), absent, frozenset(self._ready), self.paused)

    def _note_absences(self) -> None:
        live, current, now = self._live(), self._maps.current, time.monotonic()
        members = {member.node for member in current.members} if current is not None else set()
        for node in members:
            if node in live:
                self._absent_since.pop(node, None)
            else:
                self._absent_since.setdefault(node, now)

    async def _read_map(self) -> tuple[ShardMap | None, str | None]:
        if self._bucket_map is None:
            found = await self._objects.get(MAP_OBJECT)
            self._bucket_map = (decode_map(found.data), found.etag) if found is not None else (None, None)
        return self._bucket_map

    async def _write_map(self, made: ShardMap, etag: str | None) -> None:
        if not self.is_leader:
            return
        written = await self._objects.put_if(MAP_OBJECT, encode_map(made), etag=ABSENT if etag is None else etag)
        self._bucket_map = (made, written)
        await self._adopt(made)

    async def _adopt(self, current: ShardMap) -> None:
        if await self._maps.adopt(current):
            self._published(current)


def _now_ms() -> float:
    # The lease must not be fooled by a machine that slept: this clock runs on meanwhile.
    return time.clock_gettime(time.CLOCK_BOOTTIME) * 1000
