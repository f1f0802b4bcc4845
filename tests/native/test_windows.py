from dataclasses import replace

import numpy as np
import pytest

from dakera_cluster.native import hits, terms, windows, words

SIZE = 120
TERMS = 5
KEYS = np.random.default_rng(9).integers(0, 2**63, SIZE + 3).astype(np.uint64)


def talk_of(seed: int) -> windows.Talk:
    """Sessions of ten, some said by nobody; links know fewer slots than words, and words fewer than there are."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(SIZE)
    previous, following = np.full(SIZE, -1, np.int32), np.full(SIZE, -1, np.int32)
    for start in range(0, SIZE, 10):
        run = order[start : start + 10]
        previous[run[1:]], following[run[:-1]] = run[:-1], run[1:]
    speakers = rng.integers(-1, 4, SIZE - 10).astype(np.int32)
    return windows.Talk(previous[:-4], following[:-4], rng.integers(0, 20, SIZE - 5).astype(np.uint16), speakers)


def found_of(seed: int, size: int = SIZE - 2, count: int = TERMS) -> tuple[terms.Found, np.ndarray, np.ndarray]:
    """The words of a question, and the lengths and idf they were found with."""
    rng = np.random.default_rng(seed)
    lengths, idf = rng.integers(0, 30, size).astype(np.float64), rng.random(count)
    held = [rng.choice(size, size // 3, replace=False).astype(np.int32) for _ in range(count)]
    slots = np.concatenate([*held, np.zeros(0, np.int32)])
    counts = rng.integers(1, 4, len(slots)).astype(np.uint16)
    ends = np.cumsum([len(each) for each in held], dtype=np.int64)
    return terms.found(slots, counts, ends, idf, 1.2, (0.5, 0.02), lengths), lengths, idf


def neighbours(talk: windows.Talk, slots: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    return words.neighbours(*talk.arrays, slots, reach)


def scaled(values: np.ndarray) -> np.ndarray:
    low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
    return np.nan_to_num((values - low) / (high - low)) if high > low else np.zeros(len(values))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("masked", [False, True])
def test_the_best_are_followed_by_the_neighbours_of_the_first_within_the_budget(seed: int, masked: bool) -> None:
    rng = np.random.default_rng(seed)
    talk, slots = talk_of(seed), rng.permutation(SIZE + 3)[:60].astype(np.int64)
    scores, allowed = rng.random(60), rng.random(SIZE - 9) < 0.7 if masked else None
    for wanted, around, reach, budget in (
        (60, 60, 4, 30),
        (20, 48, 6, 9),
        (30, 10, 1, 0),
        (5, 2, 16, 1_000),
        (7, 7, 0, 9),
    ):
        best = slots[hits.best(slots, scores, KEYS, wanted, allowed)]
        beside, words_to = neighbours(talk, best[:around], reach)
        near = beside[words_to <= budget]
        if allowed is not None:
            near = near[[slot < len(allowed) and allowed[slot] for slot in near]]
        found = windows.spread(talk, slots, scores, KEYS, wanted, allowed, around, reach, budget)
        assert found.tolist() == [*best.tolist(), *near.tolist()]


@pytest.mark.parametrize("seed", range(5))
def test_candidates_are_fused_from_vectors_words_and_windows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    talk, slots = talk_of(seed), rng.permutation(SIZE + 3)[:60].astype(np.int64)
    found, lengths, idf = found_of(seed)
    cosines = rng.random(60)
    cosines[rng.random(60) < 0.2] = np.nan
    how = windows.Fusion(0.3, 0.7, 0.5, 0.25, [1, 3], factors=1 + rng.random(60) / 3)
    beside, words_to = neighbours(talk, slots, 6)
    window = words.window_bm25(slots, beside, words_to <= 30, lengths, found.frequencies, idf, 1.2, 0.75)
    places = np.where(slots < SIZE - 2, found.places[np.minimum(slots, SIZE - 3)], 0)
    bm25, coverage = found.bm25[places], found.coverage[places]
    inside = np.minimum(slots, SIZE - 3)
    share = np.where(slots < SIZE - 2, (found.frequencies[[1, 3]][:, inside] > 0).sum(axis=0), 0) / 2
    fused = 0.3 * scaled(cosines) + 0.7 * scaled(bm25)
    fused += 0.5 * scaled(window)
    fused += 0.25 * share
    fused = fused * how.factors
    ordered, columns = windows.fused(talk, found, how, slots, cosines, 6, 30, 1.2, 0.75, KEYS)
    order = np.lexsort((KEYS[slots], -fused))
    assert ordered.tolist() == slots[order].tolist()
    assert window.any() and bm25.any() and share.any()
    for column, expected in zip(columns, (fused, cosines, bm25, coverage, window), strict=True):
        assert column.tobytes() == np.ascontiguousarray(expected[order]).tobytes()


def test_what_is_given_stands_in_for_vectors_and_words() -> None:
    talk, (found, *_), slots = talk_of(1), found_of(1), np.arange(30)
    given = np.random.default_rng(1).random(30)
    how = windows.Fusion(0.5, 0.5, 0.0, 0.0, [2], given=given)
    ordered, columns = windows.fused(talk, found, how, slots, np.ones(30), 6, 30, 1.2, 0.75, KEYS)
    assert ordered.tolist() == np.argsort(-given).tolist()
    assert columns[0].tolist() == sorted(given, reverse=True)


def test_candidates_of_one_score_are_told_apart_by_their_keys() -> None:
    talk, (found, *_), slots = talk_of(1), found_of(1), np.arange(40)
    ordered, _ = windows.fused(
        talk, found, windows.Fusion(1.0, 0.0, 0.0), slots, np.full(40, np.nan), 6, 30, 1.2, 0.75, KEYS
    )
    assert ordered.tolist() == np.argsort(KEYS[:40]).tolist()


def test_nothing_is_made_of_nothing() -> None:
    talk = talk_of(0)
    empty, *_ = found_of(0, count=0)
    nothing = np.zeros(0, np.int64)
    assert len(windows.spread(talk, nothing, np.zeros(0), KEYS, 10, None, 5, 4, 30)) == 0
    how = windows.Fusion(0.5, 0.5, 0.5)
    slots, columns = windows.fused(talk, empty, how, nothing, np.zeros(0), 6, 30, 1.2, 0.75, KEYS)
    assert (len(slots), columns.shape) == (0, (windows.COLUMNS, 0))
    # Without terms every window says nothing.
    _, columns = windows.fused(talk, empty, how, np.arange(4), np.ones(4), 6, 30, 1.2, 0.75, KEYS)
    assert not columns[2:].any()


def test_what_does_not_fit_is_refused() -> None:
    talk, (found, *_), four = talk_of(0), found_of(0), np.arange(4)
    how = windows.Fusion(0.5, 0.5, 0.5)

    def fuse(how: windows.Fusion, slots: np.ndarray = four, cosines: int = 4, reach: int = 6) -> None:
        windows.fused(talk, found, how, slots, np.ones(cosines), reach, 30, 1.2, 0.75, KEYS)

    for reach in (-1, windows.MAX_REACH + 1):
        with pytest.raises(ValueError, match="reaches up to"):
            windows.spread(talk, four, np.ones(4), KEYS, 4, None, 4, reach, 30)
        with pytest.raises(ValueError, match="reaches up to"):
            fuse(how, reach=reach)
    with pytest.raises(ValueError, match="3 scores"):
        windows.spread(talk, four, np.ones(3), KEYS, 4, None, 4, 4, 30)
    for rare in ([TERMS], [-1]):
        with pytest.raises(ValueError, match="do not fit"):
            fuse(replace(how, rare=rare))
    with pytest.raises(ValueError, match="do not fit"):
        fuse(how, cosines=3)
    for part in ("given", "factors"):
        with pytest.raises(ValueError, match="parts of a fusion"):
            fuse(replace(how, **{part: np.ones(3)}))
    for slot in (-1, len(KEYS)):
        with pytest.raises(ValueError, match="no key"):
            fuse(how, np.array([slot, 0, 1, 2]))
        with pytest.raises(ValueError, match="no key"):
            windows.spread(talk, np.array([slot]), np.ones(1), KEYS, 4, None, 4, 4, 30)
