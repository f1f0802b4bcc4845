from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.protocols import digest
from dakera_cluster.protocols.reconcile import (
    AskBuckets,
    AskRoot,
    AskRows,
    Exchange,
    Finished,
    Reconcile,
    ReconcileConfig,
    Stage,
)


class Replica:
    """Rows whose merge is the maximum: commutative, associative, idempotent."""

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self.rows = dict(rows)

    def buckets(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for key, body in self.rows.items():
            bucket = digest.bucket_of(key)
            found[bucket] = digest.update(found.get(bucket, 0), key, None, body)
        return found

    def terms(self, buckets: tuple[int, ...]) -> dict[bytes, int]:
        return {key: digest.term(key, body) for key, body in self.rows.items() if digest.bucket_of(key) in buckets}

    def merge(self, rows: dict[bytes, bytes]) -> None:
        for key, body in rows.items():
            self.rows[key] = max(body, self.rows.get(key, b""))


def run(mine: Replica, theirs: Replica, config: ReconcileConfig, writes: list[tuple[bytes, bytes]]) -> list[object]:
    """A whole session; at every step a write may reach both replicas."""
    session = Reconcile(config)
    effects: list[object] = []
    effect = session.start(digest.root(mine.buckets()))
    while not isinstance(effect, Finished):
        effects.append(effect)
        if writes:
            for replica in (mine, theirs):
                replica.merge(dict([writes[0]]))
            del writes[0]
        match effect:
            case AskRoot(root):
                effect = session.root_is(root, digest.root(theirs.buckets()))
            case AskBuckets():
                effect = session.buckets_are(mine.buckets(), theirs.buckets())
            case AskRows(buckets):
                assert len(buckets) <= config.buckets_per_step
                effect = session.rows_are(mine.terms(buckets), theirs.terms(buckets))
            case Exchange(ship, want):
                assert len({*ship, *want}) <= config.keys_per_exchange
                theirs.merge({key: mine.rows[key] for key in ship})
                mine.merge({key: theirs.rows[key] for key in want})
                effect = session.exchanged()
    assert session.stage is Stage.DONE
    effects.append(effect)
    return effects


rows = st.dictionaries(st.binary(min_size=1, max_size=2), st.binary(min_size=1, max_size=2), max_size=30)


@settings(max_examples=200, deadline=None)
@given(rows, rows, st.integers(1, 4), st.integers(1, 4))
def test_afterwards_both_have_every_row_either_had_and_the_same_bytes(
    left: dict[bytes, bytes], right: dict[bytes, bytes], buckets: int, keys: int
) -> None:
    mine, theirs = Replica(left), Replica(right)
    run(mine, theirs, ReconcileConfig(buckets_per_step=buckets, keys_per_exchange=keys), [])
    expected = Replica(left)
    expected.merge(right)
    assert mine.rows == theirs.rows == expected.rows


@settings(max_examples=200, deadline=None)
@given(
    rows, rows, st.lists(st.tuples(st.binary(min_size=1, max_size=2), st.binary(min_size=1, max_size=2)), max_size=9)
)
def test_writes_during_the_session_do_not_make_it_miss_what_was_there_before(
    left: dict[bytes, bytes], right: dict[bytes, bytes], writes: list[tuple[bytes, bytes]]
) -> None:
    mine, theirs = Replica(left), Replica(right)
    run(mine, theirs, ReconcileConfig(buckets_per_step=2, keys_per_exchange=2), writes)
    for replica in (mine, theirs):
        for key, body in [*left.items(), *right.items()]:
            assert replica.rows[key] >= body


def test_equal_replicas_compare_one_number_and_are_done() -> None:
    effects = run(Replica({b"a": b"1"}), Replica({b"a": b"1"}), ReconcileConfig(), [])
    assert [type(effect) for effect in effects] == [AskRoot, Finished]


def test_only_differing_rows_travel() -> None:
    same = {bytes([i, j]): b"x" for i in range(20) for j in range(20)}
    mine, theirs = Replica({**same, b"only mine": b"1"}), Replica({**same, b"both": b"2"})
    mine.rows[b"both"] = b"1"
    effects = run(mine, theirs, ReconcileConfig(), [])
    (exchange,) = [effect for effect in effects if isinstance(effect, Exchange)]
    assert set(exchange.ship) == {b"only mine", b"both"}
    assert exchange.want == (b"both",)
    assert effects[-1] == Finished(shipped=2, wanted=1)


def test_an_answer_out_of_turn_is_a_bug_and_says_so() -> None:
    session = Reconcile()
    with pytest.raises(ValueError, match="idle, not root"):
        session.root_is(1, 1)
    session.start(1)
    session.failed()
    assert session.stage is Stage.FAILED
