"""The words of a question in a namespace: BM25 over memories, coverage, and BM25 over the windows around them.

BM25 as by Robertson and Zaragoza (2009), with the non-negative idf of Lucene. Its length normalisation follows the
namespace: among short memories a longer one simply says more (b = 0.4), among long ones it is only wordier (b = 1.0).
Terms, frequencies and lengths come from the full-text index; sums run in the order of the question's terms, so they are
the same on every replica.

Called by the engine (the terms of a question), candidates.py (all memories, which native/candidates.c scores) and features.py
(windows around the pool).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.index.analysis import query_terms
from dakera_cluster.index.segment import hash_of
from dakera_cluster.native import words as windows
from dakera_cluster.native.candidates import Asked
from dakera_cluster.native.postings import Lists
from dakera_cluster.native.terms import Found
from dakera_cluster.retrieval.entities import proper_nouns

SHORT_K1, LONG_K1 = 0.9, 1.2
SHORT_B, LONG_B = 0.4, 1.0
SHORT_TERMS, LONG_TERMS = 32.0, 128.0
"""Mean terms of a memory up to which a namespace counts as one of short, and from which as one of long memories."""
WINDOW_K1, WINDOW_B = 1.2, 0.75
MAX_NAME_SHARE = 0.1
MAX_NAME_HOLDERS = 2_000
"""A name that more of the memories, or more memories, hold than this tells nothing, and its own pass would cost a scan."""
MAX_WEIGHINGS_KNOWN = 1_024
MAX_NAMES_KNOWN = 4_096
"""Names whose terms are kept: questions name the same few again and again."""


class WordScores:
    """Of one question over all slots: ``found``, the memories that hold any of its terms. ``lengths``: float64[size]."""

    __slots__ = ("found", "lengths")

    def __init__(self, found: Found) -> None:
        self.found, self.lengths = found, found.lengths

    @property
    def idf(self) -> NDArray[np.float64]:
        """float64[t]."""
        return self.found.idf

    @property
    def frequencies(self) -> NDArray[np.uint8]:
        """uint8[t, size], at most MAX_FREQUENCY."""
        return self.found.frequencies

    def at(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``(bm25, coverage)`` of ``slots`` (ascending), float64[n]; 0 where there is no text."""
        places = _by_slot(self.found.places, slots)
        return self.found.bm25[places], self.found.coverage[places]

    def naming(self) -> NDArray[np.int64]:
        """The slots of the memories that hold a rare name of the question."""
        rare = self.found.rare
        return np.flatnonzero(self.found.frequencies[rare].any(axis=0)) if len(rare) else np.zeros(0, np.int64)


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


def asked(lists: Lists, question: str) -> Asked:
    """The terms of a question, and which of them are names."""
    terms = dict.fromkeys(query_terms(question))
    names = {term for name in proper_nouns(question) for term in _terms_of(name)}
    return Asked(
        [*map(hash_of, terms)],
        [term in names for term in terms] if names else [False] * len(terms),
        *_weighing(lists.average_length),
        min(MAX_NAME_SHARE * lists.documents, MAX_NAME_HOLDERS),
    )


@lru_cache(MAX_WEIGHINGS_KNOWN)
def _weighing(average_terms: float) -> tuple[float, tuple[float, float]]:
    """k1, and what a memory's frequencies are weighed against: so much, and so much a term it has."""
    k1, b = normalisation(average_terms)
    return k1, (k1 * (1 - b), k1 * b / (average_terms or 1.0))


@lru_cache(MAX_NAMES_KNOWN)
def _terms_of(name: str) -> tuple[str, ...]:
    return tuple(query_terms(name))


def window_scores(
    words: WordScores, slots: NDArray[np.int64], neighbours: NDArray[np.int32], inside: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """BM25 of each slot together with its neighbours, as if they were one text: float64[n].

    ``neighbours``: int32[n, w] slots; ``inside``: bool[n, w], which of them belong to the window. Lengths are compared with
    the mean over the given windows.
    """
    if not len(slots) or not words.found.terms:
        return np.zeros(len(slots))
    return windows.window_bm25(
        slots, neighbours, inside, words.lengths, words.frequencies, words.idf, WINDOW_K1, WINDOW_B
    )
