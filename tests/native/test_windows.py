import numpy as np
import pytest

from dakera_cluster.native import terms, windows, words
from tests.support.first_look import found_of, outlook, sessions_of

SIZE = 120
TERMS = 5
FAR = outlook()
KEYS = np.random.default_rng(9).integers(0, 2**63, SIZE + 3).astype(np.uint64)


def talk_of(seed: int) -> windows.Talk:
    """Sessions of ten, some said by nobody; links know fewer slots than words, and words fewer than there are."""
    rng = np.random.default_rng(seed)
    previous, following = sessions_of(SIZE, rng)
    speakers = rng.integers(-1, 4, SIZE - 10).astype(np.int32)
    return windows.Talk(previous[:-4], following[:-4], rng.integers(0, 20, SIZE - 5).astype(np.uint16), speakers, KEYS)


def words_of(seed: int, size: int = SIZE - 2, count: int = TERMS) -> terms.Found:
    """The words of a question, of which the second and the fourth are rare names."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 30, size).astype(np.float64)
    held = [
        {int(slot): int(rng.integers(1, 4)) for slot in rng.choice(size, size // 3, replace=False)}
        for _ in range(count)
    ]
    return found_of(held, lengths, size, {1, 3})


def neighbours(talk: windows.Talk, slots: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    return words.neighbours(*talk.arrays[:4], slots, reach)


def scaled(values: np.ndarray) -> np.ndarray:
    low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
    return np.nan_to_num((values - low) / (high - low)) if high > low else np.zeros(len(values))


@pytest.mark.parametrize("seed", range(5))
def test_candidates_are_fused_from_vectors_words_and_windows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    talk, slots = talk_of(seed), rng.permutation(SIZE + 3)[:60].astype(np.int64)
    found = words_of(seed)
    cosines = rng.random(60)
    cosines[rng.random(60) < 0.2] = np.nan
    factors = 1 + rng.random(60) / 3
    how = windows.Fusion(0.3, 0.7, 0.5, 0.25, factors=factors)
    beside, words_to = neighbours(talk, slots, 6)
    window = words.window_bm25(slots, beside, words_to <= 30, found.lengths, found.frequencies, found.idf, 1.2, 0.75)
    places = np.where(slots < SIZE - 2, found.places[np.minimum(slots, SIZE - 3)], 0)
    bm25, coverage = found.bm25[places], found.coverage[places]
    inside = np.minimum(slots, SIZE - 3)
    share = np.where(slots < SIZE - 2, (found.frequencies[[1, 3]][:, inside] > 0).sum(axis=0), 0) / 2
    fused = 0.3 * scaled(cosines) + 0.7 * scaled(bm25)
    fused += 0.5 * scaled(window)
    fused += 0.25 * share
    fused = fused * factors
    ordered, columns = windows.fused(talk, found, how, FAR, slots, cosines)
    order = np.lexsort((KEYS[slots], -fused))
    assert ordered.tolist() == slots[order].tolist()
    assert window.any() and bm25.any() and share.any()
    for column, expected in zip(columns, (fused, cosines, bm25, coverage, window), strict=True):
        assert column.tobytes() == np.ascontiguousarray(expected[order]).tobytes()


def test_what_is_given_stands_in_for_vectors_and_words() -> None:
    talk, found, slots = talk_of(1), words_of(1), np.arange(30)
    given = np.random.default_rng(1).random(30)
    how = windows.Fusion(0.5, 0.5, 0.0, given=given)
    ordered, columns = windows.fused(talk, found, how, FAR, slots, np.ones(30))
    assert ordered.tolist() == np.argsort(-given).tolist()
    assert columns[0].tolist() == sorted(given, reverse=True)


def test_candidates_of_one_score_are_told_apart_by_their_keys() -> None:
    talk, found, slots = talk_of(1), words_of(1), np.arange(40)
    ordered, _ = windows.fused(talk, found, windows.Fusion(1.0, 0.0, 0.0), FAR, slots, np.full(40, np.nan))
    assert ordered.tolist() == np.argsort(KEYS[:40]).tolist()


def test_nothing_is_made_of_nothing() -> None:
    talk = talk_of(0)
    empty, nothing = words_of(0, count=0), np.zeros(0, np.int64)
    how = windows.Fusion(0.5, 0.5, 0.5)
    slots, columns = windows.fused(talk, empty, how, FAR, nothing, np.zeros(0))
    assert (len(slots), columns.shape) == (0, (windows.COLUMNS, 0))
    # Without terms every window says nothing.
    _, columns = windows.fused(talk, empty, how, FAR, np.arange(4), np.ones(4))
    assert not columns[2:].any()


def test_what_does_not_fit_is_refused() -> None:
    talk, found, four = talk_of(0), words_of(0), np.arange(4)
    how = windows.Fusion(0.5, 0.5, 0.5)
    for reach in (-1, windows.MAX_REACH + 1):
        with pytest.raises(ValueError, match="reaches up to"):
            windows.Outlook(9, 9, 9, 9, 4, 30, (reach, 30), (1.2, 0.75))
    with pytest.raises(ValueError, match="do not fit"):
        windows.fused(talk, found, how, FAR, four, np.ones(3))
    for part in ("given", "factors"):
        with pytest.raises(ValueError, match="parts of a fusion"):
            windows.fused(talk, found, windows.Fusion(0.5, 0.5, 0.5, **{part: np.ones(3)}), FAR, four, np.ones(4))
    for slot in (-1, len(KEYS)):
        with pytest.raises(ValueError, match="no key"):
            windows.fused(talk, found, how, FAR, np.array([slot, 0, 1, 2]), np.ones(4))
