import math

import numpy as np
import pytest

from dakera_cluster.native import hits, order


@pytest.mark.parametrize("count", [0, 1, 20, 300, 5_000])
@pytest.mark.parametrize("levels", [1, 30, 10**9])
@pytest.mark.parametrize("masked", [False, True])
def test_the_best_are_those_of_a_sort(count: int, levels: int, masked: bool) -> None:
    rng = np.random.default_rng(count + levels)
    slots = rng.permutation(count + 50)[:count].astype(np.int64)
    scores = rng.integers(-levels, levels + 1, count) / 7
    scores[rng.random(count) < 0.05] = math.nan
    scores[rng.random(count) < 0.05] = -0.0
    # Some keys are equal: the slot decides.
    keys = rng.integers(0, 2**63, count + 50).astype(np.uint64) // np.uint64(2**56)
    allowed = rng.random(count + 10) < 0.6 if masked else None
    may = np.ones(count, bool) if allowed is None else np.append(allowed, np.zeros(40, bool))[slots]
    places = np.flatnonzero(may)
    known = np.where(np.isnan(scores), -np.inf, scores)[places]
    expected = places[np.lexsort((slots[places], keys[slots[places]], -known))]
    for wanted in (0, 1, 48, 192, count + 1):
        assert hits.best(slots, scores, keys, wanted, allowed).tolist() == expected[:wanted].tolist()


@pytest.mark.parametrize("count", [20, 200, 3_000])
@pytest.mark.parametrize("apart", [1e-15, 1e-9, 1.0])
def test_scores_that_crowd_together_are_told_apart(count: int, apart: float) -> None:
    """Beside one far off, the first bytes of all the others are the same: all of them, some, hardly any."""
    steps = np.random.default_rng(count).integers(0, count, count)
    scores = 1 + apart * steps
    scores[count // 2] = 1e300
    keys = np.arange(count, 0, -1).astype(np.uint64)
    expected = np.lexsort((keys, -scores))
    for wanted in (1, count // 2, count):
        assert hits.best(np.arange(count), scores, keys, wanted).tolist() == expected[:wanted].tolist()
        assert order.best(scores, keys, wanted).tolist() == expected[:wanted].tolist()
    rising = 1 + apart * np.arange(count)
    rising[0] = -1e300
    assert order.best(rising, keys, count).tolist() == np.argsort(-rising, kind="stable").tolist()


def test_infinite_scores_have_their_place() -> None:
    scores = np.array([1.0, math.inf, -math.inf, math.nan, *np.linspace(0, 0.5, 400)])
    found = hits.best(np.arange(404), scores, np.arange(404).astype(np.uint64), 404)
    assert found[:2].tolist() == [1, 0]
    assert found[-2:].tolist() == [2, 3]


def test_a_slot_without_a_key_is_refused() -> None:
    for slot in (3, -1):
        with pytest.raises(ValueError, match="no key"):
            hits.best(np.array([slot]), np.ones(1), np.ones(3, np.uint64), 1)
    with pytest.raises(ValueError, match="2 scores"):
        hits.best(np.array([0]), np.ones(2), np.ones(3, np.uint64), 1)
