"""The traits of memories as features of a question. Called by retrieval/features.py."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import given, kernels

ROWS = ("time_words", "number", "length", "about_self", "asks", "self_asked", "assistant")
"""What the rows of ``rows`` are, by the names of retrieval/features.py."""
_COLUMNS = {
    "words": np.uint16,
    "about_self": np.float32,
    "asks": np.bool_,
    "has_time": np.bool_,
    "has_number": np.bool_,
    "role": np.uint8,
}


def rows(
    columns: Mapping[str, np.ndarray],
    slots: NDArray[np.int64],
    lengths: NDArray[np.float64],
    assistant: int,
    *,
    asks_when: bool,
    asks_how_much: bool,
    of_self: bool,
) -> NDArray[np.float64]:
    """float64[7, n] of ``slots``: see ROWS. ``columns``: by slot (retrieval/evidence.py); ``lengths``: float64, what each number
    of words counts, the last also for all greater ones; ``assistant``: the role that is one. What the question does not ask
    about is 0: the time of day, numbers, or the asker."""
    if not len(lengths):
        raise ValueError("no number of words has a length")
    size = min(len(columns[name]) for name in _COLUMNS)
    found = np.empty((len(ROWS), len(slots)))
    status = kernels.trait_rows(
        given(slots, np.int64),
        len(slots),
        size,
        *(given(columns[name], dtype) for name, dtype in _COLUMNS.items()),
        assistant,
        given(lengths, np.float64),
        len(lengths) - 1,
        asks_when,
        asks_how_much,
        of_self,
        given(found, np.float64),
    )
    if status < 0:
        raise ValueError("slots reach beyond the columns")
    return found
