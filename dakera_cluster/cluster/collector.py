"""Tombstones are collected: rounds of `protocols.tombstones` over the shards whose first live replica this node is.

Cheap, because the shard knows its graves by age: a look at a shard without old tombstones is one short scan, and looks are
rare. A round lives in memory; its numbers are on every replica's disk. What a replica could not be told to drop is told again
a few times while the shard's version stands, or its tombstones would wander back to the others by repair. Called by the
composition root; the answering side is `cluster.grave_service`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec

from dakera_cluster.cluster.calls import Caller, Registrar, pack, unpack
from dakera_cluster.cluster.collector_wire import COLLECT, HOLD, CollectAnswer, CollectAsk, HoldAnswer, HoldAsk
from dakera_cluster.cluster.door import Door
from dakera_cluster.cluster.grave_service import GraveService
from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.intake import Intake
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.rounds import Rounds
from dakera_cluster.model.errors import DakeraError
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.rows import Row
from dakera_cluster.model.shardmap import ShardMap
from dakera_cluster.protocols import digest
from dakera_cluster.protocols.tombstones import (
    AskHold,
    CollectAt,
    Collector,
    Effect,
    GcState,
    TombstoneConfig,
    is_ripe,
)
from dakera_cluster.shard import keys
from dakera_cluster.shard.host import Host

log = logging.getLogger(__name__)

COLLECT_TIMEOUT_MS = 30_000.0
COLLECT_ATTEMPTS = 5


class CollectorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``look_ms``: between two looks for old tombstones. ``rounds``: shards in a round at once."""

    tombstones: TombstoneConfig = TombstoneConfig()
    look_ms: float = 600_000.0
    rounds: int = 16
    retry_ms: float = 5_000.0


class CollectorStats(msgspec.Struct):
    """Counters since the start. ``dropped`` counts this node's rows in its own rounds."""

    rounds: int = 0
    collected: int = 0
    abandoned: int = 0
    dropped: int = 0


