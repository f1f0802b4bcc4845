"""Anti-entropy: every replica compares itself with its neighbours for ever, and repairs what differs.

Cheap when in sync: a round with one peer is one message with the roots of all shards both hold; only shards whose roots
differ get a session. What else needs repair comes on request: the mover (`session`), marks of the hint logs of others
(`refresh`, over the wire), replicas that a strong read found behind (`write_back`). Every comparison that ended well says how
fresh this copy is: `staleness_ms`.

A replica that turns out to be too old (`tombstones.must_wipe`) is handed to ``must_wipe`` and exchanges nothing. Called by
the composition root, the router, the mover; the answering side is `cluster.repair_service`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from dakera_cluster.cluster.calls import Caller, Registrar, pack, unpack
from dakera_cluster.cluster.door import Door
from dakera_cluster.cluster.gate import NotAReplicaError, OutdatedMapError
from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.intake import Intake
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.repair_service import RepairService
from dakera_cluster.cluster.repair_session import CALL_TIMEOUT_MS, MustWipeError, Session
from dakera_cluster.cluster.repair_wire import (
    ROOTS,
    WRITE_BACK,
    Compared,
    RootsAnswer,
    RootsAsk,
    ShardRoot,
    WriteBackAsk,
)
from dakera_cluster.cluster.rounds import Rounds
from dakera_cluster.cluster.throttle import Throttle
from dakera_cluster.model.errors import DakeraError, ServiceUnavailableError
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.rows import Row
from dakera_cluster.model.shardmap import ReplicaState, ShardMap, ShardState, majority
from dakera_cluster.protocols.reconcile import ReconcileConfig
from dakera_cluster.shard.host import Host

log = logging.getLogger(__name__)

ROOTS_PER_MESSAGE = 4_096
NEVER_MS = float("inf")


class RepairSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``interval_ms``: between two comparisons with the same peer (``DAKERA_REPAIR_INTERVAL_SECS``)."""

    interval_ms: float = 10_000.0
    bytes_per_s: float = 16 << 20
    """Bodies and keys that repair moves, per node."""
    sessions: int = 2
    """Sessions that this node runs at once, the mover's not counted: they are bounded there."""
    reconcile: ReconcileConfig = ReconcileConfig()


class RepairStats(msgspec.Struct):
    """Counters since the start."""

    comparisons: int = 0
    equal: int = 0
    different: int = 0
    sessions: int = 0
    failed: int = 0
    shipped_rows: int = 0
    received_rows: int = 0
    bytes: int = 0
    written_back: int = 0


class _Success(msgspec.Struct, frozen=True, gc=False):
    began_ms: float
    version: int


