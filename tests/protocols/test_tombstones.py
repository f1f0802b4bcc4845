from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.ids import NodeId
from dakera_cluster.model.rows import Kind, delete_document, merge, patch_document, put_document
from dakera_cluster.model.shardmap import ShardState
from dakera_cluster.protocols.tombstones import (
    AskHold,
    CollectAt,
    Collector,
    GcState,
    TombstoneConfig,
    is_ripe,
    must_wipe,
    repair_is_fresh,
    write_is_fresh,
)

A, B, C, D = (NodeId(name) for name in "abcd")
CONFIG = TombstoneConfig(
    grace_ms=1_000, repair_lifetime_ms=100, max_skew_ms=50, quarantine_ms=200, confirm_timeout_ms=300, batch_rows=2
)
SHARD = ShardState(3, (A, B), joining=(C,), leaving=(B,))


def at(ms: int) -> Stamp:
    return Stamp(ms << 16, 1)


def begun(rows: dict[bytes, int] | None = None) -> Collector:
    collector = Collector(CONFIG, confirmed_round=6)
    asks = collector.begin(SHARD, rows if rows is not None else {b"x": 1, b"y": 2}, 0)
    assert [ask.node for ask in asks if isinstance(ask, AskHold)] == [A, B, C], "joining and leaving ones are asked too"
    return collector


def confirm_all(collector: Collector, held: tuple[bytes, ...] = (b"x", b"y"), now: float = 10) -> None:
    for node in (A, B, C):
        assert collector.confirmed(node, 7, held, now) == []


def test_rows_are_collected_everywhere_after_all_confirmed_and_the_quarantine_passed() -> None:
    collector = begun()
    confirm_all(collector)
    assert collector.state is GcState.QUARANTINE
    assert collector.tick(209) == []
    assert collector.tick(210) == [CollectAt(node, 3, 7, {b"x": 1, b"y": 2}) for node in (A, B, C)]
    assert collector.state is GcState.IDLE
    assert collector.tick(10_000) == []


def test_only_what_everybody_holds_with_the_same_bytes_is_collected() -> None:
    collector = begun()
    collector.confirmed(A, 7, [b"x", b"y"], 0)
    collector.confirmed(B, 7, [b"y"], 0)
    collector.confirmed(C, 7, [b"x", b"y"], 0)
    assert {tuple(effect.rows) for effect in collector.tick(500) if isinstance(effect, CollectAt)} == {(b"y",)}


def test_one_missing_answer_or_one_refusal_collects_nothing() -> None:
    collector = begun()
    collector.confirmed(A, 7, [b"x"], 0)
    collector.confirmed(B, 7, [b"x"], 0)
    assert collector.tick(300) == []
    assert collector.state is GcState.IDLE
    collector = begun()
    collector.failed(B, 7)
    assert collector.state is GcState.IDLE
    collector = begun()
    confirm_all(collector, held=())
    assert collector.state is GcState.IDLE


def test_a_changed_map_ends_the_round_even_in_quarantine() -> None:
    collector = begun()
    confirm_all(collector)
    collector.map_changed(SHARD)
    assert collector.state is GcState.QUARANTINE
    collector.map_changed(ShardState(4, (A, C)))
    assert collector.tick(1_000) == []


def test_answers_of_strangers_earlier_rounds_and_repeats_do_not_count() -> None:
    collector = begun()
    for _ in range(3):
        collector.confirmed(A, 7, [b"x"], 0)
        collector.confirmed(D, 7, [b"x"], 0)
        collector.confirmed(B, 6, [b"x"], 0)
    collector.failed(D, 7)
    collector.failed(B, 6)
    assert collector.state is GcState.CONFIRMING


