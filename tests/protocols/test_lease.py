"""The lease against a bucket that misbehaves in every way it may: three nodes, drifting clocks, lost and late writes."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.model.errors import CorruptionError
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols import lease_events as ev
from dakera_cluster.protocols.lease import LOST_OBJECT_SKIP, TABLE, Lease
from dakera_cluster.protocols.lease_events import LeaseConfig, LeaseRecord, LeaseState, LossReason

TRANSCRIPTS = Path(__file__).parent.parent / "transcripts"
CONFIG = LeaseConfig()
RESULTS = [ev.ReadDone, ev.ReadFailed, ev.PutDone, ev.PutConflict, ev.PutRefused, ev.PutMissing, ev.PutUnknown]
READS, PUTS = set(RESULTS[:2]), set(RESULTS[2:])


class Bucket:
    def __init__(self) -> None:
        self.record: LeaseRecord | None = None
        self.writes = 0

    @property
    def etag(self) -> str | None:
        return None if self.record is None else f"e{self.writes}"

    def put(self, record: LeaseRecord, if_match: str | None) -> str:
        if if_match is not None and self.record is None:
            return "missing"
        if if_match != self.etag:
            return "refused"
        self.record = record
        self.writes += 1
        return "done"


def make(name: str = "a", *, seed: int = 1, eligible: bool = True, floor: int = 0) -> Lease:
    lease = Lease("c", NodeId(name), BootId(1), config=CONFIG, rng=Random(seed), floor_epoch=floor)
    lease.handle(ev.EligibilityChanged(eligible), 0)
    return lease


def one(effects: list[ev.Effect], kind: type) -> object:
    (found,) = [effect for effect in effects if isinstance(effect, kind)]
    return found


def kinds(effects: list[ev.Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def elect(lease: Lease, bucket: Bucket, now: float = 0) -> None:
    """Drive a lease to leadership over a bucket without faults."""
    read = one(lease.handle(ev.Tick(), now), ev.ReadLease)
    put = one(lease.handle(ev.ReadDone(read.attempt, bucket.record, bucket.etag), now), ev.PutLease)
    assert bucket.put(put.record, put.if_match) == "done"
    lease.handle(ev.PutDone(put.attempt, bucket.etag), now)
    assert lease.can_act(now)


def start_renewal(lease: Lease, now: float) -> ev.PutLease:
    return one(lease.handle(ev.Tick(), now), ev.PutLease)


@pytest.mark.parametrize("state", LeaseState)
def test_every_state_knows_exactly_the_events_it_waits_for(state: LeaseState) -> None:
    outside = {ev.EligibilityChanged, ev.EpochSeen, ev.Resign}
    expected = {
        LeaseState.FOLLOWING: outside | {ev.Tick} | READS,
        LeaseState.CLAIMING: outside | {ev.Tick} | PUTS,
        LeaseState.SETTLING: outside | {ev.Tick} | READS,
        LeaseState.LEADING: outside | {ev.Tick},
        LeaseState.RENEWING: outside | {ev.Tick} | PUTS,
        LeaseState.DOUBTING: outside | {ev.Tick} | READS,
        LeaseState.RELEASING: outside | PUTS,
        LeaseState.STOPPED: set(),
    }
    assert {event for held, event in TABLE if held is state} == expected[state]


def test_a_newborn_cluster_has_a_leader_at_once_and_validity_counts_from_before_the_write() -> None:
    lease = make()
    read = one(lease.handle(ev.Tick(), 0), ev.ReadLease)
    put = one(lease.handle(ev.ReadDone(read.attempt, None, None), 100), ev.PutLease)
    assert (put.record.epoch, put.if_match) == (1, None)
    assert not lease.can_act(100)
    out = lease.handle(ev.PutDone(put.attempt, "e1"), 900)
    assert out[-1] == ev.BecameLeader(1, 100 + CONFIG.ttl_ms - CONFIG.stasis_ms)
    assert lease.can_act(100 + CONFIG.ttl_ms - CONFIG.stasis_ms - 1)
    assert not lease.can_act(100 + CONFIG.ttl_ms - CONFIG.stasis_ms)


def test_a_missing_object_is_not_taken_at_once_when_an_epoch_was_ever_seen_and_epochs_are_passed_over() -> None:
    lease = make(floor=4)
    put = None
    now = 0.0
    while put is None:
        now = lease.next_deadline_ms() or now
        for effect in lease.handle(ev.Tick(), now):
            assert isinstance(effect, ev.ReadLease)
            out = lease.handle(ev.ReadDone(effect.attempt, None, None), now)
            put = next((effect for effect in out if isinstance(effect, ev.PutLease)), None)
    assert now >= CONFIG.ttl_ms * CONFIG.takeover_factor
    assert put.record.epoch == 4 + LOST_OBJECT_SKIP


@pytest.mark.parametrize("news", ["a long silence", "an unheard epoch"])
def test_a_missing_object_is_waited_for_anew_when_it_may_have_been_there_meanwhile(news: str) -> None:
    lease = make(floor=4)
    for now in range(0, 6_000, 1_000):
        if news == "a long silence" and now in (2_000, 3_000):
            continue
        if news == "an unheard epoch" and now == 3_000:
            lease.handle(ev.EpochSeen(9), now)
        for effect in lease.handle(ev.Tick(), now):
            assert isinstance(effect, ev.ReadLease)
            assert lease.handle(ev.ReadDone(effect.attempt, None, None), now) == []


def test_a_challenger_waits_until_it_saw_the_object_unchanged_for_the_whole_patience() -> None:
    bucket, holder, rival = Bucket(), make("a"), make("b", seed=2)
    elect(holder, bucket)
    changed_at = 0.0
    now = 0.0
    while rival.state is LeaseState.FOLLOWING:
        deadline = rival.next_deadline_ms()
        assert deadline is not None
        now = max(now, deadline)
        if now == 3_000:
            put = start_renewal(holder, now)
            bucket.put(put.record, put.if_match)
            changed_at = now
        for effect in rival.handle(ev.Tick(), now):
            assert isinstance(effect, ev.ReadLease)
            out = rival.handle(ev.ReadDone(effect.attempt, bucket.record, bucket.etag), now)
    assert changed_at == 3_000
    assert now - changed_at >= CONFIG.ttl_ms * CONFIG.takeover_factor
    assert one(out, ev.PutLease).record.epoch == 2


def test_no_campaign_without_a_majority_in_sight() -> None:
    lease = make(eligible=False)
    read = one(lease.handle(ev.Tick(), 0), ev.ReadLease)
    assert lease.handle(ev.ReadDone(read.attempt, None, None), 0) == []
    lease.handle(ev.EligibilityChanged(True), 10)
    read = one(lease.handle(ev.Tick(), 10), ev.ReadLease)
    assert kinds(lease.handle(ev.ReadDone(read.attempt, None, None), 10)) == ["PutLease"]


def test_the_holder_stops_when_no_renewal_succeeds_in_time_and_goes_on_in_its_epoch_when_nobody_took_over() -> None:
    bucket, lease = Bucket(), make()
    elect(lease, bucket)
    put = start_renewal(lease, 1_500)
    read = one(lease.handle(ev.PutUnknown(put.attempt), 3_500), ev.ReadLease)
    assert lease.can_act(4_000)
    assert lease.handle(ev.ReadFailed(read.attempt), 4_300) == [ev.LostLeadership(1, LossReason.EXPIRED)]
    assert not lease.can_act(4_300)
    read = one(lease.handle(ev.Tick(), 9_000), ev.ReadLease)
    put = one(lease.handle(ev.ReadDone(read.attempt, bucket.record, bucket.etag), 9_000), ev.PutLease)
    assert bucket.put(put.record, put.if_match) == "done"
    assert lease.handle(ev.PutDone(put.attempt, bucket.etag), 9_001) == [ev.BecameLeader(1, 9_000 + 4_250)]


@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_reply_is_settled_by_reading_the_nonce(applied: bool) -> None:
    bucket, lease = Bucket(), make()
    elect(lease, bucket)
    put = start_renewal(lease, 1_500)
    if applied:
        bucket.put(put.record, put.if_match)
    read = one(lease.handle(ev.PutUnknown(put.attempt), 2_000), ev.ReadLease)
    out = lease.handle(ev.ReadDone(read.attempt, bucket.record, bucket.etag), 2_100)
    if applied:
        assert out == [ev.LeaseExtended(1, 1_500 + 4_250)]
    else:
        assert kinds(out) == ["PutLease"]
        assert lease.can_act(2_100)


def test_a_refusal_caused_by_our_own_late_write_is_not_a_loss() -> None:
    bucket, lease = Bucket(), make()
    elect(lease, bucket)
    late = start_renewal(lease, 1_500)
    read = one(lease.handle(ev.PutUnknown(late.attempt), 2_000), ev.ReadLease)
    again = one(lease.handle(ev.ReadDone(read.attempt, bucket.record, bucket.etag), 2_000), ev.PutLease)
    assert bucket.put(late.record, late.if_match) == "done"
    assert bucket.put(again.record, again.if_match) == "refused"
    read = one(lease.handle(ev.PutRefused(again.attempt), 2_100), ev.ReadLease)
    out = lease.handle(ev.ReadDone(read.attempt, bucket.record, bucket.etag), 2_100)
    assert out == [ev.LeaseExtended(1, 1_500 + 4_250)], "validity is that of the write that stands, not of the last one"


def test_a_refusal_without_a_doubtful_write_ends_leadership_before_any_read() -> None:
    bucket, lease = Bucket(), make()
    elect(lease, bucket)
    put = start_renewal(lease, 1_500)
    assert kinds(lease.handle(ev.PutRefused(put.attempt), 1_600)) == ["LostLeadership", "ReadLease"]
    assert not lease.can_act(1_600)


def test_a_deleted_object_ends_leadership() -> None:
    bucket, lease = Bucket(), make()
    elect(lease, bucket)
    put = start_renewal(lease, 1_500)
    out = lease.handle(ev.PutMissing(put.attempt), 1_600)
    assert out[0] == ev.LostLeadership(1, LossReason.GONE)


def test_a_conflict_is_tried_again_with_a_new_nonce() -> None:
    bucket, lease = Bucket(), make()
    elect(lease, bucket)
    put = start_renewal(lease, 1_500)
    assert lease.handle(ev.PutConflict(put.attempt), 1_550) == []
    again = one(lease.handle(ev.Tick(), 1_550 + CONFIG.conflict_ms), ev.PutLease)
    assert again.record.nonce != put.record.nonce
    assert again.if_match == put.if_match


def test_a_leader_below_an_epoch_seen_elsewhere_stops_and_claims_above_it() -> None:
    bucket, lease = Bucket(), make()
    elect(lease, bucket)
    assert lease.handle(ev.EpochSeen(1), 100) == [], "our own epoch on a resource is no news"
    out = lease.handle(ev.EpochSeen(7), 100)
    assert out[0] == ev.LostLeadership(1, LossReason.SUPERSEDED)
    assert one(out, ev.PutLease).record.epoch == 8


def test_an_equal_epoch_put_on_a_resource_by_somebody_else_is_too_low() -> None:
    bucket, lease = Bucket(), make()
    elect(lease, bucket)
    assert one(lease.handle(ev.EpochSeen(1, taken=True), 100), ev.PutLease).record.epoch == 2


def test_an_epoch_seen_while_a_renewal_is_under_way_takes_effect_when_it_ends() -> None:
    bucket, lease = Bucket(), make()
    elect(lease, bucket)
    put = start_renewal(lease, 1_500)
    assert kinds(lease.handle(ev.EpochSeen(7), 1_600)) == ["LostLeadership"]
    bucket.put(put.record, put.if_match)
    out = lease.handle(ev.PutDone(put.attempt, bucket.etag), 1_700)
    assert one(out, ev.PutLease).record.epoch == 8
    assert not lease.can_act(1_700)


def test_a_resigning_leader_stops_first_and_then_frees_the_object_for_others() -> None:
    bucket, lease, rival = Bucket(), make("a"), make("b")
    elect(lease, bucket)
    out = lease.handle(ev.Resign(), 1_000)
    assert kinds(out) == ["LostLeadership", "PutLease"]
    put = one(out, ev.PutLease)
    assert put.record.is_released
    bucket.put(put.record, put.if_match)
    assert lease.handle(ev.PutDone(put.attempt, bucket.etag), 1_100) == [ev.Stopped()]
    elect(rival, bucket, 1_200)
    assert rival.epoch == 2


def test_shutdown_ends_even_when_the_bucket_does_not_answer() -> None:
    bucket, lease = Bucket(), make()
    elect(lease, bucket)
    put = start_renewal(lease, 1_500)
    lease.handle(ev.Resign(), 1_600)
    out = lease.handle(ev.PutUnknown(put.attempt), 2_000)
    out = lease.handle(ev.ReadFailed(one(out, ev.ReadLease).attempt), 2_100)
    assert out == [ev.Stopped()]
    assert lease.next_deadline_ms() is None


def test_a_leader_that_sees_no_majority_for_long_gives_the_lease_back() -> None:
    bucket, lease = Bucket(), make()
    elect(lease, bucket)
    lease.handle(ev.EligibilityChanged(False), 0)
    now = 0.0
    for _ in range(10):
        now = lease.next_deadline_ms() or now
        for effect in lease.handle(ev.Tick(), now):
            if isinstance(effect, ev.PutLease):
                bucket.put(effect.record, effect.if_match)
                lease.handle(ev.PutDone(effect.attempt, bucket.etag), now)
        if bucket.record is not None and bucket.record.is_released:
            break
    assert bucket.record is not None
    assert bucket.record.is_released
    assert CONFIG.ineligible_ms <= now <= CONFIG.ineligible_ms + CONFIG.renew_ms


def test_a_bucket_of_another_cluster_is_reported_and_never_claimed() -> None:
    lease = make()
    foreign = LeaseRecord("other", 3, NodeId("z"), BootId(1), 0, "n", 5_000)
    for now in (0, 10_000, 20_000):
        read = one(lease.handle(ev.Tick(), now), ev.ReadLease)
        out = lease.handle(ev.ReadDone(read.attempt, foreign, "e"), now)
        assert out == ([ev.ForeignCluster("other")] if now == 0 else [])


def test_answers_to_abandoned_operations_change_nothing() -> None:
    bucket, lease = Bucket(), make()
    elect(lease, bucket)
    state = lease.state
    for kind in RESULTS:
        event = kind(0, None, None) if kind is ev.ReadDone else kind(0, "e") if kind is ev.PutDone else kind(0)
        assert lease.handle(event, 100) == []
    assert lease.state is state


def test_a_lease_survives_its_encoding_and_garbage_is_corruption() -> None:
    record = LeaseRecord("c", 3, NodeId("a"), BootId(2), 4, "n", 5_000)
    assert ev.decode_lease(ev.encode_lease(record)) == record
    with pytest.raises(CorruptionError):
        ev.decode_lease(b"{}")


class World:
    """Three nodes whose clocks run at different rates, one bucket, and a generator that decides every outcome."""

    def __init__(self, seed: int, faults: float) -> None:
        self.rng = Random(seed)
        self.faults = faults
        self.bucket = Bucket()
        self.now = 0.0
        self.rates = {name: 1 + self.rng.uniform(-0.03, 0.03) for name in "abc"}
        self.offsets = {name: self.rng.uniform(0, 1e6) for name in "abc"}
        self.leases = {
            name: Lease("c", NodeId(name), BootId(1), config=CONFIG, rng=Random(seed * 7 + i), floor_epoch=0)
            for i, name in enumerate("abc")
        }
        self.pending: list[tuple[float, int, str, str, object]] = []
        self.order = 0
        self.lines: list[str] = []
        self.leaders: dict[int, str] = {}
        self.elections = 0
        for name in "abc":
            self.feed(name, ev.EligibilityChanged(True))

    def local(self, name: str, at: float | None = None) -> float:
        return self.offsets[name] + (self.now if at is None else at) * self.rates[name]

    def later(self, delay: float, action: str, name: str, what: object) -> None:
        self.order += 1
        self.pending.append((self.now + delay, self.order, action, name, what))
        self.pending.sort()

    def feed(self, name: str, event: ev.Event) -> None:
        for effect in self.leases[name].handle(event, self.local(name)):
            self.lines.append(f"{self.now:9.1f} {name} {describe(effect)}")
            if isinstance(effect, ev.BecameLeader):
                assert self.leaders.setdefault(effect.epoch, name) == name, "two holders of one epoch"
                assert effect.epoch == max(self.leaders), "epoch went back"
                self.elections += 1
            elif isinstance(effect, ev.ReadLease):
                self.later(self.rng.uniform(1, 50), "read", name, effect)
            elif isinstance(effect, ev.PutLease):
                self.later(self.rng.uniform(1, 50), "put", name, effect)

    def perform(self, action: str, name: str, what: object) -> None:
        fault = self.rng.random() < self.faults
        if action == "read":
            assert isinstance(what, ev.ReadLease)
            answer: ev.Event = ev.ReadDone(what.attempt, self.bucket.record, self.bucket.etag)
            self.later(self.rng.uniform(1, 50), "tell", name, ev.ReadFailed(what.attempt) if fault else answer)
        elif action == "put":
            assert isinstance(what, ev.PutLease)
            kind = self.rng.choice(["conflict", "lost reply", "lost request", "late"]) if fault else "none"
            if kind == "conflict":
                self.later(5, "tell", name, ev.PutConflict(what.attempt))
                return
            if kind == "late":
                self.later(self.rng.uniform(0, 8_000), "apply", name, what)
            elif kind != "lost request":
                outcome = self.bucket.put(what.record, what.if_match)
                if kind == "none":
                    told: ev.Event = {
                        "done": lambda: ev.PutDone(what.attempt, self.bucket.etag),
                        "refused": lambda: ev.PutRefused(what.attempt),
                        "missing": lambda: ev.PutMissing(what.attempt),
                    }[outcome]()
                    self.later(self.rng.uniform(1, 50), "tell", name, told)
                    return
            self.later(self.rng.uniform(100, 2_000), "tell", name, ev.PutUnknown(what.attempt))
        elif action == "apply":
            assert isinstance(what, ev.PutLease)
            self.bucket.put(what.record, what.if_match)
        else:
            self.feed(name, what)  # type: ignore[arg-type]

    def run(self, until: float) -> None:
        while self.now < until:
            deadlines = []
            for name, lease in self.leases.items():
                due = lease.next_deadline_ms()
                if due is not None:
                    deadlines.append(((due - self.offsets[name]) / self.rates[name] + 1e-3, name))
            soonest, name = min(deadlines, default=(float("inf"), ""))
            if self.pending and self.pending[0][0] <= soonest:
                at, _, action, who, what = self.pending.pop(0)
                self.now = max(self.now, at)
                self.perform(action, who, what)
            else:
                self.now = max(self.now, soonest)
                self.feed(name, ev.Tick())
            acting = [node for node, lease in self.leases.items() if lease.can_act(self.local(node))]
            assert len(acting) <= 1, f"two leaders act at {self.now}: {acting}"


def describe(effect: ev.Effect) -> str:
    match effect:
        case ev.PutLease(_, record, if_match):
            return f"PUT epoch={record.epoch} seq={record.renew_seq} holder={record.holder or '-'} if-match={if_match}"
        case ev.ReadLease():
            return "GET"
        case ev.BecameLeader(epoch, _) | ev.LeaseExtended(epoch, _):
            return f"{type(effect).__name__} epoch={epoch}"
        case ev.LostLeadership(epoch, reason):
            return f"LostLeadership epoch={epoch} {reason.value}"
        case ev.HolderObserved(record):
            return f"HolderObserved {record.holder or '-'} epoch={record.epoch}"
        case _:
            return type(effect).__name__


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([0.0, 0.1, 0.3, 0.6]))
def test_at_most_one_node_acts_and_no_epoch_has_two_holders_whatever_the_bucket_does(seed: int, faults: float) -> None:
    world = World(seed, faults)
    world.run(60_000)
    world.faults = 0.0
    world.run(world.now + 20_000)
    assert any(lease.can_act(world.local(name)) for name, lease in world.leases.items()), "no leader after the faults"


def test_a_calm_world_keeps_its_leader() -> None:
    world = World(3, 0.0)
    world.run(120_000)
    assert world.elections == 1


def test_takeover_follows_the_golden_story() -> None:
    world = World(5, 0.0)
    world.run(3_000)
    (leader,) = [name for name, lease in world.leases.items() if lease.can_act(world.local(name))]
    del world.leases[leader]
    world.pending = [entry for entry in world.pending if entry[3] != leader]
    world.lines.append(f"{world.now:9.1f} {leader} is killed")
    world.run(12_000)
    story = "\n".join(line for line in world.lines if not line.endswith("GET")) + "\n"
    assert story == (TRANSCRIPTS / "lease_takeover.txt").read_text()
