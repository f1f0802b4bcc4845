"""The features of a pool's memories that need nobody else, and the last step of all. Called by retrieval/features.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.late import Query
from dakera_cluster.native.library import NULL, allocated, given, kernels
from dakera_cluster.native.pool import Pool
from dakera_cluster.native.terms import Found

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


class Layout:
    """Where each row of a matrix of features lies. ``names``: of its rows; ``graded``: those that are scaled to 0..1. Raises
    ValueError when a row that the kernels write is not among them."""

    def __init__(self, names: Sequence[str], graded: Sequence[str]) -> None:
        self.rows = len(names)
        self._places = np.array([names.index(name) for name in _PLACED], np.int64)
        self._graded = np.array([name in graded for name in names])
        self.places, self.graded = given(self._places, np.int64), given(self._graded, np.bool_)


class Lengths:
    """float64, what each number of words counts, the last also for all greater ones."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        if not len(values):
            raise ValueError("no number of words has a length")
        self.kept, self.longest = given(values, np.float64), len(values) - 1


class Rows:
    """``values``: float64[features, n], what tells the n memories of a pool apart, so far."""

    def __init__(self, layout: Layout, pool: Pool) -> None:
        self.values = np.zeros((layout.rows, len(pool)))
        self._layout, self._pool = layout, pool
        self._held = given(self.values, np.float64)

    def add_common(
        self,
        traits: Traits,
        lengths: Lengths,
        assistant: int,
        rank_scale: float,
        *,
        asks_when: bool,
        asks_how_much: bool,
        of_self: bool,
    ) -> None:
        """What every pool has. What the question does not ask about (the time of day, numbers, or the asker) is 0; a window's
        rank counts half ``rank_scale`` places behind the best. Raises ValueError for a slot beyond the traits."""
        asked = allocated("asked_traits", 1)
        own = asked[0]
        own.asks_when, own.asks_how_much, own.of_self = asks_when, asks_how_much, of_self
        own.assistant, own.lengths, own.longest = assistant, lengths.kept, lengths.longest
        status = kernels.common_features(
            self._pool.struct, traits.struct, asked, rank_scale, self._layout.places, self._held
        )
        if status == -1:
            raise MemoryError("no memory for the features of a pool")
        if status < 0:
            raise ValueError("slots reach beyond the columns")

    def add_lone(self, words: Found, k1: float, b: float, query: Query) -> None:
        """What stands around a memory where none has a session: itself. BM25 is of a memory as a window."""
        if len(query) != len(self._pool.best):
            raise ValueError("the tokens of the pool are not the question's")
        status = kernels.lone_features(
            self._pool.struct, words.struct, k1, b, query.struct, self._layout.places, self._held
        )
        if status:
            raise MemoryError("no memory for the features of a pool")

    def close(self, talk_lengths: NDArray[np.float64] | None) -> None:
        """Write the rows that are others again, in proportion to what else is known (``talk_lengths``: float64[n], None for no
        talk), and scale the graded ones."""
        if talk_lengths is not None and len(talk_lengths) != self.values.shape[1]:
            raise ValueError("lengths of other talks")
        kernels.close_features(
            self._pool.struct,
            NULL if talk_lengths is None else given(talk_lengths, np.float64),
            self._layout.rows,
            self._layout.graded,
            self._layout.places,
            self._held,
        )
