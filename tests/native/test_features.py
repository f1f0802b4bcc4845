import numpy as np
import pytest

from dakera_cluster.native import traits

COLUMNS = {
    "words": np.array([0, 3, 900], np.uint16),
    "about_self": np.array([0, 0.5, 1], np.float32),
    "asks": np.array([True, False, True]),
    "has_time": np.array([False, True, True]),
    "has_number": np.array([True, True, False]),
    "role": np.array([0, 2, 2], np.uint8),
}
LENGTHS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])


def test_rows_hold_the_traits_a_question_asks_about() -> None:
    slots = np.array([2, 0, 1, 2])
    rows = traits.rows(COLUMNS, slots, LENGTHS, 2, asks_when=True, asks_how_much=True, of_self=True)
    assert dict(zip(traits.ROWS, rows.tolist(), strict=True)) == {
        "time_words": [1, 0, 1, 1],
        "number": [0, 1, 1, 0],
        "length": [1, 0, 0.75, 1],
        "about_self": [1, 0, 0.5, 1],
        "asks": [1, 1, 0, 1],
        "self_asked": [1, 0, 0.5, 1],
        "assistant": [1, 0, 1, 1],
    }
    rows = traits.rows(COLUMNS, slots, LENGTHS, 2, asks_when=False, asks_how_much=False, of_self=False)
    named = dict(zip(traits.ROWS, rows, strict=True))
    assert not any(named[name].any() for name in ("time_words", "number", "self_asked", "assistant"))
    assert named["about_self"].tolist() == [1, 0, 0.5, 1]


def test_slots_beyond_the_shortest_column_are_refused() -> None:
    for columns in (COLUMNS, COLUMNS | {"role": np.zeros(1, np.uint8)}):
        for slot in (3, -1, 1 if len(columns["role"]) == 1 else 3):
            with pytest.raises(ValueError, match="beyond"):
                traits.rows(columns, np.array([slot]), LENGTHS, 2, asks_when=True, asks_how_much=True, of_self=True)
    nothing = traits.rows(COLUMNS, np.zeros(0, np.int64), LENGTHS, 2, asks_when=True, asks_how_much=True, of_self=True)
    assert nothing.shape == (7, 0)