class Repair:
    """One node's repairs. ``alive`` is membership's word, ``must_wipe`` is called with a shard whose copy here is too old."""

    def __init__(
        self,
        node: NodeId,
        maps: Maps,
        holdings: Holdings,
        host: Host,
        rounds: Rounds,
        door: Door,
        intake: Intake,
        caller: Caller,
        alive: Callable[[NodeId], bool],
        settings: RepairSettings,
        now_ms: Callable[[], int],
        *,
        clock_ms: Callable[[], float] = lambda: time.monotonic() * 1000.0,
        rng: random.Random | None = None,
    ) -> None:
        self._node = node
        self._maps = maps
        self._holdings = holdings
        self._host = host
        self._rounds = rounds
        self._door = door
        self._intake = intake
        self._caller = caller
        self._alive = alive
        self._settings = settings
        self._now_ms = now_ms
        self._clock_ms = clock_ms
        self._rng = rng or random.Random()
        self._throttle = Throttle(settings.bytes_per_s)
        self._free = asyncio.Semaphore(settings.sessions)
        self._successes: dict[tuple[ShardId, NodeId], _Success] = {}
        self._wanted: set[tuple[ShardId, NodeId]] = set()
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.must_wipe: Callable[[ShardId], None] = lambda shard: None
        self.stats = RepairStats()
        maps.subscribe(self._map_adopted)

    def register(self, server: Registrar) -> None:
        RepairService(
            self._door, self._host, self._rounds, self._intake, self.refresh, lambda shard: self.must_wipe(shard)
        ).register(server)

    def start(self) -> None:
        """Begin the rounds."""
        self._task = asyncio.create_task(self._run(), name="repair-rounds")

    async def close(self) -> None:
        tasks = [*self._tasks, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def session(self, shard: ShardId, peer: NodeId, note: Callable[[int, int], None] | None = None) -> int:
        """Compare and repair one shard with one peer, now; the shard version both had at the beginning. ``note`` hears
        (rows received, bytes moved) as they come. Raises MustWipeError, OutdatedMapError, NotAReplicaError and others of
        `model.errors`; what was exchanged before stays."""
        order = self._maps.order
        version = self._maps.version(shard)
        began_ms = self._clock_ms()
        session = Session(
            self._host, self._rounds, self._intake, self._caller, self._throttle, self._settings.reconcile,
            shard, version, peer, self._now_ms(), note,
        )  # fmt: skip
        self.stats.sessions += 1
        try:
            await session.run()
        except OutdatedMapError:
            self.stats.failed += 1
            with contextlib.suppress(DakeraError):
                await self._maps.catch_up(order)
            raise
        except DakeraError:
            self.stats.failed += 1
            raise
        finally:
            self.stats.shipped_rows += session.bill.shipped_rows
            self.stats.received_rows += session.bill.received_rows
            self.stats.bytes += session.bill.bytes
        self._successes[(shard, peer)] = _Success(began_ms, version)
        return version

    async def refresh(self, shard: ShardId) -> None:
        """Compare this copy, from now on, with so many others that it has every write a quorum has acknowledged before.
        Raises NotAReplicaError, or ServiceUnavailableError when too few could be asked."""
        state = self._maps.state(shard)
        if not self._holdings.serves(shard, state):
            raise NotAReplicaError(f"node {self._node} has not got all rows of shard {shard}")
        missing = _others_needed(state)
        for peer in sorted(self._peers(state), key=lambda node: not self._alive(node)):
            if missing == 0:
                return
            try:
                await self._in_turn(shard, peer)
                missing -= 1
            except MustWipeError:
                self.must_wipe(shard)
                raise
            except DakeraError as error:
                log.debug("shard %d could not be compared with %s: %s", shard, peer, error)
        if missing:
            raise ServiceUnavailableError(f"{missing} more replicas of shard {shard} are needed to repair it")

    def request(self, shard: ShardId, peer: NodeId) -> None:
        """Repair soon, in the background."""
        if (shard, peer) in self._wanted:
            return
        self._wanted.add((shard, peer))
        self._spawn(self._background(shard, peer))

    async def write_back(
        self, node: NodeId, shard: ShardId, version: int, rows: list[Row], started_ms: int, timeout_ms: float
    ) -> None:
        """Have a replica merge what a strong read found; durable there on return. ``started_ms``: wall clock at the read's
        start."""
        ask = WriteBackAsk(shard, version, started_ms, rows)
        self.stats.written_back += len(rows)
        if node == self._node:
            await self._door.admit(shard, version)
            await self._intake.repair(shard, rows, started_ms)
            return
        await self._caller.call(node, WRITE_BACK, pack(ask), timeout_ms)

    def staleness_ms(self, shard: ShardId) -> float:
        """For how long this copy may have missed writes that a quorum acknowledged; infinite when nobody can tell."""
        state = self._maps.state(shard)
        if not self._holdings.serves(shard, state):
            return NEVER_MS
        needed = _others_needed(state)
        if needed == 0:
            return 0.0
        began = sorted(
            (
                success.began_ms
                for peer in self._peers(state)
                if (success := self._successes.get((shard, peer))) is not None and success.version == state.version
            ),
            reverse=True,
        )
        return self._clock_ms() - began[needed - 1] if len(began) >= needed else NEVER_MS

    def last_success_ms(self, shard: ShardId, peer: NodeId) -> float | None:
        """How long ago the last comparison that ended well began; None when there was none since the start."""
        success = self._successes.get((shard, peer))
        return None if success is None else self._clock_ms() - success.began_ms

    async def compare(self, peer: NodeId) -> list[ShardId]:
        """Compare the roots of all shards that both hold, and wait for the repair of what differs; those shards. Raises when
        the peer cannot be asked."""
        different: list[ShardId] = []
        shared = self._shared_with(peer)
        for start in range(0, len(shared), ROOTS_PER_MESSAGE):
            different += await self._compare(peer, shared[start : start + ROOTS_PER_MESSAGE])
        await asyncio.gather(*(self._background(shard, peer) for shard in different))
        return different

    async def _compare(self, peer: NodeId, shards: list[ShardId]) -> list[ShardId]:
        began_ms = self._clock_ms()
        roots = await self._host.roots(shards)
        asked = [ShardRoot(shard, self._maps.version(shard), root) for shard, root in zip(shards, roots, strict=True)]
        data = await self._caller.call(peer, ROOTS, pack(RootsAsk(asked)), CALL_TIMEOUT_MS)
        different = []
        for one, compared in zip(asked, unpack(data, RootsAnswer).compared, strict=False):
            self.stats.comparisons += 1
            if compared is Compared.EQUAL:
                self.stats.equal += 1
                self._successes[(one.shard, peer)] = _Success(began_ms, one.version)
            elif compared is Compared.DIFFERENT:
                self.stats.different += 1
                different.append(one.shard)
        return different

    async def _background(self, shard: ShardId, peer: NodeId) -> None:
        try:
            await self._in_turn(shard, peer)
        except MustWipeError as error:
            log.warning("%s", error)
            self.must_wipe(shard)
        except DakeraError as error:
            log.info("shard %d is not repaired with %s: %s", shard, peer, error)
        finally:
            self._wanted.discard((shard, peer))

    async def _in_turn(self, shard: ShardId, peer: NodeId) -> None:
        async with self._free:
            await self.session(shard, peer)

    async def _run(self) -> None:
        """One peer after the other, evenly over the interval, in an order that differs from node to node."""
        waiting: list[NodeId] = []
        while True:
            if not waiting:
                waiting = self._live_peers()
                self._rng.shuffle(waiting)
                pause_ms = self._settings.interval_ms / max(1, len(waiting)) * self._rng.uniform(0.9, 1.1)
            await asyncio.sleep(pause_ms / 1000.0)
            if waiting:
                peer = waiting.pop()
                try:
                    await self.compare(peer)
                except DakeraError as error:
                    log.debug("no comparison with %s: %s", peer, error)
                except Exception:
                    # Rounds must go on: what one of them hit is in the log, the next may not meet it.
                    log.exception("comparison with %s failed", peer)

    def _live_peers(self) -> list[NodeId]:
        if self._maps.current is None:
            return []
        peers = {
            peer
            for shard in self._holdings.shards()
            if self._serves(shard)
            for peer in self._peers(self._maps.state(shard))
        }
        return sorted(peer for peer in peers if self._alive(peer))

    def _shared_with(self, peer: NodeId) -> list[ShardId]:
        return [
            shard
            for shard in self._holdings.shards()
            if self._serves(shard) and peer in self._maps.state(shard).replicas
        ]

    def _serves(self, shard: ShardId) -> bool:
        return self._holdings.serves(shard, self._maps.state(shard))

    def _peers(self, state: ShardState) -> list[NodeId]:
        return [node for node in state.replicas if node != self._node]

    def _map_adopted(self, shardmap: ShardMap) -> None:
        self._successes = {
            (shard, peer): success
            for (shard, peer), success in self._successes.items()
            if shardmap.state_of(shard, self._node) is not ReplicaState.ABSENT
            and peer in shardmap.shards[shard].replicas
        }

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _others_needed(state: ShardState) -> int:
    """How many other replicas make sure, together with this one, that every majority is met."""
    return len(state.old_set) - majority(len(state.old_set))
