from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dakera_cluster.protocols import digest

keys = st.binary(min_size=1, max_size=3)
steps = st.lists(st.tuples(keys, st.none() | st.binary(max_size=3)), max_size=40)


def replay(changes: list[tuple[bytes, bytes | None]]) -> tuple[dict[bytes, bytes], dict[int, int]]:
    rows: dict[bytes, bytes] = {}
    buckets: dict[int, int] = {}
    for key, body in changes:
        bucket = digest.bucket_of(key)
        buckets[bucket] = digest.update(buckets.get(bucket, 0), key, rows.get(key), body)
        if body is None:
            rows.pop(key, None)
        else:
            rows[key] = body
    return rows, buckets


@given(steps)
def test_a_digest_kept_up_to_date_is_the_digest_of_the_rows_that_are_there(
    changes: list[tuple[bytes, bytes | None]],
) -> None:
    rows, buckets = replay(changes)
    _, afresh = replay(list(rows.items()))
    assert digest.differing(buckets, afresh) == ()
    assert digest.root(buckets) == digest.root(afresh)


@given(steps, steps)
def test_replicas_agree_on_a_bucket_exactly_when_they_hold_the_same_rows_in_it(
    left: list[tuple[bytes, bytes | None]], right: list[tuple[bytes, bytes | None]]
) -> None:
    mine, my_buckets = replay(left)
    theirs, their_buckets = replay(right)
    unequal = {digest.bucket_of(key) for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)}
    assert digest.differing(my_buckets, their_buckets) == tuple(sorted(unequal))
    assert (digest.root(my_buckets) == digest.root(their_buckets)) == (mine == theirs)


def test_key_and_body_both_count_and_their_border_is_kept() -> None:
    assert digest.term(b"a", b"bc") != digest.term(b"ab", b"c")
    assert digest.term(b"a", b"x") != digest.term(b"b", b"x")
    assert 0 <= digest.bucket_of(b"anything") < digest.BUCKETS
