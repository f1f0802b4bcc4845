import math
from itertools import pairwise

import numpy as np
import pytest

from dakera_cluster.native import talk

NOBODY = -1


def linked(sessions: list[list[int]], size: int) -> tuple[np.ndarray, np.ndarray]:
    previous, following = np.full(size, NOBODY, np.int32), np.full(size, NOBODY, np.int32)
    for session in sessions:
        for left, right in pairwise(session):
            following[left], previous[right] = right, left
    return previous, following


def test_a_stretch_ends_at_a_pause_at_what_nobody_said_and_past_the_columns() -> None:
    previous, following = linked([[0, 1, 2, 3, 4, 5], [6, 7, 8]], 9)
    words = np.array([5, 10, 20, 40, 80, 160, 1, 2], np.uint16)
    speakers = np.array([0, 1, 0, 1, NOBODY, 0, 3, 3], np.int32)
    when = np.array([0.0, 10, 20, 5_000, 5_010, 5_020, 0, 0])
    slots = np.array([2, 3, 4, 6, 7, 30])
    found, total, turns = talk.stretches(previous, following, words, speakers, when, slots, 3, 3_600.0)
    assert found.tolist() == [
        [1, 0, NOBODY, NOBODY, NOBODY, NOBODY],
        [NOBODY] * 6,
        [NOBODY] * 6,
        [NOBODY, NOBODY, NOBODY, 7, NOBODY, NOBODY],
        [6, NOBODY, NOBODY, NOBODY, NOBODY, NOBODY],
        [NOBODY] * 6,
    ]
    assert total[0, :2].tolist() == [10, 15]
    assert (total[found == NOBODY] > 1_000_000).all()
    assert turns.tolist() == [2, 0, 0, 1, 1, 0]
    # A pause as long as allowed is none.
    assert talk.stretches(previous, following, words, speakers, when, slots, 3, 4_980.0)[2].tolist() == [
        3,
        3,
        0,
        1,
        1,
        0,
    ]
    assert talk.stretches(previous, following, words, speakers, when, slots[:0], 3, 1.0)[0].shape == (0, 6)


@pytest.mark.parametrize("size", [0, 1, 50, 3_000])
def test_places_are_those_among_the_known_and_then_the_others_in_order(size: int) -> None:
    rng = np.random.default_rng(size)
    known = rng.permutation(4 * size + 10)[:size].astype(np.int64)
    around = rng.integers(-1, 5 * size + 10, (size, 7)).astype(np.int32)
    wanted = rng.random((size, 7)) < 0.5
    places, others = talk.places_of(known, around, wanted)
    reached = np.unique(around[wanted & (around >= 0)])
    assert others.tolist() == np.setdiff1d(reached, known).tolist()
    every = [*known.tolist(), *others.tolist()]
    place_of = {slot: place for place, slot in enumerate(every)}
    expected = [
        place_of[slot] if is_wanted and slot >= 0 else NOBODY
        for slot, is_wanted in zip(around.ravel().tolist(), wanted.ravel().tolist(), strict=True)
    ]
    assert places.ravel().tolist() == expected
    among = talk.places_among(known, around, wanted)
    assert among.ravel().tolist() == [place if place < size else NOBODY for place in expected]


def test_means_weigh_words_and_know_nothing_of_what_is_unknown() -> None:
    places = np.array([[0, 1], [NOBODY, 1], [NOBODY, NOBODY], [0, 0]])
    means = talk.means_of(
        np.array([1.0, 0.5, 0.25, math.nan]), np.array([1, 2, 3, 4]), np.array([0.5, -1.0]), np.array([10, 0]), places
    )
    assert means[:3].tolist() == [6 / 11, 0.5, 0.25]
    assert math.isnan(means[3])
    with pytest.raises(ValueError, match="beyond"):
        talk.means_of(np.zeros(4), np.ones(4, np.int64), np.zeros(1), np.ones(1, np.int64), places)


def test_the_best_alike_is_that_of_the_same_code() -> None:
    codes = np.array([7, NOBODY, 7, 2, NOBODY], np.int32)
    assert talk.best_alike(np.array([1.0, 9.0, 3.0, 2.0, 4.0]), codes).tolist() == [3.0, 9.0, 3.0, 2.0, 4.0]
    assert talk.best_alike(np.zeros(0), codes[:0]).tolist() == []


def test_a_cover_takes_what_adds_most_and_the_first_of_equals() -> None:
    rng = np.random.default_rng(6)
    for count in (0, 1, 2, 30):
        # Few levels, so that there are ties.
        values, weights = rng.integers(0, 3, count) / 2, rng.integers(1, 3, 4) / 4
        found = rng.integers(0, 3, (count, 4)) / 2
        left, chosen, covered = list(range(count)), [], np.zeros(4)
        while left:
            gains = [values[at] + float(np.maximum(found[at] - covered, 0) @ weights) for at in left]
            pick = left.pop(int(np.argmax(gains)))
            chosen.append(pick)
            covered = np.maximum(covered, found[pick])
        assert talk.covering(values, found, weights).tolist() == chosen


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    cells = np.zeros((2, 3), np.int32)
    with pytest.raises(ValueError, match="does not fit"):
        talk.places_among(np.arange(2), cells, np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="do not fit"):
        talk.covering(np.zeros(2), np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="do not fit"):
        talk.means_of(
            np.zeros(1), np.zeros(2, np.int64), np.zeros(1), np.zeros(1, np.int64), np.zeros((2, 1), np.int64)
        )
    with pytest.raises(ValueError, match="codes"):
        talk.best_alike(np.zeros(2), np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="links"):
        talk.stretches(cells[0], cells[0, :2], np.zeros(3, np.uint16), cells[0], np.zeros(3), np.arange(2), 2, 1.0)
