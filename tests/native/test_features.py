import numpy as np
import pytest

from dakera_cluster.native import features, late, order, pool, words
from tests.support.first_look import found_of
from tests.support.second_look import (
    GRADED,
    LENGTHS,
    NAMES,
    RANK_SCALE,
    WINDOW_BM25,
    judging,
    nothing_said,
    question,
)

SLOTS = np.array([2, 0, 1, 2])
TOKENS = 3
SOME = {
    "words": np.array([0, 3, 900], np.uint16),
    "about_self": np.array([0, 0.5, 1], np.float32),
    "asks": np.array([True, False, True]),
    "has_time": np.array([False, True, True]),
    "has_number": np.array([True, True, False]),
    "role": np.array([0, 2, 2], np.uint8),
}


def cut(slots: np.ndarray = SLOTS) -> pool.Pool:
    """Memories that come in the order of their fused scores."""
    rng = np.random.default_rng(3)
    columns = rng.random((pool.FOUND_COLUMNS, len(slots))) - 0.3
    columns[0] = -np.arange(len(slots))
    best, first = (rng.random((TOKENS, len(slots))) - 0.4).astype(np.float32), rng.random(len(slots))
    bounds = pool.Bounds(len(slots), len(slots), 0.0, 0, 0)
    return pool.cut(question(TOKENS), slots, columns, best, first, bounds, judging())


def named(of: pool.Pool) -> dict[str, list[float]]:
    return dict(zip(NAMES, of.values.tolist(), strict=True))


def common(of: pool.Pool, columns: dict[str, np.ndarray] = SOME, *, asked: bool = True) -> dict[str, list[float]]:
    how = judging(columns=columns, everything=asked, is_whole=False)
    return named(pool.judged(of, question(TOKENS), how, nothing_said())[0])


def test_rows_hold_what_is_known_and_the_traits_a_question_asks_about() -> None:
    found = cut()
    found.values[:] = np.nan
    rows = common(found)
    traits = {
        "time_words": [1, 0, 1, 1],
        "number": [0, 1, 1, 0],
        "length": [1, 0, 0.75, 1],
        "about_self": [1, 0, 0.5, 1],
        "asks": [1, 1, 0, 1],
        "self_asked": [1, 0, 0.5, 1],
        "assistant": [1, 0, 1, 1],
    }
    known = dict(
        zip(("cosine", "bm25", "coverage", "window", "late", "late_first"), found.columns[1:].tolist(), strict=True)
    )
    ranks = [sum(other > value for other in known["window"]) for value in known["window"]]
    places = {"window_rank": [RANK_SCALE / (RANK_SCALE + rank) for rank in ranks]}
    expected = traits | known | places | {"passage": known["cosine"]}
    assert {name: rows[name] for name in expected} == expected
    assert not any(any(values) for name, values in rows.items() if name not in expected)


def test_what_a_question_does_not_ask_about_is_nothing() -> None:
    rows = common(cut(), asked=False)
    assert not any(any(rows[name]) for name in ("time_words", "number", "self_asked", "assistant"))
    assert rows["about_self"] == [1, 0, 0.5, 1]


def test_a_lone_memory_is_its_own_company() -> None:
    found = cut()
    lengths = np.array([4.0, 9.0, 2.0])
    said = found_of([{2: 2, 0: 1}, {2: 3}], lengths, 3)
    query = question(TOKENS)
    rows = named(pool.judged(found, query, judging(are_alone=True, is_whole=False), said)[0])
    none = np.empty((len(SLOTS), 0), np.int32)
    text = words.window_bm25(SLOTS, none, none.astype(bool), lengths, said.frequencies, said.idf, *WINDOW_BM25).tolist()
    cover = late.weighted(np.maximum(found.best, 0), query.weights).tolist()
    assert rows["window_turns"] == rows["window_wide"] == text
    assert all(rows[name] == cover for name in ("cover_turn", "cover_next", "cover_near", "cover_talk"))
    assert rows["cosine_lead"] == found.columns[1].tolist()
    assert rows["session"] == np.maximum(found.late, 0).tolist()


@pytest.mark.parametrize("talk_lengths", [None, np.array([0.5, 0.0, 1.0, 0.25])])
def test_shares_count_again_and_graded_rows_are_scaled(talk_lengths: np.ndarray | None) -> None:
    found = cut()
    common(found)
    rng = np.random.default_rng(8)
    for name in ("window_wide", "cover_turn", "speaker"):
        found.values[NAMES.index(name)] = rng.random(4)
    before = {name: np.array(row) for name, row in named(found).items()}
    pool.concluded(found, talk_lengths, judging(model=None))
    met = found.columns[3].max()
    shares = {
        "cosine_apart": ("cosine", 1 - met),
        "window_met": ("window", met),
        "window_wide_met": ("window_wide", met),
        "late_long": ("late", 0 if talk_lengths is None else talk_lengths),
        "cover_said": ("cover_turn", before["speaker"]),
    }
    expected = before | {name: before[of] for name, (of, _) in shares.items()}
    for name in GRADED:
        row = expected[name][None].copy()
        order.scale_rows(row, np.ones(1, bool))
        expected[name] = row[0]
    for name, (_, share) in shares.items():
        expected[name] = expected[name] * share
    assert 0 < met < 1
    assert {name: row.tolist() for name, row in expected.items()} == named(found)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond"):
        common(cut(np.array([3])))
    with pytest.raises(ValueError, match="beyond"):
        common(cut(np.array([1])), SOME | {"role": np.zeros(1, np.uint8)})
    with pytest.raises(ValueError, match="not in"):
        features.Layout(NAMES[:-1], GRADED, RANK_SCALE, WINDOW_BM25)
    with pytest.raises(ValueError, match="has a length"):
        features.Asked(LENGTHS[:0], 2, asks_when=True, asks_how_much=True, of_self=True)
