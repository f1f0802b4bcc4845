import numpy as np
import pytest

from dakera_cluster.native import windows, words

SIZE = 120


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


def reference(talk: windows.Talk, slots: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    return words.neighbours(talk.previous, talk.following, talk.words, talk.speakers, slots, reach)


@pytest.mark.parametrize("seed", range(5))
def test_windows_are_the_neighbours_within_the_budget(seed: int) -> None:
    talk, slots = talk_of(seed), np.random.default_rng(seed).permutation(SIZE + 3)[:60].astype(np.int64)
    for reach, budget in ((4, 30), (6, 9), (1, 0), (16, 1_000), (0, 30)):
        found, words_to = reference(talk, slots, reach)
        assert windows.around(talk, slots, reach, budget).tolist() == found[words_to <= budget].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_window_scores_as_one_text(seed: int) -> None:
    rng = np.random.default_rng(seed)
    talk, slots = talk_of(seed), rng.permutation(SIZE + 3)[:60].astype(np.int64)
    frequencies = rng.integers(0, 3, (5, SIZE - 2)).astype(np.uint8)
    lengths, idf = rng.integers(0, 30, SIZE - 2).astype(np.float64), rng.random(5)
    scores = windows.bm25(talk, slots, 6, 30, lengths, frequencies, idf, 1.2, 0.75)
    found, words_to = reference(talk, slots, 6)
    expected = words.window_bm25(slots, found, words_to <= 30, lengths, frequencies, idf, 1.2, 0.75)
    assert scores.tolist() == expected.tolist()
    assert scores.any()
    # A slot that is none has neither text nor neighbours.
    nobody = np.array([-1, SIZE + 9])
    assert windows.bm25(talk, nobody, 6, 30, lengths, frequencies, idf, 1.2, 0.75).tolist() == [0.0, 0.0]


def test_no_window_is_scored_without_slots_or_terms() -> None:
    talk = talk_of(0)
    nothing = np.zeros((0, SIZE), np.uint8)
    assert windows.bm25(talk, np.arange(4), 6, 30, np.ones(SIZE), nothing, np.zeros(0), 1.2, 0.75).tolist() == [0] * 4
    assert len(windows.around(talk, np.zeros(0, np.int64), 4, 30)) == 0


def test_what_does_not_fit_is_refused() -> None:
    talk = talk_of(0)
    with pytest.raises(ValueError, match="reaches up to"):
        windows.around(talk, np.arange(4), windows.MAX_REACH + 1, 30)
    with pytest.raises(ValueError, match="do not fit"):
        windows.bm25(talk, np.arange(4), 6, 30, np.ones(SIZE), np.ones((2, 9), np.uint8), np.ones(2), 1.2, 0.75)
