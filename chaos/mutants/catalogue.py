"""The mutants: each is one small, plausible bug in a protocol core or in a duty of its caller, planted by swapping one name.

Invariant: outside its ``with`` block a mutant leaves no trace. Every one must be caught by the simulator within
``SEEDS_MAX`` seeds (`hunt`). Run by ``python -m chaos mutants`` and by tests/chaos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from chaos.sim import bucket, janitor, leader, node, replica
from dakera_cluster.model import rows, shardmap
from dakera_cluster.model.hlc import HybridClock
from dakera_cluster.protocols import digest, lease, quorum, rebalance, tombstones, transfer
from dakera_cluster.protocols.fence import Admit, Fence
from dakera_cluster.protocols.hints import HintLog
from dakera_cluster.protocols.lease_events import PutDone, PutUnknown
from dakera_cluster.protocols.quorum import ReadDecision, ReadOperation, WriteOperation
from dakera_cluster.protocols.tombstones import Collector, GcState
from dakera_cluster.protocols.transfer import Duty, Mode, Stage, Transfer

SEEDS_MAX = 200
Swap = tuple[Any, str, Any]


class Mutant(NamedTuple):
    name: str
    story: str
    swaps: Callable[[], list[Swap]]

    @contextmanager
    def planted(self) -> Iterator[None]:
        with ExitStack() as undo:
            for owner, attribute, value in self.swaps():
                undo.callback(_restore, owner, attribute)
                _SAVED.append((owner, attribute, getattr(owner, attribute)))
                setattr(owner, attribute, value)
            yield


_SAVED: list[tuple[Any, str, Any]] = []


def _restore(owner: Any, attribute: str) -> None:
    saved_owner, saved_attribute, value = _SAVED.pop()
    assert (saved_owner, saved_attribute) == (owner, attribute)
    setattr(owner, attribute, value)


def _everywhere(name: str, value: Any, *owners: Any) -> list[Swap]:
    return [(owner, name, value) for owner in owners if hasattr(owner, name)]


# -- lease and fence


def _no_fence() -> list[Swap]:
    return [(Fence, "offer", lambda self, epoch, ticket: [Admit(ticket)])]


def _impatient_challenger() -> list[Swap]:
    original = lease.Lease._observe

    def observe(self: Any, record: Any, etag: Any, now_ms: float, out: Any) -> None:
        original(self, record, etag, now_ms, out)
        self._patience_ms = 0.0

    return [(lease.Lease, "_observe", observe)]


def _lost_reply_is_success() -> list[Swap]:
    original = lease.Lease.handle

    def handle(self: Any, event: Any, now_ms: float) -> Any:
        return original(self, PutDone(event.attempt, "?") if isinstance(event, PutUnknown) else event, now_ms)

    return [(lease.Lease, "handle", handle)]


def _lease_never_expires() -> list[Swap]:
    original = lease.Lease._adopt

    def adopt(self: Any, record: Any, now_ms: float, out: Any) -> None:
        original(self, record, now_ms, out)
        self._valid_until_ms = float("inf")

    return [(lease.Lease, "_adopt", adopt)]


def _epoch_not_raised() -> list[Swap]:
    original = lease.Lease._claim

    def claim(self: Any, now_ms: float, out: Any) -> None:
        self._floor = max(0, self._floor - 1)
        original(self, now_ms, out)

    return [(lease.Lease, "_claim", claim)]


def _refusal_ignored() -> list[Swap]:
    def refused(self: Any, _event: Any, now_ms: float, out: Any) -> None:
        self._win(PutDone(self._attempt, "?"), now_ms, out)

    table = {key: refused if value is lease.Lease._refused else value for key, value in lease.TABLE.items()}
    return [(lease, "TABLE", table)]


def _no_probe() -> list[Swap]:
    return [(leader.Leader, "_probe", lambda self, step: setattr(self, "_probed", True))]


def _map_written_blindly() -> list[Swap]:
    original = bucket.Bucket._decide

    def decide(self: Any, name: str, if_match: Any) -> Any:
        return bucket.Outcome.DONE if name == leader.MAP else original(self, name, if_match)

    return [(bucket.Bucket, "_decide", decide)]


# -- quorums


def _hints_count() -> list[Swap]:
    return [(WriteOperation, "unknown", WriteOperation.ack)]


def _ack_before_fsync() -> list[Swap]:
    original = replica.Replica.apply

    def apply(self: Any, shard: int, batch: Any, done: Any, extra: Any = ()) -> Any:
        outrun = original(self, shard, batch, lambda: None, extra)
        self._node.after(0.0, done)
        return outrun

    return [(replica.Replica, "apply", apply)]


def _majority_is_half() -> list[Swap]:
    return _everywhere("majority", lambda count: max(1, count // 2), shardmap)


def _joint_write_asks_old_set_only() -> list[Swap]:
    return [(shardmap.ShardState, "quorum_sets", property(lambda self: (self.old_set,)))]


def _joint_write_asks_new_set_only() -> list[Swap]:
    return [(shardmap.ShardState, "quorum_sets", property(lambda self: (self.new_set,)))]


def _strong_read_of_one() -> list[Swap]:
    original = ReadOperation._suffices_alone
    return [(ReadOperation, "_suffices_alone", lambda self, body, age: body is not None or original(self, body, age))]


def _no_write_back() -> list[Swap]:
    original = ReadOperation._judge

    def judge(self: Any) -> Any:
        if original(self) is ReadDecision.WRITE_BACK:
            self._decision = ReadDecision.SUCCESS
        return self._decision

    return [(ReadOperation, "_judge", judge)]


def _no_restamp() -> list[Swap]:
    return [(replica, "outrun_by", lambda kind, stored, incoming: None)]


def _clock_does_not_listen() -> list[Swap]:
    return [(HybridClock, "observe", lambda self, time, now_ms: None)]


# -- rows


def _patch_resurrects() -> list[Swap]:
    original = rows._merge_documents

    def merged(left: rows.Document, right: rows.Document) -> rows.Document:
        found = original(left, right)
        newest = max(found.stamps.values(), default=found.birth)
        return rows.Document(max(found.birth, newest), found.deleted, found.fields, {}) if found.deleted else found

    return [(rows, "_merge_documents", merged)]


def _last_arrival_wins() -> list[Swap]:
    original = rows.merge
    return _everywhere("merge", lambda kind, stored, incoming: original(kind, None, incoming), replica, quorum)


# -- maps and moves


def _old_versions_served() -> list[Swap]:
    original = shardmap.admit

    def lax(mine: Any, who: Any, version: int) -> Any:
        return original(mine, who, mine.version)

    return [(node, "admit", lax)]


def _ready_without_repair() -> list[Swap]:
    return _everywhere("repairs_needed", lambda mode, state, who: 0, transfer)


def _ready_without_stream_or_repair() -> list[Swap]:
    original = Transfer._enter

    def enter(self: Any, stage: Stage, now_ms: float, out: Any) -> None:
        original(self, Stage.READY, now_ms, out)

    return [(Transfer, "_enter", enter)]


def _any_reporter_will_do() -> list[Swap]:
    return [(rebalance, "reporters", lambda state: transfer.reporters(state)[:0])]


def _no_wipe_before_join() -> list[Swap]:
    original = replica.Replica.wipe

    def wipe(self: Any, shard: int, extra: Any, done: Any) -> None:
        self._disk.commit(list(extra), self._node.guard(done))

    assert original is not wipe
    return [(replica.Replica, "wipe", wipe)]


def _lost_disk_is_newborn() -> list[Swap]:
    original = transfer.duty

    def duty(holding: Any, state: Any, who: Any, *, same_disk: bool) -> Duty:
        found = original(holding, state, who, same_disk=same_disk)
        return Duty.BIRTH if found is Duty.REHYDRATE and holding is None else found

    return [(transfer, "duty", duty)]


def _empty_replica_votes() -> list[Swap]:
    def lax(holding: Any, state: Any, who: Any) -> bool:
        return bool(state.state_of(who).takes_writes)

    return [(transfer, "votes", lax)]


def _rehydrated_from_one() -> list[Swap]:
    original = transfer.repairs_needed

    def needed(mode: Mode, state: Any, who: Any) -> int:
        return min(1, original(mode, state, who)) if mode is Mode.REHYDRATE else original(mode, state, who)

    return [(transfer, "repairs_needed", needed)]


def _map_obeyed_before_it_is_durable() -> list[Swap]:
    original = node.Node.adopt

    def adopt(self: Any, newer: Any, then: Any = None) -> None:
        original(self, newer, then)
        if self.map is None or newer.version > self.map.version:
            self.map = newer
            self.janitor.map_changed()

    return [(node.Node, "adopt", adopt)]


# -- repair and tombstones


def _digest_skips_a_bucket() -> list[Swap]:
    original = digest.differing
    return _everywhere("differing", lambda mine, theirs: original(mine, theirs)[1:], digest)


def _digest_forgets_what_was_there() -> list[Swap]:
    original = digest.update
    return [
        (
            digest,
            "update",
            lambda value, key, before, after: original(value, key, None, after if before is None else None),
        )
    ]


def _repair_ships_one_way() -> list[Swap]:
    original = janitor.Session._exchanged

    def exchanged(self: Any, reply: Any) -> None:
        original(self, reply._replace(value=()))

    return [(janitor.Session, "_exchanged", exchanged)]


def _tombstones_collected_alone() -> list[Swap]:
    def begin(self: Any, shard: Any, ripe: Any, now_ms: float) -> Any:
        if self._state is not GcState.IDLE or not ripe:
            return []
        self._round += 1
        return [tombstones.CollectAt(shard.write_set[0], shard.version, self._round, dict(ripe))]

    return [(Collector, "begin", begin), (tombstones, "must_wipe", lambda mine, theirs: False)]


def _tombstones_confirmed_by_a_majority() -> list[Swap]:
    original = Collector.begin

    def begin(self: Any, shard: Any, ripe: Any, now_ms: float) -> Any:
        effects = original(self, shard, ripe, now_ms)
        self._waiting = set(shard.write_set[: shardmap.majority(len(shard.write_set))])
        return effects

    return [(Collector, "begin", begin), (tombstones, "must_wipe", lambda mine, theirs: False)]


def _old_hints_are_taken() -> list[Swap]:
    return [
        (HintLog, "_expire", lambda self, target, queue, now_ms: []),
        (tombstones, "write_is_fresh", lambda kind, body, now_ms, config: True),
    ]


MUTANTS: tuple[Mutant, ...] = (
    Mutant("no fence", "a node obeys a leader of an older epoch", _no_fence),
    Mutant("impatient challenger", "a lease is taken over without having been seen unchanged", _impatient_challenger),
    Mutant("lost reply is success", "a lease write of unknown outcome counts as done", _lost_reply_is_success),
    Mutant("lease never expires", "the holder acts until it hears of another", _lease_never_expires),
    Mutant("epoch not raised", "a takeover keeps the old epoch", _epoch_not_raised),
    Mutant("refusal ignored", "412 on the lease counts as done", _refusal_ignored),
    Mutant("no probe", "a bucket that ignores conditions is trusted", _no_probe),
    Mutant("map written blindly", "the map is put without a condition", _map_written_blindly),
    Mutant("hints count", "a replica that did not answer counts as acked, it has a hint", _hints_count),
    Mutant("ack before fsync", "a replica acks what is not on its disk yet", _ack_before_fsync),
    Mutant("majority is half", "half of the replicas counts as a majority", _majority_is_half),
    Mutant("old set only", "a moving shard asks the majority of the old holders only", _joint_write_asks_old_set_only),
    Mutant("new set only", "a moving shard asks the majority of the new holders only", _joint_write_asks_new_set_only),
    Mutant("strong read of one", "a strong read believes the first replica", _strong_read_of_one),
    Mutant("no write-back", "a strong read answers what a minority holds", _no_write_back),
    Mutant("no re-stamp", "a write stamped by a slow clock is acked and loses", _no_restamp),
    Mutant("deaf clock", "the hybrid clock ignores stamps it hears", _clock_does_not_listen),
    Mutant("patch resurrects", "a patch brings a deleted row back", _patch_resurrects),
    Mutant("last arrival wins", "a replica keeps what came last, whatever its stamp", _last_arrival_wins),
    Mutant("old versions served", "a replica serves requests under an older shard version", _old_versions_served),
    Mutant("ready without repair", "a joining replica reports after the snapshot alone", _ready_without_repair),
    Mutant("ready at once", "a joining replica reports before it has anything", _ready_without_stream_or_repair),
    Mutant("finished unasked", "the leader finishes a move nobody reported ready", _any_reporter_will_do),
    Mutant("no wipe", "rows of an earlier life as a holder stay", _no_wipe_before_join),
    Mutant("lost disk is newborn", "an empty disk under an old name counts as complete", _lost_disk_is_newborn),
    Mutant("empty replica votes", "a replica that lost its rows acks and answers", _empty_replica_votes),
    Mutant("rehydrated from one", "a replica that lost its rows fetches them from one other", _rehydrated_from_one),
    Mutant("map not durable", "a map is obeyed before it is on the disk", _map_obeyed_before_it_is_durable),
    Mutant("digest skips a bucket", "repair overlooks the first differing bucket", _digest_skips_a_bucket),
    Mutant("digest forgets", "a digest does not subtract the old body", _digest_forgets_what_was_there),
    Mutant("one-way repair", "a repair session ships and does not fetch", _repair_ships_one_way),
    Mutant(
        "tombstones collected alone", "a replica drops its tombstones when they are old", _tombstones_collected_alone
    ),
    Mutant(
        "tombstones by majority", "a majority's confirmation is enough to collect", _tombstones_confirmed_by_a_majority
    ),
    Mutant("old hints are taken", "hints never expire and their age is not checked", _old_hints_are_taken),
)
