from typing import Any

import numpy as np
import pytest

from dakera_cluster.native import features, late, order, pool, words
from tests.support.first_look import found_of

COLUMNS = {
    "words": np.array([0, 3, 900], np.uint16),
    "about_self": np.array([0, 0.5, 1], np.float32),
    "asks": np.array([True, False, True]),
    "has_time": np.array([False, True, True]),
    "has_number": np.array([True, True, False]),
    "role": np.array([0, 2, 2], np.uint8),
}
LENGTHS = features.Lengths(np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
NAMES = ["unused", *reversed(features._PLACED)]
GRADED = ("cosine", "late", "window_met", "cover_said")
LAYOUT = features.Layout(NAMES, GRADED)
SLOTS = np.array([2, 0, 1, 2])
TOKENS = 3


def rows_of(slots: np.ndarray = SLOTS) -> tuple[features.Rows, pool.Pool]:
    """The features of memories that come in the order of their fused scores."""
    rng = np.random.default_rng(3)
    columns = rng.random((pool.FOUND_COLUMNS, len(slots))) - 0.3
    columns[0] = -np.arange(len(slots))
    best = (rng.random((TOKENS, len(slots))) - 0.4).astype(np.float32)
    keys = np.arange(4, dtype=np.uint64)
    found = pool.cut(question(), slots, columns, best, rng.random(len(slots)), 0.0, keys, len(slots))
    return features.Rows(LAYOUT, found), found


def named(of: features.Rows) -> dict[str, list[float]]:
    return dict(zip(NAMES, of.values.tolist(), strict=True))


def common(of: features.Rows, columns: dict[str, Any], *, asked: bool) -> dict[str, list[float]]:
    of.add_common(features.Traits(columns), LENGTHS, 2, 5, asks_when=asked, asks_how_much=asked, of_self=asked)
    return named(of)


def question(tokens: int = TOKENS) -> late.Query:
    vectors = np.random.default_rng(5).random((tokens, 16)).astype(np.float32)
    return late.Query(vectors, np.linspace(0.1, 0.7, tokens), np.ones(17, np.float32))


def test_rows_hold_what_is_known_and_the_traits_a_question_asks_about() -> None:
    own, found = rows_of()
    rows = common(own, COLUMNS, asked=True)
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
    expected = traits | known | {"passage": known["cosine"], "window_rank": [5 / (5 + rank) for rank in ranks]}
    assert {name: rows[name] for name in expected} == expected
    assert not any(any(values) for name, values in rows.items() if name not in expected)


def test_what_a_question_does_not_ask_about_is_nothing() -> None:
    rows = common(rows_of()[0], COLUMNS, asked=False)
    assert not any(any(rows[name]) for name in ("time_words", "number", "self_asked", "assistant"))
    assert rows["about_self"] == [1, 0, 0.5, 1]


def test_a_lone_memory_is_its_own_company() -> None:
    own, found = rows_of()
    lengths = np.array([4.0, 9.0, 2.0])
    said = found_of([{2: 2, 0: 1}, {2: 3}], lengths, 3)
    query = question()
    own.add_lone(said, 1.2, 0.75, query)
    rows = named(own)
    none = np.empty((len(SLOTS), 0), np.int32)
    text = words.window_bm25(SLOTS, none, none.astype(bool), lengths, said.frequencies, said.idf, 1.2, 0.75).tolist()
    cover = late.weighted(np.maximum(found.best, 0), query.weights).tolist()
    assert rows["window_turns"] == rows["window_wide"] == text
    assert all(rows[name] == cover for name in ("cover_turn", "cover_next", "cover_near", "cover_talk"))
    assert rows["cosine_lead"] == found.columns[1].tolist()
    assert rows["session"] == np.maximum(found.late, 0).tolist()
    with pytest.raises(ValueError, match="not the question's"):
        own.add_lone(said, 1.2, 0.75, question(TOKENS + 1))


@pytest.mark.parametrize("talk_lengths", [None, np.array([0.5, 0.0, 1.0, 0.25])])
def test_shares_count_again_and_graded_rows_are_scaled(talk_lengths: np.ndarray | None) -> None:
    own, found = rows_of()
    common(own, COLUMNS, asked=True)
    rng = np.random.default_rng(8)
    for name in ("window_wide", "cover_turn", "speaker"):
        own.values[NAMES.index(name)] = rng.random(4)
    before = {name: np.array(row) for name, row in named(own).items()}
    own.close(talk_lengths)
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
    assert {name: row.tolist() for name, row in expected.items()} == named(own)


def test_a_pool_of_nobody_has_no_features() -> None:
    own, _ = rows_of(np.zeros(0, np.int64))
    common(own, COLUMNS, asked=True)
    own.close(None)
    assert own.values.shape == (len(NAMES), 0)


def test_what_does_not_fit_is_refused() -> None:
    for columns in (COLUMNS, COLUMNS | {"role": np.zeros(1, np.uint8)}):
        for slot in (3, 1 if len(columns["role"]) == 1 else 3):
            with pytest.raises(ValueError, match="beyond"):
                common(rows_of(np.array([slot]))[0], columns, asked=True)
    with pytest.raises(ValueError, match="not in"):
        features.Layout(NAMES[:-1], GRADED)
    with pytest.raises(ValueError, match="has a length"):
        features.Lengths(np.zeros(0))
    with pytest.raises(ValueError, match="other talks"):
        rows_of()[0].close(np.ones(3))
