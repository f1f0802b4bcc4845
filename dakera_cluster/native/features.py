"""What features are made of, and where they lie. Read by pool.py, filled by retrieval/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import allocated, filled, given

_PLACED = (
    *("bm25", "coverage", "window", "window_rank", "late", "late_first", "cosine", "passage"),
    *("time_words", "number", "length", "about_self", "asks", "self_asked", "assistant"),
    *("window_turns", "window_wide", "cosine_lead", "cover_turn", "cover_next", "cover_near", "cover_talk", "session"),
    *("speaker", "cosine_apart", "window_met", "window_wide_met", "late_long", "cover_said"),
)
"""The rows the kernels know, in the order of features.c; what they mean stands in retrieval/features.py."""
_COLUMNS = {
    "words": np.uint16,
    "about_self": np.float32,
    "asks": np.bool_,
    "has_time": np.bool_,
    "has_number": np.bool_,
    "role": np.uint8,
}


class Traits:
    """What is known of memories, by slot: see _COLUMNS. Good for as long as its arrays are the owner's."""

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        arrays = [columns[name] for name in _COLUMNS]
        self._kept = [given(columns[name], dtype) for name, dtype in _COLUMNS.items()]
        self.struct = allocated("trait_columns", 1)
        own = self.struct[0]
        own.words, own.about_self, own.asks, own.has_time, own.has_number, own.roles = self._kept
        own.size = min(map(len, arrays))


class Asked:
    """What a question asks about: what it does not (the time of day, numbers, or the asker) is 0 in every memory. ``lengths``:
    float64, what each number of words counts, the last also for all greater ones; ``assistant``: the role that is one."""

    def __init__(
        self, lengths: NDArray[np.float64], assistant: int, *, asks_when: bool, asks_how_much: bool, of_self: bool
    ) -> None:
        if not len(lengths):
            raise ValueError("no number of words has a length")
        self._kept = given(lengths, np.float64)
        about = asks_when, asks_how_much, of_self
        self.struct = filled("asked_traits *", (*about, assistant, self._kept, len(lengths) - 1))


class Layout:
    """Where each row of a matrix of features lies. ``names``: of its rows; ``graded``: those that are scaled to 0..1. A window's
    rank counts half ``rank_scale`` places behind the best; BM25 of a memory as a window has ``bm25``, ``(k1, b)``. Raises
    ValueError when a row that the kernels write is not among the names."""

    def __init__(
        self, names: Sequence[str], graded: Sequence[str], rank_scale: float, bm25: tuple[float, float]
    ) -> None:
        self.rows = len(names)
        places = given(np.array([names.index(name) for name in _PLACED], np.int64), np.int64)
        are_graded = given(np.array([name in graded for name in names]), np.bool_)
        self._kept = places, are_graded
        self.struct = filled("feature_layout *", (places, are_graded, self.rows, rank_scale, *bm25))
