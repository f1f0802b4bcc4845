"""The windows around memories, without the arrays of who stands in them. Called by retrieval/candidates.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import given, kernels

MAX_REACH = 16


@dataclass(frozen=True, slots=True)
class Talk:
    """Who stands beside whom, by slot: ``previous`` and ``following`` (int32, -1 for nobody), ``words`` (uint16), ``speakers``
    (int32, -1 for nobody). Links lead to slots, which may lie past the end of all."""

    previous: NDArray[np.int32]
    following: NDArray[np.int32]
    words: NDArray[np.uint16]
    speakers: NDArray[np.int32]


def around(talk: Talk, slots: NDArray[np.int64], reach: int, budget: int) -> NDArray[np.int64]:
    """The neighbours of ``slots``, repeats included: on each side the nearest ``reach`` whose words, with those of all nearer
    ones, are at most ``budget``. What nobody said has no neighbours and is none."""
    found = np.empty(2 * reach * len(slots), np.int64)
    count = kernels.windows_around(*_given(talk, slots, reach), budget, given(found, np.int64))
    return found[:count]


def bm25(
    talk: Talk,
    slots: NDArray[np.int64],
    reach: int,
    budget: int,
    lengths: NDArray[np.float64],
    frequencies: NDArray[np.uint8],
    idf: NDArray[np.float64],
    k1: float,
    b: float,
) -> NDArray[np.float64]:
    """float64[n]: BM25 of each slot and its neighbours (as by ``around``) as one text. ``lengths``: float64[size];
    ``frequencies``: uint8[t, size]; slots beyond them have neither."""
    if frequencies.shape != (len(idf), len(lengths)):
        raise ValueError("the arrays of a window do not fit together")
    scores = np.empty(len(slots))
    kernels.windows_bm25(
        *_given(talk, slots, reach),
        budget,
        given(lengths, np.float64),
        given(frequencies, np.uint8),
        len(lengths),
        given(idf, np.float64),
        len(idf),
        k1,
        b,
        given(scores, np.float64),
    )
    return scores


def _given(talk: Talk, slots: NDArray[np.int64], reach: int) -> tuple[Any, ...]:
    if not 0 <= reach <= MAX_REACH:
        raise ValueError(f"a window reaches up to {MAX_REACH} slots, not {reach}")
    return (
        given(talk.previous, np.int32),
        given(talk.following, np.int32),
        min(len(talk.previous), len(talk.following)),
        given(talk.words, np.uint16),
        given(talk.speakers, np.int32),
        min(len(talk.words), len(talk.speakers)),
        given(slots, np.int64),
        len(slots),
        reach,
    )
