"""One simulated node as coordinator of clients' operations: quorum writes and reads, re-stamping, hints.

Duties carried out here: every attempt under the newest map known and with the same stamp until it was outrun, rounds bounded
by the operation's deadline, hints only for operations that succeeded and never as votes. Called by ``clients``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from chaos.sim.messages import ApplyRows, Path, ReadRow, Reply, Rows, Status
from chaos.sim.replica import KIND
from dakera_cluster.model.hlc import FarFutureError, Stamp
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.protocols.hints import Deliver, Discard, Effect, HintLog, NeedRepair, Repaired, Store, Verdict
from dakera_cluster.protocols.quorum import (
    ReadDecision,
    ReadLevel,
    ReadOperation,
    WriteDecision,
    WriteLevel,
    WriteOperation,
)

if TYPE_CHECKING:
    from chaos.sim.node import Node

OPERATION_MS = 3_000.0
REPLICA_MS = 1_900.0
READ_REPLICA_MS = 450.0
RETRY_MS = 100.0
ROUNDS_MAX = 12
HINT_TICK_MS = 500.0


class Written(NamedTuple):
    """Outcome of a write, as the client is told."""

    decision: WriteDecision
    stamp: Stamp | None
    restamped: bool


class CoordinatorRead(NamedTuple):
    ok: bool
    body: bytes | None


class Coordinator:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._disk = node.disk
        self.hints = HintLog(node.world.settings.hints)
        stored = self._disk.table("hints")
        marks = self._disk.table("marks")
        self.hints.recover([hint for hint, _ in stored.values()], list(marks))
        self._up: set[NodeId] = set()
        node.after(HINT_TICK_MS, self._tick)

    # -- writes

    def write(
        self, shard: int, key: bytes, make: Callable[[Stamp], bytes], level: WriteLevel, done: Callable[[Written], None]
    ) -> None:
        """Write the row that ``make`` makes of a stamp."""
        _Write(self._node, shard, key, make, level, done).attempt()

    def read(self, shard: int, key: bytes, level: ReadLevel, done: Callable[[CoordinatorRead], None]) -> None:
        _Read(self._node, shard, key, level, done).attempt()

    # -- hints

    def hint(self, target: NodeId, shard: int, rows: Rows) -> None:
        size = sum(len(key) + len(body) for key, body in rows)
        self._run(self.hints.add(target, ShardId(shard), size, self._node.wall_ms), rows)

    def peers_changed(self) -> None:
        live = {NodeId(name) for name in self._node.live() if self._node.is_live(NodeId(name))}
        for node in sorted(live - self._up):
            self._run(self.hints.peer_up(node, self._node.wall_ms))
        for node in sorted(self._up - live):
            self.hints.peer_down(node)
        self._up = live

    def repaired(self, target: NodeId, shard: int) -> None:
        self._run(self.hints.repaired(target, ShardId(shard)))

    def _tick(self) -> None:
        self._run(self.hints.tick(self._node.wall_ms))
        self._node.after(HINT_TICK_MS, self._tick)

    def _run(self, effects: list[Effect], rows: Rows = ()) -> None:
        for effect in effects:
            match effect:
                case Store(hint):
                    self._disk.commit([("hints", hint.seq, (hint, rows))])
                case Discard(seqs):
                    self._disk.commit([("hints", seq, None) for seq in seqs])
                case NeedRepair(target, shard):
                    self._disk.commit([("marks", (target, shard), True)])
                    self._node.trace(f"marks {target} shard {shard} for a full repair")
                case Repaired(target, shard):
                    self._disk.commit([("marks", (target, shard), None)])
                case Deliver(target, seqs):
                    self._deliver(target, seqs)

    def _deliver(self, target: NodeId, seqs: tuple[int, ...]) -> None:
        """One call per hint; the batch is answered when all are."""
        kept = [(seq, *self._disk.get("hints", seq)) for seq in seqs]
        verdicts: dict[int, Reply | None] = {}

        def told(seq: int, reply: Reply | None) -> None:
            verdicts[seq] = reply
            if len(verdicts) < len(kept):
                return
            now_ms = self._node.wall_ms
            good = [s for s, r in verdicts.items() if r is not None and r.status in (Status.OK, Status.STORED)]
            gone = [s for s, r in verdicts.items() if r is not None and r.status is Status.NOT_HELD]
            old = [s for s, r in verdicts.items() if r is not None and r.status is Status.TOO_OLD]
            if old:
                self._run(self.hints.rejected(target, old, Verdict.TOO_OLD, now_ms))
            elif len(good) + len(gone) == len(kept):
                self._run(self.hints.delivered(target, [*good, *gone], now_ms))
            else:
                for newer in [r.map for r in verdicts.values() if r is not None and r.map is not None]:
                    self._node.adopt(newer)
                self._run(self.hints.delivery_failed(target, now_ms))

        for seq, hint, rows in kept:
            state = self._node.shard(hint.shard)
            if state is None or not state.state_of(target).takes_writes:
                told(seq, Reply(Status.NOT_HELD))
                continue
            body = ApplyRows(hint.shard, state.version, rows, Path.WRITE)
            self._node.call(target, body, lambda reply, seq=seq: told(seq, reply), timeout_ms=REPLICA_MS)


class _Write:
    """One client's write over all its rounds."""

    def __init__(
        self,
        node: Node,
        shard: int,
        key: bytes,
        make: Callable[[Stamp], bytes],
        level: WriteLevel,
        done: Callable[[Written], None],
    ) -> None:
        self._node = node
        self._shard = shard
        self._key = key
        self._make = make
        self._level = level
        self._done = done
        self._rounds = 0
        self._ambiguous = False
        self._stamp: Stamp | None = None
        self._restamped = False
        self._give_up_ms = node.now_ms + OPERATION_MS

    def attempt(self) -> None:
        node, state = self._node, self._node.shard(self._shard)
        if state is None or self._rounds >= ROUNDS_MAX or node.now_ms >= self._give_up_ms:
            self._finish(WriteDecision.AMBIGUOUS if self._ambiguous else WriteDecision.FAILED, None)
            return
        self._rounds += 1
        if self._stamp is None:
            self._stamp = node.hlc.tick(node.wall_ms)
        stamp = self._stamp
        rows: Rows = ((self._key, self._make(stamp)),)
        operation = WriteOperation(state, self._level)
        answers = _Answers(len(state.write_set))
        body = ApplyRows(self._shard, state.version, rows, Path.WRITE)

        def told(target: NodeId, reply: Reply | None) -> None:
            before = operation.decision
            match reply:
                case None:
                    operation.unknown(target)
                case Reply(Status.OK, outrun):
                    operation.ack(target, outrun)
                case Reply(Status.STORED):
                    operation.stored(target)
                case Reply(Status.OUTDATED):
                    if reply.map is not None:
                        node.adopt(reply.map)
                    operation.outdated(target)
                case _:
                    operation.refused(target)
            if before is WriteDecision.PENDING and operation.decision is not WriteDecision.PENDING:
                self._decided(operation, stamp)
            if answers.is_last() and operation.decision is WriteDecision.SUCCESS:
                for missing in operation.hints_due():
                    node.coordinator.hint(missing, self._shard, rows)

        for target in state.write_set:
            node.call(target, body, lambda reply, target=target: told(target, reply), timeout_ms=REPLICA_MS)

    def _decided(self, operation: WriteOperation, stamp: Stamp) -> None:
        node = self._node
        match operation.decision:
            case WriteDecision.SUCCESS:
                self._finish(WriteDecision.SUCCESS, stamp)
            case WriteDecision.RESTAMP:
                self._ambiguous = True
                self._restamped = True
                self._stamp = None
                assert operation.outrun_by is not None
                try:
                    node.hlc.observe(operation.outrun_by.time, node.wall_ms)
                except FarFutureError:
                    self._finish(WriteDecision.AMBIGUOUS, None)
                    return
                self.attempt()
            case WriteDecision.REFRESH:
                self._ambiguous = True
                node.after(RETRY_MS, self.attempt)
            case WriteDecision.AMBIGUOUS:
                self._ambiguous = True
                node.after(RETRY_MS, self.attempt)
            case WriteDecision.FAILED:
                node.after(RETRY_MS, self.attempt)

    def _finish(self, decision: WriteDecision, stamp: Stamp | None) -> None:
        self._done(Written(decision, stamp, self._restamped))


