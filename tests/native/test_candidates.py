import numpy as np
import pytest

from dakera_cluster.native import candidates, hits, vectors, windows, words
from dakera_cluster.native.terms import Found
from tests.support.first_look import asked_of, found_of, lists_of, outlook, sessions_of
from tests.support.vector_rows import rows_of

SIZE, WIDTH, TERMS = 300, 70, 6
KEYS = np.random.default_rng(9).permutation(SIZE + 3).astype(np.uint64)
LENGTHS = np.random.default_rng(10).integers(1, 30, SIZE).astype(np.float64)


def talk_of(seed: int) -> windows.Talk:
    """Sessions of ten, some said by nobody."""
    rng = np.random.default_rng(seed)
    previous, following = sessions_of(SIZE, rng)
    speakers = rng.integers(-1, 4, SIZE).astype(np.int32)
    return windows.Talk(previous, following, rng.integers(0, 20, SIZE).astype(np.uint16), speakers, KEYS)


def held_of(seed: int) -> list[dict[int, int]]:
    """Of each term, who holds it: the last two are in few memories."""
    rng = np.random.default_rng(seed)
    return [
        {int(slot): int(rng.integers(1, 4)) for slot in rng.choice(SIZE, count, replace=False)}
        for count in (90, 80, 70, 60, 20, 10)
    ]


def stored(seed: int) -> tuple[list[np.ndarray], vectors.Rows, np.ndarray]:
    """Rows of which three at a time are equal and a tenth is missing, and a vector."""
    rng = np.random.default_rng(seed)
    values = np.repeat(rng.integers(-32_000, 32_000, (SIZE // 3, WIDTH)), 3, axis=0).astype(np.int16)
    scales = (1 / np.linalg.norm(values.astype(np.float64), axis=1)).astype(np.float32)
    query = rng.standard_normal(WIDTH)
    kept, rows = rows_of(values, scales, rng.random(SIZE) < 0.9)
    return kept, rows, (query / np.linalg.norm(query)).astype(np.float32)


def by_words(found: Found) -> np.ndarray:
    """The slots of the memories that were found, by their places."""
    slots = np.flatnonzero(found.places)
    return slots[np.argsort(found.places[slots])]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("masked", [False, True])
def test_the_best_by_words_are_followed_by_the_neighbours_of_the_first_and_by_others(seed: int, masked: bool) -> None:
    talk, held = talk_of(seed), held_of(seed)
    allowed = np.random.default_rng(seed).random(SIZE - 9) < 0.7 if masked else None
    lists, others = lists_of(held, LENGTHS, SIZE), np.array([7, 7, 299])
    for wanted, around, reach, budget in (
        (60, 60, 4, 30),
        (20, 48, 6, 9),
        (30, 10, 1, 0),
        (5, 2, 16, 1_000),
        (7, 7, 0, 9),
        (1_000, 3, 4, 30),
        (0, 5, 4, 30),
    ):
        far = outlook(wanted, around=around, reach=reach, budget=budget)
        found, slots, _ = candidates.look(lists, talk, None, far, asked_of(TERMS), None, allowed, others, None)
        known = by_words(found)
        best = known[hits.best(known, found.bm25[1:], KEYS, wanted, allowed)]
        beside, words_to = words.neighbours(*talk.arrays[:4], best[:around], reach)
        near = beside[words_to <= budget]
        if allowed is not None:
            near = near[[slot < len(allowed) and allowed[slot] for slot in near]]
        assert slots.tolist() == [*best.tolist(), *near.tolist(), 7, 7, 299]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("by_name", [0, 15])
def test_with_rows_come_the_nearest_and_those_that_hold_a_rare_name(seed: int, masked: bool, by_name: int) -> None:
    talk, held, (_kept, rows, vector) = talk_of(seed), held_of(seed), stored(seed)
    allowed = np.random.default_rng(seed).random(SIZE - 9) < 0.7 if masked else None
    lists, far, asked = lists_of(held, LENGTHS, SIZE), outlook(40, 50, by_name, 9), asked_of(TERMS, {0, 4, 5}, 30)
    _, near, _ = candidates.look(lists, talk, None, far, asked, None, allowed, np.array([3, 3]), None)
    names = np.array([*held[4], *held[5]])
    surveyed = vectors.survey(rows, allowed, vector, KEYS, 50, names, by_name, near)
    found, slots, cosines = candidates.look(lists, talk, rows, far, asked, vector, allowed, np.array([3, 3]), None)
    assert slots.tolist() == surveyed[0].tolist()
    assert cosines.tobytes() == surveyed[1].tobytes()
    how = windows.Fusion(0.4, 0.6, 0.5, 0.3)
    ordered, columns = windows.fused(talk, found, how, far, *surveyed)
    _, *fused = candidates.look(lists, talk, rows, far, asked, vector, allowed, np.array([3, 3]), how)
    assert fused[0].tolist() == ordered.tolist()
    assert fused[1].tobytes() == columns.tobytes()
    assert fused[1].shape == columns.shape == (windows.COLUMNS, len(slots))


def test_more_postings_than_there_is_room_for_at_first_are_all_found() -> None:
    many = 20_000
    held = [{slot: 1 + slot % 3 for slot in range(many)}, dict.fromkeys(range(0, many, 2), 1)]
    found = found_of(held, np.full(many, 5.0), many)
    assert found.frequencies.astype(bool).sum(axis=1).tolist() == [many, many // 2]
    assert sorted(found.places.tolist()) == [*range(1, many + 1)]


def test_what_does_not_fit_is_refused() -> None:
    talk, held, (_kept, rows, vector) = talk_of(0), held_of(0), stored(0)
    lists, far, asked = lists_of(held, LENGTHS, SIZE), outlook(40, 50), asked_of(TERMS)
    for wrong in (None, vector[:-1].copy()):
        with pytest.raises(ValueError, match="another width"):
            candidates.look(lists, talk, rows, far, asked, wrong, None, None, None)
    with pytest.raises(ValueError, match="other candidates"):
        how = windows.Fusion(0.5, 0.5, 0.0, factors=np.ones(4))
        candidates.look(lists, talk, rows, far, asked, vector, None, None, how)
    with pytest.raises(ValueError, match="may be names"):
        candidates.Asked([1, 2], [True], 1.2, (0.5, 0.5), 10)
    few = windows.Talk(*talk.arrays[:4], KEYS[:50].copy())
    with pytest.raises(ValueError, match="no key"):
        candidates.look(lists, few, None, far, asked, None, None, None, None)
    for reach in (-1, windows.MAX_REACH + 1):
        with pytest.raises(ValueError, match="reaches up to"):
            outlook(reach=reach)
