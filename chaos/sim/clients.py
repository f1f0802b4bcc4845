"""Clients of the simulated cluster: each runs one operation after another against nodes of its choice, and writes down what
it asked, when, and what it was told. Every value written is used once, so a read tells which write it saw.

A row has two fields: ``v``, set by puts, and ``p``, set by patches and cleared by puts. Called by ``world``.
"""

from __future__ import annotations

import enum
from random import Random
from typing import TYPE_CHECKING

import msgspec

from chaos.sim.coordinator import CoordinatorRead, Written
from chaos.sim.node import Node
from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.rows import decode_document, delete_document, patch_document, put_document
from dakera_cluster.protocols.quorum import ReadLevel, WriteDecision, WriteLevel

if TYPE_CHECKING:
    from chaos.sim.world import World

THINK_MS = 250.0
CLIENT_TIMEOUT_MS = 4_500.0
WINDOW_MS = 8_000.0
WINDOW_STEP = 4
FOREVER = float("inf")


class Kind(enum.Enum):
    PUT = "put"
    PATCH = "patch"
    DELETE = "delete"
    STRONG_READ = "strong"
    EVENTUAL_READ = "eventual"

    @property
    def is_read(self) -> bool:
        return self in (Kind.STRONG_READ, Kind.EVENTUAL_READ)


class Outcome(enum.Enum):
    OK = "ok"
    FAILED = "failed"
    """Certainly without effect (a write), or without an answer (a read)."""
    UNSURE = "unsure"


class Operation(msgspec.Struct):
    number: int
    kind: Kind
    key: int
    value: int
    node: str
    start_ms: float
    end_ms: float = FOREVER
    outcome: Outcome = Outcome.UNSURE
    restamped: bool = False
    """It was stamped twice, so it may have shown for a moment before the stamp it has now."""
    seen: dict[str, int] | None = None
    """What a read returned: None is no row, else its fields."""

    @property
    def takes_effect_until_ms(self) -> float:
        """An unsure write may still take effect at any later time."""
        return self.end_ms if self.outcome is Outcome.OK else FOREVER


class Clients:
    def __init__(self, world: World, count: int, keys: int) -> None:
        self._world = world
        self._rng: Random = world.fork_rng()
        self._keys = keys
        self.history: list[Operation] = []
        self.is_running = True
        for index in range(count):
            world.timeline.after(self._rng.uniform(0, THINK_MS), self._next, index)

    def _next(self, client: int) -> None:
        if not self.is_running:
            return
        up = [node for node in self._world.nodes.values() if node.is_serving]
        if not up:
            self._world.timeline.after(THINK_MS, self._next, client)
            return
        draw = self._rng.random()
        if draw < 0.34:
            kind = Kind.PUT
        elif draw < 0.46:
            kind = Kind.PATCH
        elif draw < 0.60:
            kind = Kind.DELETE
        elif draw < 0.92:
            kind = Kind.STRONG_READ
        else:
            kind = Kind.EVENTUAL_READ
        self.run(kind, self._key(kind), self._rng.choice(up), client)

    def _key(self, kind: Kind) -> int:
        """Writes go to a few rows for a while and then to others, so that rows get old: tombstones of rows that are written
        all the time are never collected. Reads and deletes look back as well."""
        newest = int(self._world.timeline.now_ms / WINDOW_MS) * WINDOW_STEP
        if (kind.is_read or kind is Kind.DELETE) and self._rng.random() < 0.5:
            return self._rng.randrange(newest + self._keys)
        return newest + self._rng.randrange(self._keys)

    @property
    def keys(self) -> range:
        """All rows ever used."""
        return range(max((operation.key for operation in self.history), default=-1) + 1)

    def run(self, kind: Kind, key: int, node: Node, client: int | None = None) -> Operation:
        """One operation; when ``client`` is given, its next one follows."""
        now_ms = self._world.timeline.now_ms
        number = len(self.history)
        operation = Operation(number, kind, key, number, node.name, now_ms)
        self.history.append(operation)
        shard, row = key % self._world.settings.shards, b"k%d" % key
        coordinator = node.coordinator

        def wrote(written: Written) -> None:
            operation.restamped = written.restamped
            match written.decision:
                case WriteDecision.SUCCESS:
                    self._finish(operation, Outcome.OK, client)
                case WriteDecision.FAILED:
                    self._finish(operation, Outcome.FAILED, client)
                case _:
                    self._finish(operation, Outcome.UNSURE, client)

        def found(result: CoordinatorRead) -> None:
            if result.ok and operation.end_ms == FOREVER:
                operation.seen = shown(result.body)
            self._finish(operation, Outcome.OK if result.ok else Outcome.FAILED, client)

        def make(stamp: Stamp) -> bytes:
            match kind:
                case Kind.PUT:
                    return put_document(stamp, {"v": number})
                case Kind.PATCH:
                    return patch_document(stamp, {"p": number})
                case _:
                    return delete_document(stamp)

        self._world.timeline.after(CLIENT_TIMEOUT_MS, self._gave_up, operation, client)
        if kind.is_read:
            level = ReadLevel.STRONG if kind is Kind.STRONG_READ else ReadLevel.EVENTUAL
            coordinator.read(shard, row, level, found)
        else:
            coordinator.write(shard, row, make, WriteLevel.QUORUM, wrote)
        return operation

    def _gave_up(self, operation: Operation, client: int | None) -> None:
        outcome = Outcome.FAILED if operation.kind.is_read else Outcome.UNSURE
        self._finish(operation, outcome, client)

    def _finish(self, operation: Operation, outcome: Outcome, client: int | None) -> None:
        if operation.end_ms != FOREVER:
            return
        operation.end_ms = self._world.timeline.now_ms
        operation.outcome = outcome
        trap = self._world.ack_trap
        if trap is not None and outcome is Outcome.OK and not operation.kind.is_read:
            self._world.ack_trap = None
            trap()
        what = "" if not operation.kind.is_read else f" saw {operation.seen}"
        self._world.trace(
            "client",
            f"{operation.number} {operation.kind.value} k{operation.key} at {operation.node}: {outcome.value}{what}",
        )
        if client is not None:
            self._world.timeline.after(self._rng.uniform(0.5, 1.5) * THINK_MS, self._next, client)


def shown(body: bytes | None) -> dict[str, int] | None:
    """What a client sees of a row: None when it is absent or deleted."""
    if body is None:
        return None
    document = decode_document(body)
    if not document.alive:
        return None
    return {name: value for name, value in document.fields.items() if value is not None}
