"""BM25 of the memories that hold a question's terms. Called by retrieval/lexical.py, read by windows.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import allocated, given, kernels

MAX_FREQUENCY = 255
"""Counts of a term are kept in a byte: beyond this they count as this many."""


class Found:
    """The m memories that hold one of t terms. ``slots``: int64[m]. ``places``: int32 by slot, 1 + its place in ``slots``, 0 for
    none. ``bm25`` and ``coverage``: float64[1 + m], 0 in the cell of none. ``frequencies``: uint8[t, size], at most
    MAX_FREQUENCY. ``struct``: all of it, for other kernels."""

    __slots__ = ("_kept", "bm25", "coverage", "frequencies", "places", "slots", "struct", "terms")

    def __init__(
        self,
        slots: NDArray[np.int64],
        places: NDArray[np.int32],
        bm25: NDArray[np.float64],
        coverage: NDArray[np.float64],
        frequencies: NDArray[np.uint8],
        lengths: NDArray[np.float64],
        idf: NDArray[np.float64],
    ) -> None:
        self.slots, self.places, self.bm25, self.coverage = slots, places, bm25, coverage
        self.frequencies, self.terms = frequencies, len(idf)
        self._kept = (
            given(places, np.int32),
            given(bm25, np.float64),
            given(coverage, np.float64),
            given(lengths, np.float64),
            given(idf, np.float64),
            given(frequencies, np.uint8),
        )
        self.struct = allocated("word_scores", 1)
        own = self.struct[0]
        own.places, own.bm25, own.coverage, own.lengths, own.idf, own.frequencies = self._kept
        own.size, own.found, own.terms = len(lengths), len(slots), len(idf)


def found(
    slots: NDArray[np.int32],
    counts: NDArray[np.uint16],
    ends: NDArray[np.int64],
    idf: NDArray[np.float64],
    k1: float,
    norms: tuple[float, float],
    lengths: NDArray[np.float64],
) -> Found:
    """The memories in the postings of t terms (``slots`` and ``counts``, one term after another, each up to its end in
    ``ends``), a slot once in each. ``coverage`` is the sum of the idf they hold. A memory's frequencies are weighed against
    ``norms[0] + norms[1] * length``; ``lengths``: float64[size]. Raises ValueError for postings beyond them."""
    size, terms = len(lengths), len(ends)
    last = len(slots)
    if len(counts) != last or len(idf) != terms:
        raise ValueError("the postings do not fit together")
    places, frequencies = np.zeros(size, np.int32), np.zeros((terms, size), np.uint8)
    held, bm25, coverage = np.empty(last, np.int64), np.empty(1 + last), np.empty(1 + last)
    count = kernels.terms_found(
        given(slots, np.int32),
        given(counts, np.uint16),
        given(ends, np.int64),
        terms,
        last,
        given(idf, np.float64),
        k1,
        *norms,
        given(lengths, np.float64),
        size,
        given(places, np.int32),
        given(held, np.int64),
        given(bm25, np.float64),
        given(coverage, np.float64),
        given(frequencies, np.uint8),
    )
    if count < 0:
        raise ValueError("the postings reach beyond the lengths, or their ends beyond them")
    return Found(held[:count], places, bm25[: 1 + count], coverage[: 1 + count], frequencies, lengths, idf)
