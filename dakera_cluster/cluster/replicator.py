"""Writes: stamp, send to every replica of the shard, answer when enough are durable.

The decision is `protocols.quorum`'s; here are the calls, the deadline and the rounds. A write is handed over as a function
from a stamp to rows, because a coordinator whose clock lags must stamp anew when a replica says that the write was outrun.
A write of several shards is several writes: each is whole or not, and the first failure is raised after all have ended, so
that nothing is left in the air; it is ambiguous when any of the others may have been stored. A write that has started over is
ambiguous from then on unless it certainly reached nobody before: a later round in which everybody refuses proves nothing about
an earlier one. What replicas miss goes to ``hints`` once the write has succeeded. Called by the memory
services.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from dakera_cluster.cluster.asking import Transport
from dakera_cluster.cluster.gate import NotAReplicaError, OutdatedMapError
from dakera_cluster.cluster.levels import write_level
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.router import Router
from dakera_cluster.model.errors import (
    DakeraError,
    InternalError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    QuorumUnavailableError,
    ServiceUnavailableError,
)
from dakera_cluster.model.hlc import HybridClock, Stamp
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.rows import Row
from dakera_cluster.protocols.quorum import WriteDecision, WriteLevel, WriteOperation
from dakera_cluster.shard import ops

ROWS_PER_APPLY = 256
"""Rows sent in one apply: bounds a frame, and lets one shard's disk and another's overlap."""
ROUNDS = 4
"""How often a write starts over because the map changed or the clock lagged."""

Build = Callable[[Stamp], Sequence[Row]]
Hint = Callable[[NodeId, ShardId, list[Row]], Coroutine[Any, Any, None]]


class ReplicatorSettings(msgspec.Struct, frozen=True):
    level: WriteLevel = WriteLevel.QUORUM
    timeout_ms: int = 5_000


class Spent(msgspec.Struct):
    """How many there were, and the seconds they took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


class ReplicatorStats(msgspec.Struct):
    """Counters since the start. ``whole``: writes that succeeded, from the first stamp to the quorum; ``own`` and ``peer``:
    one replica's answer to one write, of this node's replica and of any other's."""

    writes: int = 0
    failed: int = 0
    ambiguous: int = 0
    restamped: int = 0
    refreshed: int = 0
    hinted: int = 0
    whole: Spent = msgspec.field(default_factory=Spent)
    own: Spent = msgspec.field(default_factory=Spent)
    peer: Spent = msgspec.field(default_factory=Spent)


class Replicator:
    """The write path of a coordinator."""

    def __init__(
        self,
        maps: Maps,
        router: Router,
        transport: Transport,
        clock: HybridClock,
        now_ms: Callable[[], int],
        settings: ReplicatorSettings,
        hint: Hint | None = None,
    ) -> None:
        self._maps = maps
        self._router = router
        self._transport = transport
        self._clock = clock
        self._now_ms = now_ms
        self._settings = settings
        self._hint = hint
        self._behind: set[asyncio.Task[None]] = set()
        self.stats = ReplicatorStats()

    async def write(self, build: Build) -> None:
        """Make rows durable. Raises QuorumUnavailableError (``ambiguous`` when some replica may have the write),
        OverloadedError or StorageError."""
        stamp = self._clock.tick(self._now_ms())
        rows = build(stamp)
        chunks = [
            (shard, some[start : start + ROWS_PER_APPLY])
            for shard, some in self._by_shard(rows).items()
            for start in range(0, len(some), ROWS_PER_APPLY)
        ]
        if len(chunks) == 1:
            await self._write(*chunks[0], build, rows)
            return
        outcomes = await asyncio.gather(
            *(self._write(shard, some, build, rows) for shard, some in chunks), return_exceptions=True
        )
        failures = [outcome for outcome in outcomes if outcome is not None]
        if failures:
            first = failures[0]
            if isinstance(first, DakeraError) and (len(failures) < len(outcomes) or any(map(_is_ambiguous, failures))):
                first.ambiguous = True
            raise first

    def _by_shard(self, rows: Sequence[Row]) -> dict[ShardId, list[int]]:
        """Shard -> places of its rows."""
        homes: dict[str, ShardId | None] = {}
        by_shard: dict[ShardId, list[int]] = {}
        for place, row in enumerate(rows):
            namespace = row.namespace
            if namespace not in homes:
                homes[namespace] = self._router.home_of(namespace)
            home = homes[namespace]
            by_shard.setdefault(self._router.shard_for(namespace, row.id) if home is None else home, []).append(place)
        return by_shard

    async def close(self) -> None:
        """Wait for what was answered before every replica had spoken, and for its hints."""
        if self._behind:
            await asyncio.wait(self._behind, timeout=self._settings.timeout_ms / 1000)

    async def _write(self, shard: ShardId, places: list[int], build: Build, rows: Sequence[Row]) -> None:
        self.stats.writes += 1
        began = time.perf_counter()
        doubtful = False
        for _ in range(ROUNDS):
            some = [rows[place] for place in places]
            order = self._maps.order
            attempt = _Attempt(self, shard, some)
            decision = await attempt.run()
            if decision is WriteDecision.SUCCESS:
                self.stats.whole.add(time.perf_counter() - began)
                return
            doubtful = doubtful or attempt.operation.possible
            match decision:
                case WriteDecision.RESTAMP:
                    self.stats.restamped += 1
                    assert attempt.operation.outrun_by is not None
                    self._clock.observe(attempt.operation.outrun_by.time, self._now_ms())
                    rows = build(self._clock.tick(self._now_ms()))
                    continue
                case WriteDecision.REFRESH:
                    again = await self._newer_map(order)
                case WriteDecision.AMBIGUOUS:
                    # Replicas that took the rows while the map moved on did not vote: the same rows again, under the
                    # new version, change nothing where they are and are counted.
                    again = attempt.outrun_by_map and await self._newer_map(order)
                case _:
                    again = False
            if not again:
                raise self._failed(attempt.failure(ambiguous=doubtful))
            self.stats.refreshed += 1
        raise self._failed(QuorumUnavailableError(f"shard {shard} kept changing during the write", ambiguous=doubtful))

    def _failed(self, error: DakeraError) -> DakeraError:
        if error.ambiguous:
            self.stats.ambiguous += 1
        else:
            self.stats.failed += 1
        return error

    async def _newer_map(self, order: tuple[int, int]) -> bool:
        try:
            await self._maps.catch_up(order)
        except NotReadyError:
            return False
        return True


