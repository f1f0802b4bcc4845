"""The rows of one simulated node: apply, read, repair sessions' other side, tombstone rounds.

Duties carried out here: an ack only after the fsync; rows too old for their path refused; no vote while the rows are being
fetched; what a strong read or a repair shows is durable first. Called by ``node`` after the shard version was checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from chaos.sim.disks import Write
from chaos.sim.messages import (
    ApplyRows,
    AskBucketsOf,
    AskRootOf,
    AskRowsOf,
    CollectTombstones,
    ExchangeRows,
    FetchRows,
    HoldTombstones,
    Path,
    ReadRow,
    Reply,
    Rows,
    Status,
)
from dakera_cluster.model.hlc import FarFutureError, Stamp
from dakera_cluster.model.rows import Kind, merge, outrun_by, version_of
from dakera_cluster.protocols import digest, tombstones, transfer
from dakera_cluster.protocols.transfer import Holding, Stage

if TYPE_CHECKING:
    from chaos.sim.node import Node

KIND = Kind.DOCUMENT
SNAPSHOT_ROWS = 4
Answer = Callable[[Reply], None]


class Replica:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._disk = node.disk
        self._config = node.world.settings.tombstones
        self._digests: dict[int, dict[int, int]] = {}

    # -- what is here

    def rows(self, shard: int) -> dict[Any, Any]:
        return self._disk.table(("rows", shard))

    def holding(self, shard: int) -> Holding | None:
        found: Holding | None = self._disk.get("hold", shard)
        return found

    def rounds(self, shard: int) -> tuple[int, int]:
        """(confirmed, collected) tombstone rounds."""
        return self._disk.get("rounds", shard) or (0, 0)

    def is_complete(self, shard: int) -> bool:
        state = self._node.shard(shard)
        return state is not None and transfer.serves(self.holding(shard), state, self._node.id)

    def digests(self, shard: int) -> dict[int, int]:
        found = self._digests.get(shard)
        if found is None:
            found = {}
            for key, body in self.rows(shard).items():
                bucket = digest.bucket_of(key)
                found[bucket] = digest.update(found.get(bucket, 0), key, None, body)
            self._digests[shard] = found
        return found

    def terms(self, shard: int, buckets: tuple[int, ...]) -> dict[bytes, int]:
        return {
            key: digest.term(key, body)
            for key, body in sorted(self.rows(shard).items())
            if digest.bucket_of(key) in buckets
        }

    # -- changing it

    def apply(self, shard: int, rows: Rows, done: Callable[[], None], extra: tuple[Write, ...] = ()) -> Stamp | None:
        """Merge; ``done`` when durable. Returns the youngest stamp a row lost to."""
        writes: list[Write] = list(extra)
        outrun: list[Stamp] = []
        changed: dict[bytes, bytes] = {}
        for key, body in rows:
            before = changed.get(key, self.rows(shard).get(key))
            rival = outrun_by(KIND, before, body)
            if rival is not None:
                outrun.append(rival)
            after = merge(KIND, before, body)
            if after != before:
                changed[key] = after
                writes.append((("rows", shard), key, after))
                self._count(shard, key, before, after)
        # Also when nothing changed: what is here already may not be durable yet.
        self._disk.commit(writes, self._node.guard(done))
        return max(outrun, default=None)

    def drop(self, shard: int, rows: dict[bytes, int], extra: tuple[Write, ...], done: Callable[[], None]) -> int:
        """Forget rows whose term is unchanged."""
        writes: list[Write] = list(extra)
        for key, term in rows.items():
            body = self.rows(shard).get(key)
            if body is not None and digest.term(key, body) == term:
                writes.append((("rows", shard), key, None))
                self._count(shard, key, body, None)
        self._disk.commit(writes, self._node.guard(done))
        return len(writes) - len(extra)

    def wipe(self, shard: int, extra: tuple[Write, ...], done: Callable[[], None]) -> None:
        self._digests.pop(shard, None)
        self._disk.commit([(("rows", shard), None, None), *extra], self._node.guard(done))

    def _count(self, shard: int, key: bytes, before: bytes | None, after: bytes | None) -> None:
        found = self.digests(shard)
        bucket = digest.bucket_of(key)
        found[bucket] = digest.update(found.get(bucket, 0), key, before, after)

    # -- serving

    def serve(self, source: str, body: Any, reply: Answer) -> None:
        match body:
            case ApplyRows():
                self._apply_rows(body, reply)
            case ReadRow():
                self._read(body, reply)
            case AskRootOf() | AskBucketsOf() | AskRowsOf() | FetchRows():
                if not self.is_complete(body.shard):
                    reply(Reply(Status.REFUSED))
                else:
                    self._disk.barrier(self._node.guard(lambda: self._show(body, reply)))
            case ExchangeRows():
                self._exchange(body, reply)
            case HoldTombstones():
                self._hold(body, reply)
            case CollectTombstones():
                self._collect(body, reply)

    def _apply_rows(self, body: ApplyRows, reply: Answer) -> None:
        holding = self.holding(body.shard)
        if holding is not None and holding.stage is Stage.WIPING:
            reply(Reply(Status.REFUSED))
            return
        wall_ms = self._node.wall_ms
        if body.path is Path.REPAIR:
            fresh = tombstones.repair_is_fresh(body.started_wall_ms, wall_ms, self._config)
        else:
            fresh = all(tombstones.write_is_fresh(KIND, row, wall_ms, self._config) for _, row in body.rows)
        if not fresh:
            reply(Reply(Status.TOO_OLD))
            return
        try:
            for _, row in body.rows:
                self._node.hlc.observe(version_of(KIND, row).time, wall_ms)
        except FarFutureError:
            reply(Reply(Status.REFUSED))
            return
        outrun: list[Stamp | None] = []

        def durable() -> None:
            state = self._node.shard(body.shard)
            assert state is not None
            votes = transfer.votes(self.holding(body.shard), state, self._node.id)
            reply(Reply(Status.OK if votes else Status.STORED, outrun[0]))

        outrun.append(self.apply(body.shard, body.rows, durable))

    def _read(self, body: ReadRow, reply: Answer) -> None:
        state = self._node.shard(body.shard)
        assert state is not None
        holding = self.holding(body.shard)
        if body.needs_vote:
            allowed = transfer.votes(holding, state, self._node.id)
        else:
            allowed = transfer.serves(holding, state, self._node.id)
        if not allowed:
            reply(Reply(Status.REFUSED))
            return
        found = self.rows(body.shard).get(body.key)
        if body.needs_vote:
            self._disk.barrier(self._node.guard(lambda: reply(Reply(Status.OK, found))))
        else:
            reply(Reply(Status.OK, found))

    def _show(self, body: Any, reply: Answer) -> None:
        shard = body.shard
        state = self._node.shard(shard)
        assert state is not None
        match body:
            case AskRootOf(_, _, collected, _):
                confirmed, my_collected = self.rounds(shard)
                if tombstones.must_wipe(confirmed, collected):
                    self._node.janitor.rehydrate(shard)
                    reply(Reply(Status.REFUSED))
                    return
                reply(Reply(Status.OK, (digest.root(self.digests(shard)), my_collected), state.version))
            case AskBucketsOf():
                reply(Reply(Status.OK, dict(self.digests(shard)), state.version))
            case AskRowsOf(_, _, buckets):
                reply(Reply(Status.OK, self.terms(shard, buckets), state.version))
            case FetchRows(_, _, cursor):
                keys = sorted(key for key in self.rows(shard) if key > cursor)[:SNAPSHOT_ROWS]
                rows = tuple((key, self.rows(shard)[key]) for key in keys)
                reply(Reply(Status.OK, rows, state.version))

    def _exchange(self, body: ExchangeRows, reply: Answer) -> None:
        fresh = tombstones.repair_is_fresh(body.started_wall_ms, self._node.wall_ms, self._config)
        if not fresh or not self.is_complete(body.shard):
            reply(Reply(Status.REFUSED))
            return

        def durable() -> None:
            rows = self.rows(body.shard)
            reply(Reply(Status.OK, tuple((key, rows[key]) for key in body.want if key in rows)))

        self.apply(body.shard, body.rows, durable)

    def _hold(self, body: HoldTombstones, reply: Answer) -> None:
        confirmed, collected = self.rounds(body.shard)
        if body.round <= confirmed or not self.is_complete(body.shard):
            reply(Reply(Status.REFUSED, confirmed))
            return
        mark: Write = ("rounds", body.shard, (body.round, collected))

        def durable() -> None:
            rows = self.rows(body.shard)
            reply(Reply(Status.OK, tuple(key for key, tombstone in body.rows if rows.get(key) == tombstone)))

        self.apply(body.shard, body.rows, durable, (mark,))

    def _collect(self, body: CollectTombstones, reply: Answer) -> None:
        if not self.is_complete(body.shard):
            reply(Reply(Status.REFUSED))
            return
        confirmed, collected = self.rounds(body.shard)
        mark: Write = ("rounds", body.shard, (max(confirmed, body.round), max(collected, body.round)))
        dropped = self.drop(body.shard, dict(body.terms), (mark,), lambda: reply(Reply(Status.OK)))
        if dropped:
            self._node.trace(f"shard {body.shard} collects {dropped} tombstones in round {body.round}")
            self._node.world.checkers.collected(dropped)
