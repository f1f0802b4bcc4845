"""The words of a question in a namespace: BM25 over memories, coverage, and BM25 over the windows around them.

BM25 as by Robertson and Zaragoza (2009), with the non-negative idf of Lucene. Its length normalisation follows the
namespace: among short memories a longer one simply says more (b = 0.4), among long ones it is only wordier (b = 1.0).
Terms, frequencies and lengths come from the full-text index; sums run in the order of the question's terms, so they are
the same on every replica.

Called by candidates.py (all memories) and features.py (windows around the pool).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.index.fulltext import FullTextIndex
from dakera_cluster.native import terms as native
from dakera_cluster.native import words as windows

SHORT_K1, LONG_K1 = 0.9, 1.2
SHORT_B, LONG_B = 0.4, 1.0
SHORT_TERMS, LONG_TERMS = 32.0, 128.0
"""Mean terms of a memory up to which a namespace counts as one of short, and from which as one of long memories."""
WINDOW_K1, WINDOW_B = 1.2, 0.75


@dataclass(frozen=True, slots=True)
class WordScores:
    """Of one question over all slots. ``idf``: float64[t]; ``slots``: int32, of the memories that hold each term, one
    term after another up to its end in ``ends``; ``holders``: how many those are; ``frequencies``:
    uint8[t, size], at most MAX_FREQUENCY; ``lengths``: float64[size]. ``found``: the memories that hold any of the terms; its
    coverage is the share of the terms' idf that a memory holds, 0 to 1."""

    terms: tuple[str, ...]
    idf: NDArray[np.float64]
    slots: NDArray[np.int32]
    ends: tuple[int, ...]
    holders: tuple[int, ...]
    frequencies: NDArray[np.uint8]
    lengths: NDArray[np.float64]
    found: native.Found

    def at(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``(bm25, coverage)`` of ``slots`` (ascending), float64[n]; 0 where there is no text."""
        places = _by_slot(self.found.places, slots)
        return self.found.bm25[places], self.found.coverage[places]

    def holding(self, rows: list[int]) -> NDArray[np.int64]:
        """The slots of the memories that hold a term in ``rows``; one that holds several comes as often."""
        if not rows:
            return np.zeros(0, np.int64)
        return np.concatenate(
            [self.slots[self.ends[row] - self.holders[row] : self.ends[row]] for row in rows], dtype=np.int64
        )


def _by_slot(values: np.ndarray, slots: NDArray[np.int64]) -> np.ndarray:
    """``values`` at ``slots``, which ascend; 0 past their end."""
    inside = int(np.searchsorted(slots, len(values))) if len(slots) and slots[-1] >= len(values) else len(slots)
    if inside == len(slots):
        return values.take(slots)
    result = np.zeros(len(slots), values.dtype)
    result[:inside] = values.take(slots[:inside])
    return result


def normalisation(average_terms: float) -> tuple[float, float]:
    """``(k1, b)`` for a namespace whose memories have that many terms on average."""
    if average_terms <= SHORT_TERMS:
        return SHORT_K1, SHORT_B
    share = min(1.0, math.log(average_terms / SHORT_TERMS) / math.log(LONG_TERMS / SHORT_TERMS))
    return SHORT_K1 + share * (LONG_K1 - SHORT_K1), SHORT_B + share * (LONG_B - SHORT_B)


def word_scores(text: FullTextIndex, question: str) -> WordScores:
    """BM25 and coverage of every memory."""
    terms = tuple(dict.fromkeys(text.query_terms(question)))
    slots, counts, ends = text.postings(terms)
    stops = tuple(ends.tolist())
    holders = tuple(stop - start for start, stop in pairwise((0, *stops)))
    idf = np.array([text.idf(count) for count in holders])
    k1, b = normalisation(text.average_length)
    norms = k1 * (1 - b), k1 * b / (text.average_length or 1.0)
    lengths = text.wide_lengths
    found = native.found(slots, counts, ends, idf, k1, norms, lengths)
    total = float(idf.sum())
    if total > 0:
        found.coverage[:] /= total
    return WordScores(terms, idf, slots, stops, holders, found.frequencies, lengths, found)


def window_scores(
    words: WordScores, slots: NDArray[np.int64], neighbours: NDArray[np.int32], inside: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """BM25 of each slot together with its neighbours, as if they were one text: float64[n].

    ``neighbours``: int32[n, w] slots; ``inside``: bool[n, w], which of them belong to the window. Lengths are compared with
    the mean over the given windows.
    """
    if not len(slots) or not len(words.terms):
        return np.zeros(len(slots))
    return windows.window_bm25(
        slots, neighbours, inside, words.lengths, words.frequencies, words.idf, WINDOW_K1, WINDOW_B
    )