def test_a_round_is_bounded_and_one_at_a_time() -> None:
    collector = begun({b"z": 1, b"x": 2, b"y": 3})
    assert collector.begin(SHARD, {b"q": 1}, 0) == []
    confirm_all(collector, held=(b"x", b"y", b"z"))
    (first, *_) = collector.tick(1_000)
    assert isinstance(first, CollectAt)
    assert set(first.rows) == {b"x", b"y"}


def test_only_dead_rows_past_the_grace_are_ripe() -> None:
    dead = merge(Kind.DOCUMENT, put_document(at(1), {"a": 1}), delete_document(at(500)))
    assert not is_ripe(Kind.DOCUMENT, dead, 1_499, CONFIG)
    assert is_ripe(Kind.DOCUMENT, dead, 1_500, CONFIG)
    late_patch = merge(Kind.DOCUMENT, dead, patch_document(at(900), {"a": 2}))
    assert not is_ripe(Kind.DOCUMENT, late_patch, 1_500, CONFIG)
    assert not is_ripe(Kind.DOCUMENT, merge(Kind.DOCUMENT, dead, put_document(at(600), {})), 9_999, CONFIG)


def test_old_writes_and_old_repairs_are_refused_by_the_receivers_own_clock() -> None:
    body = put_document(at(1_000), {"a": 1})
    assert write_is_fresh(Kind.DOCUMENT, body, 1_499, CONFIG)
    assert not write_is_fresh(Kind.DOCUMENT, body, 1_500, CONFIG)
    assert repair_is_fresh(1_000, 1_149, CONFIG)
    assert not repair_is_fresh(1_000, 1_150, CONFIG)


def test_an_old_disk_image_is_wiped_a_replica_that_was_merely_away_is_not() -> None:
    assert must_wipe(my_confirmed_round=6, peer_collected_round=7)
    assert not must_wipe(my_confirmed_round=7, peer_collected_round=7)


def test_a_replica_that_confirmed_a_later_round_makes_the_next_one_higher() -> None:
    collector = begun()
    collector.failed(B, 7, known_round=11)
    (first, *_) = collector.begin(SHARD, {b"x": 1}, 0)
    assert first.round == 12


@pytest.mark.parametrize(
    "broken",
    [{"quarantine_ms": 199.0}, {"grace_ms": 599.0}],
)
def test_times_that_would_not_be_safe_together_are_refused(broken: dict[str, float]) -> None:
    good = {"grace_ms": 600.0, "repair_lifetime_ms": 100.0, "max_skew_ms": 50.0, "quarantine_ms": 200.0}
    TombstoneConfig(**good)
    with pytest.raises(ValueError, match="_ms must"):
        TombstoneConfig(**{**good, **broken})


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["confirm", "fail", "map", "tick"]),
            st.sampled_from([A, B, C, D]),
            st.sets(st.sampled_from([b"x", b"y"])),
            st.integers(0, 250),
        ),
        max_size=20,
    )
)
def test_nothing_is_ever_collected_that_a_replica_did_not_confirm(
    steps: list[tuple[str, NodeId, set[bytes], int]],
) -> None:
    collector, now = begun(), 0.0
    confirmed: dict[NodeId, set[bytes]] = {}
    last_confirm = 0.0
    ended = False
    for action, node, held, wait in steps:
        now += wait
        effects = collector.tick(now)
        if action == "confirm" and collector.state is GcState.CONFIRMING and node not in confirmed:
            confirmed[node] = held
            last_confirm = now
        if action == "confirm":
            effects += collector.confirmed(node, 7, held, now)
        elif action == "fail":
            ended |= collector.state is GcState.CONFIRMING and node in (A, B, C) and node not in confirmed
            effects += collector.failed(node, 7)
        elif action == "map":
            ended = True
            effects += collector.map_changed(ShardState(9, (A,)))
        for effect in effects:
            assert isinstance(effect, CollectAt)
            assert all(set(effect.rows) <= confirmed[replica] for replica in (A, B, C))
            assert now - last_confirm >= CONFIG.quarantine_ms
            assert not ended
