import math

import numpy as np
import pytest

from dakera_cluster.native import vectors
from tests.support.vector_rows import rows_of

NONE = np.zeros(0, np.int64)


def case(seed: int, count: int = 300, width: int = 70) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of which three at a time are equal, their scales, their keys (another order than the slots'), and a query."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.integers(-32_000, 32_000, (count // 3, width)), 3, axis=0).astype(np.int16)
    scales = (1 / np.linalg.norm(rows.astype(np.float64), axis=1)).astype(np.float32)
    query = rng.standard_normal(width).astype(np.float32)
    return rows, scales, rng.permutation(count).astype(np.uint64), (query / np.linalg.norm(query)).astype(np.float32)


@pytest.mark.parametrize("wanted", [1, 40, 299, 500])
@pytest.mark.parametrize("masked", [False, True])
def test_a_survey_is_the_nearest_the_nearest_held_and_the_others_each_once(wanted: int, masked: bool) -> None:
    rng = np.random.default_rng(wanted)
    values, scales, keys, query = case(wanted)
    present = rng.random(300) < 0.9
    _kept, rows = rows_of(values, scales, present)
    allowed = rng.random(280) < 0.5 if masked else None
    held = rng.integers(0, 300, 90)
    others = np.array([5, 5, 299, 310, 7, 400])
    slots, cosines = vectors.survey(rows, allowed, query, keys, wanted, held, 20, others)
    every = np.clip(vectors.gather(rows, np.arange(300), query) * scales, -1, 1)
    chosen = np.flatnonzero(present) if allowed is None else np.flatnonzero(present[:280] & allowed)
    named = np.intersect1d(chosen, held)

    def best(among: np.ndarray, count: int) -> list[int]:
        return [int(slot) for slot in among[np.lexsort((keys[among], -every[among]))][:count]]

    expected = sorted({*best(chosen, wanted), *best(named, 20), *others.tolist()})
    assert slots.tolist() == expected
    for slot, cosine in zip(slots.tolist(), cosines.tolist(), strict=True):
        if slot < 300 and present[slot]:
            assert cosine == float(every[slot])
        else:
            assert math.isnan(cosine)


def test_a_survey_of_nothing_finds_the_others() -> None:
    _kept, rows = rows_of(np.zeros((0, 8), np.int16))
    arrays = rows, None, np.ones(8, np.float32), np.zeros(0, np.uint64), 5
    slots, cosines = vectors.survey(*arrays, np.array([0, 3]), 5, np.array([130, 2]))
    assert slots.tolist() == [2, 130]
    assert np.isnan(cosines).all()
    assert len(vectors.survey(*arrays, NONE, 5, NONE)[0]) == 0


def test_slots_without_a_key_are_not_near_but_may_be_asked_for() -> None:
    values, scales, keys, query = case(3)
    _kept, rows = rows_of(values, scales)
    slots, cosines = vectors.survey(rows, None, query, keys[:10], 300, NONE, 0, np.array([200]))
    assert slots.tolist() == [*range(10), 200]
    assert not np.isnan(cosines).any()


def test_rows_of_a_damaged_scale_are_surveyed_like_others() -> None:
    values, scales, keys, query = case(4, count=6)
    for damage in (np.nan, np.inf, -np.inf, 1e30):
        scales[2] = damage
        _kept, rows = rows_of(values, scales)
        slots, _ = vectors.survey(rows, None, query, keys, 10, np.array([2]), 1, NONE)
        assert slots.tolist() == [0, 1, 2, 3, 4, 5]
