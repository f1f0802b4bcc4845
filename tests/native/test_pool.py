"""A pool as a whole: its matches, how it is cut, and the order of what is left."""

from typing import Any

import numpy as np
import pytest

from dakera_cluster.native import late, order, pool

WIDTH = 72
KEYS = np.random.default_rng(1).integers(0, 2**63, 50).astype(np.uint64)


def asked(tokens: int, width: int = WIDTH) -> late.Query:
    rng = np.random.default_rng(tokens)
    vectors = rng.normal(size=(tokens, width)).astype(np.float32)
    return late.Query(vectors, rng.random(tokens), np.linspace(1, -1, width + 1).astype(np.float32))


def stored(counts: list[int]) -> late.Stored:
    lengths = np.array(counts, np.int32)
    signs = np.random.default_rng(2).integers(0, 256, (int(lengths.sum()), WIDTH // 8), dtype=np.uint8)
    return late.Stored(signs, (np.cumsum(lengths) - lengths).astype(np.int64), lengths)


@pytest.mark.parametrize("tokens", [1, 8, 9, 30])
@pytest.mark.parametrize("most_exact", [0, 17, 18, 1_000])
def test_memories_are_matched_as_their_runs_are(tokens: int, most_exact: int) -> None:
    query, held = asked(tokens), stored([4, 0, 7, 1, 6])
    slots = np.array([2, 1, 0, 9, -1, 4])
    result = late.whole(query, held, slots, most_exact, 17)
    assert result is not None
    best, first, seen = result
    assert seen.tolist() == [True, False, True, False, False, True]
    expected, expected_first = np.zeros((tokens, 6), np.float32), np.zeros(6)
    runs = np.array([4, 0, 12]), np.array([7, 4, 6]), np.array([0, 2, 5])
    way = late.exact if most_exact >= 17 else late.estimated
    way(query, held, runs, expected, expected_first)
    assert best.tobytes() == expected.tobytes()
    assert first.tobytes() == expected_first.tobytes()


def test_nothing_is_matched_beyond_the_budget_or_without_tokens() -> None:
    query, held = asked(3), stored([4, 0, 7])
    assert late.whole(query, held, np.array([0, 2]), 100, 10) is None
    for slots in (np.array([1, 5]), np.zeros(0, np.int64)):
        result = late.whole(query, held, slots, 100, 10)
        assert result is not None
        assert not any(part.any() for part in result)
    with pytest.raises(ValueError, match="another width"):
        late.whole(asked(3, WIDTH + 8), held, np.array([0]), 100, 100)


def test_tokens_that_reach_beyond_the_rows_are_refused() -> None:
    held = stored([4, 3])
    for start, count in ((5, 3), (-1, 2), (0, 8)):
        broken = late.Stored(held.arrays[0], np.array([start]), np.array([count], np.int32))
        with pytest.raises(ValueError, match="runs reach beyond"):
            late.whole(asked(2), broken, np.array([0]), 100, 100)


def test_a_question_whose_parts_do_not_fit_is_refused() -> None:
    parts: dict[str, Any] = {
        "vectors": np.ones((3, 16), np.float32),
        "weights": np.ones(3),
        "cosines": np.ones(17, np.float32),
    }
    late.Query(**parts)
    for name in parts:
        with pytest.raises(ValueError, match="fit"):
            late.Query(**parts | {name: parts[name][:-1].copy()})
    with pytest.raises(ValueError, match="whole bytes"):
        late.Query(**parts | {"vectors": np.ones((3, 15), np.float32)})
    many = np.ones((late.MAX_TOKENS + 1, 8), np.float32)
    with pytest.raises(ValueError, match="do not fit"):
        late.Query(many, np.ones(len(many)), np.ones(9, np.float32))


def scaled(values: np.ndarray) -> np.ndarray:
    row = values[None].copy()
    order.scale_rows(row, np.ones(1, bool))
    return row[0]


@pytest.mark.parametrize(("size", "kept"), [(30, 12), (30, 30), (1, 1), (0, 0), (20, 99)])
@pytest.mark.parametrize("tokens", [0, 5])
def test_a_pool_is_cut_by_what_it_was_found_with_and_what_matches(size: int, kept: int, tokens: int) -> None:
    rng = np.random.default_rng(size)
    slots = rng.permutation(50)[:40].astype(np.int64)
    columns = rng.integers(0, 4, (pool.FOUND_COLUMNS, 40)).astype(np.float64)
    best, first = rng.integers(0, 3, (tokens, size)).astype(np.float32), rng.random(size)
    query = asked(tokens)
    query.weights[:] = 1
    cut = pool.cut(query, slots, columns, best, first, 0.5, KEYS, kept)
    matched = late.weighted(best, query.weights)
    expected = scaled(columns[0, :size]) + 0.5 * scaled(matched)
    assert cut.level.tobytes() == expected.tobytes()
    assert cut.order.tolist() == np.lexsort((KEYS[slots[:size]], -expected)).tolist()
    head = cut.order[:kept]
    assert len(cut) == min(size, kept)
    assert cut.slots.tolist() == slots[head].tolist()
    assert cut.columns.tolist() == np.vstack([columns[:, :size], matched, first])[:, head].tolist()
    assert cut.late.tolist() == matched[head].tolist()
    assert cut.best.tolist() == best[:, head].tolist()


@pytest.mark.parametrize("most_exact", [0, 1_000])
def test_a_pool_that_is_matched_at_once_is_cut_as_one_matched_before(most_exact: int) -> None:
    query, held = asked(6), stored([4, 2, 7, 1, 6, 3])
    slots, columns = np.array([3, 0, 5, 2, 4, 1]), np.random.default_rng(4).random((pool.FOUND_COLUMNS, 6))
    result = late.whole(query, held, slots[:5], most_exact, 100)
    assert result is not None
    best, first, _ = result
    before = pool.cut(query, slots, columns, best, first, 1.5, KEYS, 3)
    at_once = pool.matched(query, held, slots, columns, 5, most_exact, 100, 1.5, KEYS, 3)
    assert at_once is not None
    for name in ("order", "level", "slots", "columns", "best"):
        assert getattr(at_once, name).tobytes() == getattr(before, name).tobytes()


def test_a_pool_with_too_many_tokens_or_a_memory_without_any_is_not_matched() -> None:
    query, held = asked(3), stored([4, 0, 7])
    columns = np.ones((pool.FOUND_COLUMNS, 2))
    assert pool.matched(query, held, np.array([0, 2]), columns, 2, 100, 10, 1.0, KEYS, 2) is None
    for slots in ([0, 1], [0, 3], [-1, 0]):
        assert pool.matched(query, held, np.array(slots), columns, 2, 100, 100, 1.0, KEYS, 2) is None
    assert pool.matched(query, held, np.array([0, 1]), columns, 1, 100, 100, 1.0, KEYS, 2) is not None
    with pytest.raises(ValueError, match="another width"):
        pool.matched(asked(3, WIDTH + 8), held, np.array([0, 2]), columns, 2, 100, 100, 1.0, KEYS, 2)
    with pytest.raises(ValueError, match="no key"):
        pool.matched(query, held, np.array([0, 2]), columns, 2, 100, 100, 1.0, KEYS[:2].copy(), 2)


def test_a_pool_that_does_not_fit_is_refused() -> None:
    slots, columns, best = np.arange(4), np.ones((pool.FOUND_COLUMNS, 4)), np.ones((2, 4), np.float32)
    for wrong in (
        (slots[:3], columns, best, np.ones(4)),
        (slots, columns, best, np.ones(3)),
        (slots, columns, np.ones((3, 4), np.float32), np.ones(4)),
        (slots, columns, np.ones((2, 5), np.float32), np.ones(5)),
        (slots, columns[:4], best, np.ones(4)),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            pool.cut(asked(2), *wrong, 1.0, KEYS, 2)
    for slot in (-1, 50):
        with pytest.raises(ValueError, match="no key"):
            pool.cut(asked(2), np.array([0, slot, 2, 3]), columns, best, np.ones(4), 1.0, KEYS, 2)


def test_sums_are_ordered_and_say_whether_any_are_equal() -> None:
    rng = np.random.default_rng(6)
    values, weights, added = rng.integers(0, 3, (4, 30)).astype(float), np.array([1.0, 0.0, -2.0, 0.5]), rng.random(30)
    slots = rng.permutation(50)[:30].astype(np.int64)
    for extra, equal in ((added, False), (np.zeros(30), True)):
        sums, placed, has_ties = order.ordered_sums(values, weights, extra, slots, KEYS)
        assert sums.tobytes() == (order.weighted_rows(values, weights) + extra).tobytes()
        assert placed.tolist() == np.lexsort((KEYS[slots], -sums)).tolist()
        assert has_ties is equal
    nobody = order.ordered_sums(values[:, :0].copy(), weights, added[:0], slots[:0], KEYS)
    assert (len(nobody[0]), len(nobody[1]), nobody[2]) == (0, 0, False)
    with pytest.raises(ValueError, match="do not fit"):
        order.ordered_sums(values, weights, added[:5], slots, KEYS)
    with pytest.raises(ValueError, match="no key"):
        order.ordered_sums(values, weights, added, slots + 50, KEYS)
