from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dakera_cluster.model.ids import NodeId, ShardId
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

B, C = NodeId("b"), NodeId("c")
CONFIG = HintsConfig(
    max_age_ms=1_000, target_max_bytes=100, total_max_bytes=150, batch_rows=2, retry_ms=10, retry_max_ms=40
)


def test_a_hint_is_stored_first_and_delivered_when_its_target_is_up() -> None:
    log = HintLog(CONFIG)
    (stored,) = log.add(B, ShardId(1), 10, 0)
    assert isinstance(stored, Store)
    assert log.peer_up(B, 5) == [Deliver(B, (1,))]
    assert log.delivered(B, (1,), 6) == [Discard((1,))]
    assert (log.waiting(B), log.total_bytes) == (0, 0)


def test_delivery_goes_in_batches_one_at_a_time_and_in_order() -> None:
    log = HintLog(CONFIG)
    for _ in range(3):
        log.add(B, ShardId(1), 10, 0)
    assert log.peer_up(B, 0) == [Deliver(B, (1, 2))]
    assert [type(effect) for effect in log.add(B, ShardId(1), 10, 1)] == [Store]
    assert log.delivered(B, (1, 2), 2) == [Discard((1, 2)), Deliver(B, (3, 4))]


def test_a_failed_delivery_is_tried_again_ever_more_rarely() -> None:
    log = HintLog(CONFIG)
    log.add(B, ShardId(1), 10, 0)
    log.peer_up(B, 0)
    waits = []
    now = 0.0
    for _ in range(4):
        log.delivery_failed(B, now)
        due = log.next_deadline_ms()
        assert due is not None
        waits.append(due - now)
        now = due
        assert log.tick(now) == [Deliver(B, (1,))]
    assert waits == [10, 20, 40, 40]


def test_what_outgrows_the_bounds_leaves_a_mark_instead() -> None:
    log = HintLog(CONFIG)
    log.add(B, ShardId(1), 90, 0)
    assert log.add(B, ShardId(2), 11, 0) == [NeedRepair(B, ShardId(2))]
    assert log.add(B, ShardId(2), 1, 0) == [], "already marked"
    log.add(C, ShardId(1), 60, 0)
    assert log.add(C, ShardId(1), 1, 0) == [NeedRepair(C, ShardId(1))], "the bound over all targets holds as well"


def test_an_expired_hint_is_marked_before_it_is_dropped_and_never_delivered() -> None:
    log = HintLog(CONFIG)
    log.add(B, ShardId(1), 10, 0)
    log.add(B, ShardId(2), 10, 900)
    assert log.next_deadline_ms() == 1_000
    assert log.tick(999) == []
    assert log.tick(1_000) == [NeedRepair(B, ShardId(1)), Discard((1,))]
    log.add(C, ShardId(3), 10, 0)
    assert log.peer_up(C, 2_000) == [NeedRepair(C, ShardId(3)), Discard((3,))]


def test_a_target_that_calls_a_hint_too_old_is_repaired_in_full_one_that_left_is_not() -> None:
    log = HintLog(CONFIG)
    log.add(B, ShardId(1), 10, 0)
    log.add(C, ShardId(1), 10, 0)
    log.peer_up(B, 0)
    log.peer_up(C, 0)
    assert log.rejected(B, (1,), Verdict.TOO_OLD, 1) == [NeedRepair(B, ShardId(1)), Discard((1,))]
    assert log.rejected(C, (2,), Verdict.NOT_HELD, 1) == [Discard((2,))]
    assert log.repaired(B, ShardId(1)) == [Repaired(B, ShardId(1))]
    assert log.repaired(B, ShardId(1)) == []


def test_a_removed_member_is_owed_nothing() -> None:
    log = HintLog(CONFIG)
    log.add(B, ShardId(1), 90, 0)
    log.add(B, ShardId(2), 90, 0)
    assert log.forget(B) == [Discard((1,)), Repaired(B, ShardId(2))]
    assert (log.total_bytes, log.marks) == (0, frozenset())


