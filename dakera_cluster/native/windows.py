"""The windows around memories, without the arrays of who stands in them, and what they and other scores make of candidates.
Called by retrieval/candidates.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import NULL, filled, given, kernels
from dakera_cluster.native.terms import Found

MAX_REACH = 16
COLUMNS = 5
"""Of candidates, as ``fused`` gives them: fused score, cosine, BM25, coverage and window."""


class Talk:
    """Who stands beside whom, by slot: ``previous`` and ``following`` (int32, -1 for nobody), ``words`` (uint16), ``speakers``
    (int32, -1 for nobody); and ``keys`` (uint64), which tell equals apart. Links lead to slots, which may lie past the end
    of all. Good for as long as its arrays are the owner's: it is kept from one question to the next."""

    def __init__(
        self,
        previous: NDArray[np.int32],
        following: NDArray[np.int32],
        words: NDArray[np.uint16],
        speakers: NDArray[np.int32],
        keys: NDArray[np.uint64],
    ) -> None:
        self.arrays = (previous, following, words, speakers, keys)
        self._kept = (
            given(previous, np.int32),
            given(following, np.int32),
            given(words, np.uint16),
            given(speakers, np.int32),
            given(keys, np.uint64),
        )
        linked, known = min(len(previous), len(following)), min(len(words), len(speakers))
        self.struct = filled("talk_links *", (*self._kept, linked, known, len(keys)))


class Outlook:
    """How far a first look goes: as many memories ``by_words``, ``by_vector`` and ``by_name``; of the first, the best ``around``
    bring their neighbours: on each side the nearest ``reach`` whose words, with those of all nearer ones, are at most ``budget``.
    What nobody said has no neighbours and is none. A candidate's window reaches as by ``window``, ``(reach, budget)``;
    its BM25 has ``bm25``, ``(k1, b)``. ``most``: the candidates there are, at most."""

    def __init__(
        self,
        by_words: int,
        by_vector: int,
        by_name: int,
        around: int,
        reach: int,
        budget: int,
        window: tuple[int, int],
        bm25: tuple[float, float],
    ) -> None:
        for side in (reach, window[0]):
            if not 0 <= side <= MAX_REACH:
                raise ValueError(f"a window reaches up to {MAX_REACH} slots, not {side}")
        self.most = by_words + by_vector + by_name + 2 * reach * min(around, by_words)
        self.struct = filled("outlook *", (by_words, by_vector, by_name, around, reach, budget, *window, *bm25))


class Fusion:
    """How the scores of n candidates become one. Cosine, BM25 and window are each scaled to 0..1 and weighed; ``given``
    (float64[n]) stands in for the first two. ``boost``, times the share of the question's rare names that a candidate
    holds, is added; the sum is multiplied by ``factors`` (float64[n])."""

    def __init__(
        self,
        by_vector: float,
        by_words: float,
        by_window: float,
        boost: float = 0.0,
        given: NDArray[np.float64] | None = None,
        factors: NDArray[np.float64] | None = None,
    ) -> None:
        self.lengths = {len(part) for part in (given, factors) if part is not None}
        self._kept = _or_null(given), _or_null(factors)
        self.struct = filled("fusion *", (by_vector, by_words, by_window, boost, *self._kept))

    @property
    def is_general(self) -> bool:
        """Whether it is good for all candidates of all questions."""
        return not self.lengths


def fused(
    talk: Talk,
    words: Found,
    how: Fusion,
    far: Outlook,
    slots: NDArray[np.int64],
    cosines: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """``(slots int64[n], columns float64[COLUMNS, n])`` of candidates in the order of their fused scores, equals by key. A
    candidate's window is BM25 of it and its neighbours as one text. Raises ValueError for a slot without a key."""
    if len(cosines) != len(slots):
        raise ValueError("the arrays of candidates do not fit together")
    if not how.lengths <= {len(slots)}:
        raise ValueError("the parts of a fusion do not fit the candidates")
    ordered, columns = np.empty(len(slots), np.int64), np.empty((COLUMNS, len(slots)))
    status = kernels.fuse(
        talk.struct,
        words.struct,
        how.struct,
        far.struct,
        given(slots, np.int64),
        given(cosines, np.float64),
        len(slots),
        given(ordered, np.int64),
        given(columns, np.float64),
    )
    if status == -1:
        raise MemoryError("no memory to order candidates")
    if status < 0:
        raise ValueError("a slot has no key")
    return ordered, columns


def _or_null(values: NDArray[np.float64] | None) -> Any:
    return NULL if values is None else given(values, np.float64)