class _Attempt:
    """One round of one write: calls to all replicas, and the decision."""

    def __init__(self, parent: Replicator, shard: ShardId, rows: list[Row]) -> None:
        self._parent = parent
        self._shard = shard
        self._rows = rows
        self._state = parent._maps.state(shard)
        self._errors: dict[NodeId, DakeraError] = {}
        self.outrun_by_map = False
        """A replica of the shard has the rows but did not vote: most likely it knows a newer map."""
        self._level = write_level.get() or parent._settings.level
        self.operation = WriteOperation(self._state, self._level)

    async def run(self) -> WriteDecision:
        """Send and decide; stragglers are awaited behind the answer."""
        nodes = self._state.write_set
        request = ops.Apply(self._shard, self._state.version, self._rows)
        if len(nodes) == 1:
            await self._one(nodes[0], request)
            return self.operation.decision
        waiting = {asyncio.create_task(self._one(node, request)) for node in nodes}
        deadline = asyncio.get_running_loop().time() + self._parent._settings.timeout_ms / 1000
        while waiting and self.operation.decision is WriteDecision.PENDING:
            left = deadline - asyncio.get_running_loop().time()
            done, waiting = await asyncio.wait(waiting, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self.operation.deadline()
        if self.operation.decision is WriteDecision.SUCCESS:
            self._finish_behind(waiting)
        else:
            for task in waiting:
                task.cancel()
        return self.operation.decision

    async def _one(self, node: NodeId, request: ops.Apply) -> None:
        began = time.perf_counter()
        try:
            answer = await self._parent._transport.call(node, request)
        except OutdatedMapError:
            self.operation.outdated(node)
        except (NotAReplicaError, OverloadedError, NotReadyError, InvalidRequestError) as error:
            self._errors[node] = error
            self.operation.refused(node)
        except DakeraError as error:
            self._errors[node] = error
            if isinstance(error, ServiceUnavailableError) and not error.ambiguous:
                self.operation.refused(node)
            else:
                self.operation.unknown(node)
        else:
            assert isinstance(answer, ops.Applied)
            stats = self._parent.stats
            (stats.own if node == self._parent._maps.node else stats.peer).add(time.perf_counter() - began)
            if answer.voted:
                self.operation.ack(node, answer.outrun_by)
            else:
                self.outrun_by_map = self.outrun_by_map or node in self._state.replicas
                self.operation.stored(node)

    def _finish_behind(self, waiting: set[asyncio.Task[None]]) -> None:
        parent = self._parent
        if not waiting and not self.operation.hints_due():
            return
        task = asyncio.create_task(self._stragglers(waiting))
        parent._behind.add(task)
        task.add_done_callback(parent._behind.discard)

    async def _stragglers(self, waiting: set[asyncio.Task[None]]) -> None:
        if waiting:
            await asyncio.wait(waiting, timeout=self._parent._settings.timeout_ms / 1000)
        for task in waiting:
            task.cancel()
        for node in self.operation.hints_due():
            if self._parent._hint is not None:
                self._parent.stats.hinted += 1
                await self._parent._hint(node, self._shard, self._rows)

    def failure(self, *, ambiguous: bool) -> DakeraError:
        """The error the client sees: a replica's own when it was alone to decide, else what the quorum lacked."""
        errors = list(self._errors.values())
        if len(self._state.write_set) == 1 and errors:
            errors[0].ambiguous = ambiguous
            return errors[0]
        bad = next((error for error in errors if isinstance(error, InvalidRequestError)), None)
        if bad is not None and not ambiguous:
            return InternalError(bad.message)
        have, want = len(self.operation.acked), len(self._state.write_set)
        return QuorumUnavailableError(
            f"{have} of {want} replicas of shard {self._shard} have the write, level {self._level.value} needs more",
            ambiguous=ambiguous,
            details={"acknowledged": have, "replicas": want, "level": self._level.value},
        )


def _is_ambiguous(outcome: BaseException) -> bool:
    return not isinstance(outcome, DakeraError) or outcome.ambiguous