class Collection:
    """One node's rounds. ``alive`` is membership's word; this node is alive to itself."""

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
        settings: CollectorSettings,
        now_ms: Callable[[], int],
        *,
        clock_ms: Callable[[], float] = lambda: time.monotonic() * 1000.0,
    ) -> None:
        self._node = node
        self._maps = maps
        self._holdings = holdings
        self._host = host
        self._rounds = rounds
        self._caller = caller
        self._alive = alive
        self._settings = settings
        self._now_ms = now_ms
        self._clock_ms = clock_ms
        self._service = GraveService(door, host, rounds, intake)
        self._running: dict[ShardId, Collector] = {}
        self._bodies: dict[ShardId, dict[bytes, bytes]] = {}
        self._known: dict[ShardId, int] = {}
        """Rounds that others have confirmed already, as they told."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.stats = CollectorStats()
        maps.subscribe(self._map_adopted)

    def register(self, server: Registrar) -> None:
        self._service.register(server)

    def start(self) -> None:
        """Begin to look."""
        self._spawn(self._run())

    async def close(self) -> None:
        """Stop. Rounds under way are forgotten; nothing was collected in them."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def running(self) -> dict[ShardId, GcState]:
        """Shards in a round, and where it is."""
        return {shard: collector.state for shard, collector in self._running.items()}

    async def look(self) -> None:
        """Begin rounds for the shards that are this node's to collect and have old tombstones."""
        if self._maps.current is None:
            return
        for shard in self._holdings.shards():
            if len(self._running) >= self._settings.rounds:
                return
            if shard not in self._running and self._is_mine(shard):
                await self._begin(shard)

    def tick(self) -> None:
        """End the phases whose time is over."""
        now_ms = self._clock_ms()
        for shard, collector in list(self._running.items()):
            waited = collector.state
            effects = collector.tick(now_ms)
            if effects:
                self.stats.collected += 1
                self._carry_out(shard, collector, effects)
            elif waited is not GcState.IDLE and collector.state is GcState.IDLE:
                self.stats.abandoned += 1
            self._tidy(shard, collector)

    def _is_mine(self, shard: ShardId) -> bool:
        state = self._maps.state(shard)
        first = next((node for node in state.replicas if node == self._node or self._alive(node)), None)
        return first == self._node and not state.is_joint and self._holdings.serves(shard, state)

    async def _begin(self, shard: ShardId) -> None:
        config = self._settings.tombstones
        now_ms = self._now_ms()
        replica = self._host.replica(shard)
        before_ms = now_ms - int(config.grace_ms)
        terms = await asyncio.to_thread(replica.buried, before_ms, config.batch_rows)
        if not terms:
            return
        found = await asyncio.to_thread(replica.bodies, list(terms))
        bodies = {
            local: body
            for (local, term), body in zip(terms.items(), found, strict=True)
            if body is not None
            and digest.term(local, body) == term
            and is_ripe(keys.split_local(local)[1], body, now_ms, config)
        }
        state = self._maps.state(shard)
        if not bodies or shard in self._running or not self._is_mine(shard):
            return
        collector = Collector(config, max(self._rounds.get(shard).confirmed, self._known.pop(shard, 0)))
        self._running[shard], self._bodies[shard] = collector, bodies
        self.stats.rounds += 1
        # Of the scan and the bodies only those pairs are left that belong together: all are asked for these bytes.
        effects = collector.begin(state, {local: terms[local] for local in bodies}, self._clock_ms())
        self._carry_out(shard, collector, effects)

    def _carry_out(self, shard: ShardId, collector: Collector, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case AskHold():
                    self._spawn(self._ask(shard, collector, effect))
                case CollectAt():
                    self._spawn(self._tell(shard, effect))

    async def _ask(self, shard: ShardId, collector: Collector, effect: AskHold) -> None:
        bodies = self._bodies[shard]
        rows = [Row(*keys.split_local(local), bodies[local]) for local in effect.keys]
        ask = HoldAsk(shard, effect.version, effect.round, self._now_ms(), rows)
        try:
            if effect.node == self._node:
                answer = await self._service.hold(ask)
            else:
                timeout_ms = self._settings.tombstones.confirm_timeout_ms
                answer = unpack(await self._caller.call(effect.node, HOLD, pack(ask), timeout_ms), HoldAnswer)
        except DakeraError as error:
            log.info("shard %d: %s does not confirm tombstones: %s", shard, effect.node, error)
            answer = HoldAnswer(None)
        was = collector.state
        if answer.held is None:
            if answer.known_round:
                self._known[shard] = max(answer.known_round, self._known.get(shard, 0))
            collector.failed(effect.node, effect.round, known_round=answer.known_round)
        else:
            collector.confirmed(effect.node, effect.round, answer.held, self._clock_ms())
        self.stats.abandoned += was is not GcState.IDLE and collector.state is GcState.IDLE
        self._tidy(shard, collector)

    async def _tell(self, shard: ShardId, effect: CollectAt) -> None:
        ask = CollectAsk(shard, effect.version, effect.round, effect.rows)
        for attempt in range(COLLECT_ATTEMPTS):
            if attempt:
                await asyncio.sleep(self._settings.retry_ms / 1000.0)
            if self._maps.version(shard) != effect.version:
                return
            with contextlib.suppress(DakeraError):
                if effect.node == self._node:
                    self.stats.dropped += (await self._service.collect(ask)).dropped
                else:
                    unpack(await self._caller.call(effect.node, COLLECT, pack(ask), COLLECT_TIMEOUT_MS), CollectAnswer)
                return
        log.warning("shard %d: %s was not told to drop its tombstones; a later round will", shard, effect.node)

    def _tidy(self, shard: ShardId, collector: Collector) -> None:
        if collector.state is GcState.IDLE and self._running.get(shard) is collector:
            del self._running[shard], self._bodies[shard]

    def _map_adopted(self, shardmap: ShardMap) -> None:
        for shard, collector in list(self._running.items()):
            was = collector.state
            collector.map_changed(shardmap.shards[shard])
            self.stats.abandoned += was is not GcState.IDLE and collector.state is GcState.IDLE
            self._tidy(shard, collector)

    async def _run(self) -> None:
        look_at_ms = self._clock_ms() + self._settings.look_ms
        while True:
            deadlines = [d for c in self._running.values() if (d := c.next_deadline_ms()) is not None]
            wait_ms = max(0.0, min([look_at_ms, *deadlines]) - self._clock_ms())
            # At most a second, because rounds begin and end behind this task's back.
            await asyncio.sleep(min(1.0, wait_ms / 1000.0))
            self.tick()
            if self._clock_ms() >= look_at_ms:
                look_at_ms = self._clock_ms() + self._settings.look_ms
                try:
                    await self.look()
                except Exception:
                    # Collection is housekeeping: the next look may succeed, and nothing depends on this one.
                    log.exception("looking for old tombstones failed")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
