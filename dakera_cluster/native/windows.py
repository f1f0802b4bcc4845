"""The windows around memories, without the arrays of who stands in them, and what they and other scores make of candidates.
Called by retrieval/candidates.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import NULL, allocated, given, kernels
from dakera_cluster.native.terms import Found

MAX_REACH = 16
COLUMNS = 5
"""Of candidates, as ``fused`` gives them: fused score, cosine, BM25, coverage and window."""


class Talk:
    """Who stands beside whom, by slot: ``previous`` and ``following`` (int32, -1 for nobody), ``words`` (uint16), ``speakers``
    (int32, -1 for nobody). Links lead to slots, which may lie past the end of all. Good for as long as its arrays are the
    owner's: it is kept from one question to the next."""

    def __init__(
        self,
        previous: NDArray[np.int32],
        following: NDArray[np.int32],
        words: NDArray[np.uint16],
        speakers: NDArray[np.int32],
    ) -> None:
        self.arrays = (previous, following, words, speakers)
        self._kept = (
            given(previous, np.int32),
            given(following, np.int32),
            given(words, np.uint16),
            given(speakers, np.int32),
        )
        self.struct = allocated("talk_links", 1)
        own = self.struct[0]
        own.previous, own.next, own.words, own.speakers = self._kept
        own.linked, own.known = min(len(previous), len(following)), min(len(words), len(speakers))


@dataclass(frozen=True, slots=True)
class Fusion:
    """How the scores of n candidates become one. Cosine, BM25 and window are each scaled to 0..1 and weighed; ``given``
    (float64[n]) stands in for the first two. ``boost``, times the share of the terms in ``rare`` (rows of the question's
    terms) that a candidate holds, is added; the sum is multiplied by ``factors`` (float64[n])."""

    by_vector: float
    by_words: float
    by_window: float
    boost: float = 0.0
    rare: Sequence[int] = ()
    given: NDArray[np.float64] | None = None
    factors: NDArray[np.float64] | None = None


def spread(
    talk: Talk,
    slots: NDArray[np.int64],
    scores: NDArray[np.float64],
    keys: NDArray[np.uint64],
    wanted: int,
    allowed: NDArray[np.bool_] | None,
    around: int,
    reach: int,
    budget: int,
) -> NDArray[np.int64]:
    """The ``wanted`` best of ``slots``, as by ``hits.best``, then the allowed neighbours of the first ``around`` of them, repeats
    included: on each side the nearest ``reach`` whose words, with those of all nearer ones, are at most ``budget``. What
    nobody said has no neighbours and is none. Raises ValueError for a slot without a key."""
    _check_reach(reach)
    if len(slots) != len(scores):
        raise ValueError(f"{len(slots)} slots, but {len(scores)} scores")
    wanted = max(0, min(wanted, len(slots)))
    found = np.empty(wanted + 2 * reach * min(around, wanted), np.int64)
    count = kernels.spread(
        talk.struct,
        given(slots, np.int64),
        given(scores, np.float64),
        len(slots),
        NULL if allowed is None else given(allowed, np.bool_),
        0 if allowed is None else len(allowed),
        given(keys, np.uint64),
        len(keys),
        wanted,
        around,
        reach,
        budget,
        given(found, np.int64),
    )
    _check_done(count)
    return found[:count]


def fused(
    talk: Talk,
    words: Found,
    how: Fusion,
    slots: NDArray[np.int64],
    cosines: NDArray[np.float64],
    reach: int,
    budget: int,
    k1: float,
    b: float,
    keys: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """``(slots int64[n], columns float64[COLUMNS, n])`` of candidates in the order of their fused scores, equals by key. A
    candidate's window is BM25 of it and its neighbours (as by ``spread``, within ``reach`` and ``budget``) as one text. Raises
    ValueError for a slot without a key."""
    _check_reach(reach)
    if len(cosines) != len(slots) or any(row not in range(words.terms) for row in how.rare):
        raise ValueError("the arrays of candidates do not fit together")
    if any(part is not None and len(part) != len(slots) for part in (how.given, how.factors)):
        raise ValueError("the parts of a fusion do not fit the candidates")
    ordered, columns = np.empty(len(slots), np.int64), np.empty((COLUMNS, len(slots)))
    kept: list[Any] = [given(np.array(how.rare, np.int64), np.int64)]
    own = allocated("fusion", 1)
    to = own[0]
    to.by_vector, to.by_words, to.by_window, to.boost = how.by_vector, how.by_words, how.by_window, how.boost
    to.rare, to.rare_count = kept[0], len(how.rare)
    if how.given is not None:
        to.given = given(how.given, np.float64)
        kept.append(to.given)
    if how.factors is not None:
        to.factors = given(how.factors, np.float64)
        kept.append(to.factors)
    _check_done(
        kernels.fuse(
            talk.struct,
            words.struct,
            own,
            given(slots, np.int64),
            given(cosines, np.float64),
            len(slots),
            reach,
            budget,
            k1,
            b,
            given(keys, np.uint64),
            len(keys),
            given(ordered, np.int64),
            given(columns, np.float64),
        )
    )
    return ordered, columns


def _check_reach(reach: int) -> None:
    if not 0 <= reach <= MAX_REACH:
        raise ValueError(f"a window reaches up to {MAX_REACH} slots, not {reach}")


def _check_done(status: int) -> None:
    if status == -1:
        raise MemoryError("no memory to order candidates")
    if status < 0:
        raise ValueError("a slot has no key")