class HintWalk(RuleBasedStateMachine):
    """Every missed write is stored, delivered or covered by a mark, whatever happens, crashes included."""

    @initialize()
    def start(self) -> None:
        self.log = HintLog(CONFIG)
        self.now = 0.0
        self.disk: dict[int, Hint] = {}
        self.marks: set[tuple[NodeId, ShardId]] = set()
        self.owed: dict[tuple[NodeId, ShardId], int] = {}
        self.flying: dict[NodeId, tuple[int, ...]] = {}
        self.up: set[NodeId] = set()

    def run_effects(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Store(hint):
                    self.disk[hint.seq] = hint
                case Discard(seqs):
                    for seq in seqs:
                        del self.disk[seq]
                case NeedRepair(target, shard):
                    self.marks.add((target, shard))
                case Repaired(target, shard):
                    self.marks.remove((target, shard))
                case Deliver(target, seqs):
                    assert target in self.up
                    assert target not in self.flying, "one batch at a time"
                    assert all(seq in self.disk for seq in seqs), "only durable hints are delivered"
                    assert all(self.now - self.disk[seq].created_ms < CONFIG.max_age_ms for seq in seqs)
                    self.flying[target] = seqs

    @rule(peer=st.sampled_from([B, C]), shard=st.integers(0, 2), size=st.integers(1, 40))
    def miss(self, peer: NodeId, shard: int, size: int) -> None:
        key = (peer, ShardId(shard))
        self.owed[key] = self.owed.get(key, 0) + 1
        self.run_effects(self.log.add(peer, ShardId(shard), size, self.now))

    @rule(peer=st.sampled_from([B, C]))
    def rise(self, peer: NodeId) -> None:
        self.up.add(peer)
        self.run_effects(self.log.peer_up(peer, self.now))

    @rule(peer=st.sampled_from([B, C]))
    def fall(self, peer: NodeId) -> None:
        self.up.discard(peer)
        self.log.peer_down(peer)

    @rule(peer=st.sampled_from([B, C]), outcome=st.sampled_from(["done", "lost", *Verdict]))
    def answer(self, peer: NodeId, outcome: str | Verdict) -> None:
        seqs = self.flying.pop(peer, None)
        if seqs is None:
            return
        for seq in seqs if outcome != "lost" and outcome is not Verdict.TOO_OLD else ():
            hint = self.disk[seq]
            self.owed[hint.target, hint.shard] -= 1
        if outcome == "done":
            self.run_effects(self.log.delivered(peer, seqs, self.now))
        elif outcome == "lost":
            self.run_effects(self.log.delivery_failed(peer, self.now))
        else:
            assert isinstance(outcome, Verdict)
            self.run_effects(self.log.rejected(peer, seqs, outcome, self.now))

    @rule(peer=st.sampled_from([B, C]), shard=st.integers(0, 2))
    def repair(self, peer: NodeId, shard: int) -> None:
        key = (peer, ShardId(shard))
        if key in self.marks:
            kept = sum((hint.target, hint.shard) == key for hint in self.disk.values())
            self.owed[key] = kept
            self.run_effects(self.log.repaired(*key))

    @rule(ms=st.integers(1, 700))
    def wait(self, ms: int) -> None:
        self.now += ms
        self.run_effects(self.log.tick(self.now))

    @rule()
    def crash(self) -> None:
        self.log = HintLog(CONFIG)
        self.log.recover(self.disk.values(), self.marks)
        self.flying.clear()
        self.up.clear()

    @invariant()
    def nothing_is_forgotten(self) -> None:
        for key, count in getattr(self, "owed", {}).items():
            kept = sum((hint.target, hint.shard) == key for hint in self.disk.values())
            assert kept >= count or key in self.marks
        if hasattr(self, "disk"):
            assert self.log.total_bytes == sum(hint.size_bytes for hint in self.disk.values())
            assert self.log.total_bytes <= CONFIG.total_max_bytes
            assert self.log.marks == self.marks


TestHintWalk = HintWalk.TestCase
TestHintWalk.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
