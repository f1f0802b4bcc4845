"""A pool as a whole: its matches, how it is cut, and the order of what is left."""

import math
from typing import Any

import numpy as np
import pytest

from dakera_cluster.index.vectors import VectorIndex
from dakera_cluster.native import candidates, importance, late, order, pool, terms, windows
from dakera_cluster.native.vectors import Rows
from tests.support.first_look import asked_of, found_of, lists_of, outlook
from tests.support.second_look import (
    ACCESSED_MS,
    COLUMNS,
    CREATED,
    IMPORTANCE,
    KEYS,
    NAMES,
    SIZE,
    STORED,
    judging,
    nothing_said,
    question,
    talk_of,
)

WIDTH = 72


def stored(counts: list[int]) -> late.Stored:
    lengths = np.array(counts, np.int32)
    signs = np.random.default_rng(2).integers(0, 256, (int(lengths.sum()), WIDTH // 8), dtype=np.uint8)
    return late.Stored(signs, (np.cumsum(lengths) - lengths).astype(np.int64), lengths)


@pytest.mark.parametrize("tokens", [1, 8, 9, 30])
@pytest.mark.parametrize("most_exact", [0, 17, 18, 1_000])
def test_memories_are_matched_as_their_runs_are(tokens: int, most_exact: int) -> None:
    query, held = question(tokens, WIDTH), stored([4, 0, 7, 1, 6])
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
    query, held = question(3, WIDTH), stored([4, 0, 7])
    assert late.whole(query, held, np.array([0, 2]), 100, 10) is None
    for slots in (np.array([1, 5]), np.zeros(0, np.int64)):
        result = late.whole(query, held, slots, 100, 10)
        assert result is not None
        assert not any(part.any() for part in result)
    with pytest.raises(ValueError, match="another width"):
        late.whole(question(3, WIDTH + 8), held, np.array([0]), 100, 100)


def test_tokens_that_reach_beyond_the_rows_are_refused() -> None:
    held = stored([4, 3])
    for start, count in ((5, 3), (-1, 2), (0, 8)):
        broken = late.Stored(held.arrays[0], np.array([start]), np.array([count], np.int32))
        with pytest.raises(ValueError, match="runs reach beyond"):
            late.whole(question(2, WIDTH), broken, np.array([0]), 100, 100)


def test_a_question_whose_parts_do_not_fit_is_refused() -> None:
    parts: dict[str, Any] = {
        "vectors": np.ones((3, 16), np.float32),
        "weights": np.ones(3),
        "cosines": late.Cosines(np.ones(17, np.float32)),
    }
    late.Query(**parts)
    for name, shorter in (
        ("vectors", np.ones((2, 16), np.float32)),
        ("weights", np.ones(2)),
        ("cosines", late.Cosines(np.ones(16, np.float32))),
    ):
        with pytest.raises(ValueError, match="fit"):
            late.Query(**parts | {name: shorter})
    with pytest.raises(ValueError, match="whole bytes"):
        late.Query(**parts | {"vectors": np.ones((3, 15), np.float32)})
    many = np.ones((late.MAX_TOKENS + 1, 8), np.float32)
    with pytest.raises(ValueError, match="do not fit"):
        late.Query(many, np.ones(len(many)), late.Cosines(np.ones(9, np.float32)))


def scaled(values: np.ndarray) -> np.ndarray:
    row = values[None].copy()
    order.scale_rows(row, np.ones(1, bool))
    return row[0]


def bounds(size: int, kept: int, *, share: float = 1.0, most_exact: int = 1_000, most: int = 1_000) -> pool.Bounds:
    return pool.Bounds(size, kept, share, most_exact, most)


PARTS = ("order", "level", "slots", "columns", "best")


@pytest.mark.parametrize(("size", "kept"), [(30, 12), (30, 30), (1, 1), (0, 0), (20, 99)])
@pytest.mark.parametrize("tokens", [0, 5])
def test_a_pool_is_cut_by_what_it_was_found_with_and_what_matches(size: int, kept: int, tokens: int) -> None:
    rng = np.random.default_rng(size)
    slots = rng.permutation(SIZE)[:40].astype(np.int64)
    columns = rng.integers(0, 4, (pool.FOUND_COLUMNS, 40)).astype(np.float64)
    best, first = rng.integers(0, 3, (tokens, size)).astype(np.float32), rng.random(size)
    query = question(tokens, WIDTH)
    query.weights[:] = 1
    cut = pool.cut(query, slots, columns, best, first, bounds(size, kept, share=0.5), judging())
    matched = late.weighted(best, query.weights)
    expected = scaled(columns[0, :size]) + 0.5 * scaled(matched)
    assert cut.level.tobytes() == expected.tobytes()
    assert cut.order.tolist() == np.lexsort((KEYS[slots[:size]], -expected)).tolist()
    head = cut.order[:kept]
    assert len(cut) == min(size, kept)
    assert cut.slots.tolist() == slots[head].tolist()
    assert cut.columns.tolist() == np.vstack([columns[:, :size], matched, first])[:, head].tolist()
    assert cut.late.tolist() == matched[head].tolist()
    assert cut.cosine.tolist() == columns[pool.COSINE, head].tolist()
    assert cut.best.tolist() == best[:, head].tolist()


Candidates = tuple[np.ndarray, np.ndarray]


def looked_at(second: pool.SecondLook, candidates: Candidates, words: terms.Found | None = None) -> pool.Judged | None:
    assert not second.is_taken
    second.at(*candidates, nothing_said() if words is None else words)
    assert second.is_taken
    return second.judged(len(candidates[0]))


@pytest.mark.parametrize("most_exact", [0, 1_000])
@pytest.mark.parametrize("are_alone", [True, False])
def test_a_second_look_is_what_its_steps_are(most_exact: int, *, are_alone: bool) -> None:
    query, held = question(6, WIDTH), stored([4, 2, 7, 1, 6, 3])
    slots, columns = np.array([3, 0, 5, 2, 4, 1]), np.random.default_rng(4).random((pool.FOUND_COLUMNS, 6))
    said = found_of([{2: 2, 0: 1}, {2: 3}], np.full(6, 4.0), 6)
    far = bounds(5, 3, share=1.5, most_exact=most_exact)
    result = late.whole(query, held, slots[:5], most_exact, 1_000)
    assert result is not None
    best, first, _ = result
    in_steps = judging(are_alone=are_alone, is_whole=False)
    stepwise = pool.cut(query, slots, columns, best, first, far, in_steps)
    pool.judged(stepwise, query, in_steps, said)
    at_once = looked_at(pool.SecondLook(query, held, far, in_steps), (slots, columns), said)
    assert at_once is not None
    for name in (*PARTS, "values"):
        assert getattr(at_once[0], name).tobytes() == getattr(stepwise, name).tobytes()
    assert stepwise.values.any()
    _, equal = pool.concluded(stepwise, None, judging(wanted=2))
    # A question that no kernel has matched yet is made ready on the way.
    whole = judging(are_alone=are_alone, wanted=2)
    at_once = looked_at(pool.SecondLook(question(6, WIDTH), held, far, whole), (slots, columns), said)
    assert at_once is not None
    assert at_once[1] == equal
    for name in (*PARTS, "values", "sums", "ranking"):
        assert getattr(at_once[0], name).tobytes() == getattr(stepwise, name).tobytes()
    for one, other in zip(at_once[0].answered(2), stepwise.answered(2), strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_first_look_goes_on_with_the_second() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(SIZE, 24)).astype(np.float32)
    index = VectorIndex(24)
    index.add(np.arange(SIZE), vectors)
    lengths = np.full(SIZE, 4.0)
    postings = [dict.fromkeys(range(0, SIZE, 3), 1), dict.fromkeys(range(0, SIZE, 5), 2)]
    first = lists_of(postings, lengths, SIZE), talk_of()
    held, far, how = stored([3] * SIZE), bounds(20, 12), judging(are_alone=True)
    second = pool.SecondLook(question(5, WIDTH), held, far, how)

    def look(rows: Rows | None, unit: np.ndarray) -> candidates.Look:
        way = windows.Fusion(0.5, 0.5, 0.5)
        return candidates.look(*first, rows, outlook(9, 15), asked_of(2), unit, None, None, way, second)

    found, slots, columns = index.look(vectors[7], look)
    assert second.is_taken
    assert len(slots) > 12
    at_once, other = second.judged(len(slots)), pool.SecondLook(question(5, WIDTH), held, far, how)
    later = looked_at(other, (slots.copy(), columns.copy()), found)
    assert at_once is not None
    assert later is not None
    assert at_once[1] == later[1]
    for name in (*PARTS, "values", "sums", "ranking"):
        assert getattr(at_once[0], name).tobytes() == getattr(later[0], name).tobytes()
    # Nobody is found: there is nothing to look at.
    nobody = np.zeros(SIZE, np.bool_)
    second = pool.SecondLook(question(5, WIDTH), held, far, how)
    way = windows.Fusion(0.5, 0.5, 0.5)
    _, slots, _ = index.look(
        vectors[7],
        lambda rows, unit: candidates.look(*first, rows, outlook(9, 15), asked_of(2), unit, nobody, None, way, second),
    )
    assert not len(slots)
    assert not second.is_taken


def test_candidates_with_too_many_tokens_or_one_without_any_are_not_judged() -> None:
    query, held, how = question(3, WIDTH), stored([4, 0, 7]), judging()
    columns = np.ones((pool.FOUND_COLUMNS, 2))

    def at(slots: list[int], far: pool.Bounds, how: pool.Judging = how) -> pool.Judged | None:
        return looked_at(pool.SecondLook(query, held, far, how), (np.array(slots), columns))

    assert at([0, 2], bounds(2, 2, most=10)) is None
    for slots in ([0, 1], [0, 3], [-1, 0]):
        assert at(slots, bounds(2, 2)) is None
    assert at([0, 1], bounds(1, 2)) is not None
    with pytest.raises(ValueError, match="another width"):
        pool.SecondLook(question(3, WIDTH + 8), held, bounds(2, 2), how)
    with pytest.raises(ValueError, match="no key"):
        at([0, 2], bounds(2, 2), judging(keys=KEYS[:2].copy()))
    with pytest.raises(ValueError, match="do not fit"):
        at([0, 2, 2], bounds(2, 2))


def test_a_pool_that_does_not_fit_is_refused() -> None:
    slots, columns, best = np.arange(4), np.ones((pool.FOUND_COLUMNS, 4)), np.ones((2, 4), np.float32)
    far, how = bounds(4, 2), judging()
    for wrong in (
        (slots[:3], columns, best, np.ones(4)),
        (slots, columns, best, np.ones(3)),
        (slots, columns, np.ones((3, 4), np.float32), np.ones(4)),
        (slots, columns, np.ones((2, 5), np.float32), np.ones(5)),
        (slots, columns[:4], best, np.ones(4)),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            pool.cut(question(2, WIDTH), *wrong, far, how)
    for slot in (-1, SIZE):
        with pytest.raises(ValueError, match="no key"):
            pool.cut(question(2, WIDTH), np.array([0, slot, 2, 3]), columns, best, np.ones(4), far, how)
    cut = pool.cut(question(2, WIDTH), slots, columns, best, np.ones(4), far, how)
    with pytest.raises(ValueError, match="not the question's"):
        pool.judged(cut, question(3, WIDTH), how, nothing_said())
    with pytest.raises(ValueError, match="other talks"):
        pool.concluded(cut, np.ones(3), how)
    with pytest.raises(ValueError, match="weights"):
        judging(model=pool.Weights(np.ones(3), 0.0, 1.0))


def concluded(count: int, how: pool.Judging) -> tuple[pool.Pool, int]:
    """A pool of as many memories with features of its own."""
    rng = np.random.default_rng(6)
    slots, columns = rng.permutation(SIZE)[:count], rng.random((pool.FOUND_COLUMNS, count))
    best, first = rng.random((2, count)).astype(np.float32), rng.random(count)
    query = question(2, WIDTH)
    cut = pool.cut(query, slots, columns, best, first, bounds(count, count), how)
    return pool.judged(cut, query, how, nothing_said())


@pytest.mark.parametrize("wanted", [0, 7, 30, 99])
def test_memories_come_by_their_weighted_features_and_importance(wanted: int) -> None:
    value = (2_000.0, 300.0, 2.0, 0.25)
    found, equal = concluded(30, judging(value=value, wanted=wanted))
    weights = np.random.default_rng(3).normal(size=len(found.values))
    model = pool.Weights(weights, 0.5, 2.0)
    found, equal = concluded(30, judging(value=value, model=model, wanted=wanted))
    expected = order.weighted_rows(found.values, weights)
    importance.add(IMPORTANCE, value, found.slots, expected)
    assert found.sums.tobytes() == expected.tobytes()
    assert found.ranking.tolist() == np.lexsort((KEYS[found.slots], -expected)).tolist()
    assert equal == 0
    head = found.ranking[:wanted]
    slots, (relevance, scores, cosine, bm25) = found.answered(wanted)
    assert slots.tolist() == found.slots[head].tolist()
    assert relevance.tolist() == expected[head].tolist()
    assert scores.tolist() == [1 / (1 + math.exp((0.5 - each) / 2.0)) for each in relevance.tolist()]
    assert cosine.tolist() == found.columns[1, head].tolist()
    assert bm25.tolist() == found.columns[2, head].tolist()


def test_it_is_said_how_many_of_the_wanted_are_as_relevant_as_the_next() -> None:
    """A model that weighs nothing and memories of two importances: ten that are equal, then those of the other."""
    weighs_nothing = pool.Weights(np.zeros(len(NAMES)), 0.0, 1.0)
    stored_twice = np.zeros(SIZE, np.float32)
    slots = np.random.default_rng(6).permutation(SIZE)[:30]
    stored_twice[slots[:10]] = 1
    held = importance.Importance(stored_twice, np.zeros(SIZE, np.int64), np.zeros(SIZE, np.int64))
    for wanted, equal in ((0, 0), (1, 1), (9, 9), (10, 9), (11, 10), (30, 28), (99, 28)):
        found, counted = concluded(30, judging(model=weighs_nothing, held=held, wanted=wanted))
        assert counted == equal
        by_key = [sorted(part.tolist(), key=KEYS.__getitem__) for part in (slots[:10], slots[10:])]
        assert found.slots[found.ranking].tolist() == [*by_key[0], *by_key[1]]


def test_without_a_model_features_are_all() -> None:
    bare, equal = concluded(5, judging(model=None))
    ranked, _ = concluded(5, judging())
    assert equal == 0
    assert bare.values.tobytes() == ranked.values.tobytes()


def test_nobody_is_ranked_of_nobody() -> None:
    found, equal = concluded(0, judging())
    assert (len(found), equal, found.values.shape) == (0, 0, (len(NAMES), 0))
    assert [part.size for part in found.answered(10)] == [0, 0]


def test_scores_stay_within_0_and_1() -> None:
    model = pool.Weights(np.zeros(1), 1.0, 0.5)
    relevance = np.array([-1e9, 0.0, 1.0, 1e9, np.nan])
    expected = [1 / (1 + math.exp(60)), 1 / (1 + math.exp(2)), 0.5, 1 / (1 + math.exp(-60)), 1 / (1 + math.exp(-60))]
    assert model.scores(relevance).tolist() == expected


@pytest.mark.parametrize("half_life", [0.0, 300.0])
def test_importance_counts_in_hundredths_as_much_as_is_left_of_it(half_life: float) -> None:
    slots, now = np.arange(SIZE), 1_800.0
    before = np.random.default_rng(9).random(SIZE)
    sums = before.copy()
    importance.add(IMPORTANCE, (now, half_life, 2.0, 0.25), slots, sums)
    left = STORED.astype(np.float64)
    if half_life:
        age = np.maximum(0.0, now - np.maximum(CREATED, ACCESSED_MS / 1000.0))
        assert 0 < np.count_nonzero(age) < SIZE
        left = left * np.exp2(-age / half_life)
    assert sums.tolist() == (before + 2.0 * (left.round(2) - 0.25)).tolist()


def test_a_slot_without_importance_or_traits_is_refused() -> None:
    value = (0.0, 0.0, 1.0, 0.5)
    for slot in (-1, SIZE):
        with pytest.raises(ValueError, match="beyond"):
            importance.add(IMPORTANCE, value, np.array([0, slot]), np.zeros(2))
    with pytest.raises(ValueError, match="do not fit"):
        importance.add(IMPORTANCE, value, np.array([0, 1]), np.zeros(3))
    short = importance.Importance(STORED[:1].copy(), CREATED, ACCESSED_MS)
    for how in (judging(held=short), judging(columns=COLUMNS | {"role": np.zeros(1, np.uint8)})):
        with pytest.raises(ValueError, match="beyond"):
            concluded(5, how)