class _Answers:
    """Counts down to the last answer."""

    def __init__(self, expected: int) -> None:
        self._left = expected

    def is_last(self) -> bool:
        self._left -= 1
        return self._left == 0


class _Read:
    """One client's read over all its rounds."""

    def __init__(
        self, node: Node, shard: int, key: bytes, level: ReadLevel, done: Callable[[CoordinatorRead], None]
    ) -> None:
        self._node = node
        self._shard = shard
        self._key = key
        self._level = level
        self._done = done
        self._rounds = 0
        self._give_up_ms = node.now_ms + OPERATION_MS

    def attempt(self) -> None:
        node, state = self._node, self._node.shard(self._shard)
        if state is None or self._rounds >= ROUNDS_MAX or node.now_ms >= self._give_up_ms:
            self._done(CoordinatorRead(False, None))
            return
        self._rounds += 1
        operation = ReadOperation(state, KIND, self._level)
        strong = self._level is ReadLevel.STRONG
        request = ReadRow(self._shard, state.version, self._key, strong)
        started_wall_ms = node.wall_ms
        sent: set[tuple[NodeId, bytes]] = set()
        finished = False

        def told(target: NodeId, reply: Reply | None) -> None:
            match reply:
                case Reply(Status.OK, found):
                    operation.answer(target, found)
                case Reply(Status.OUTDATED):
                    if reply.map is not None:
                        node.adopt(reply.map)
                    operation.outdated(target)
                case _:
                    operation.failed(target)
            judge()

        def written_back(target: NodeId, body: bytes, reply: Reply | None) -> None:
            match reply:
                case Reply(Status.OK):
                    operation.repaired(target, body)
                case Reply(Status.OUTDATED):
                    operation.outdated(target)
                case _:
                    operation.repair_failed(target)
            judge()

        def judge() -> None:
            nonlocal finished
            if finished:
                return
            match operation.decision:
                case ReadDecision.SUCCESS:
                    finished = True
                    self._done(CoordinatorRead(True, operation.merged))
                case ReadDecision.REFRESH | ReadDecision.FAILED:
                    finished = True
                    node.after(RETRY_MS, self.attempt)
                case ReadDecision.WRITE_BACK:
                    assert operation.merged is not None
                    for target in operation.lagging():
                        write_back(target, operation.merged)
                case ReadDecision.PENDING:
                    pass

        def write_back(target: NodeId, body: bytes) -> None:
            if (target, body) in sent:
                return
            sent.add((target, body))
            rows = ((self._key, body),)
            repair = ApplyRows(self._shard, state.version, rows, Path.REPAIR, started_wall_ms)
            node.call(target, repair, lambda reply: written_back(target, body, reply), timeout_ms=REPLICA_MS)

        if strong:
            for target in state.write_set:
                node.call(target, request, lambda reply, target=target: told(target, reply), timeout_ms=REPLICA_MS)
            return
        order = sorted(state.read_set, key=lambda target: (target != node.id, not node.is_live(target)))

        def ask(index: int) -> None:
            if index < len(order) and not finished:
                target = order[index]

                def answered(reply: Reply | None) -> None:
                    told(target, reply)
                    ask(index + 1)

                node.call(target, request, answered, timeout_ms=READ_REPLICA_MS)

        ask(0)
