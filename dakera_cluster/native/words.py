"""BM25 over windows of memories, and who stands beside whom. Called by retrieval/."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import given, kernels


def tally(ids: NDArray[np.uint16], step: int, counts: NDArray[np.int32]) -> None:
    """Add ``step`` to ``counts`` (int32[65536]) at each of ``ids``, repeats included."""
    if len(counts) != 1 << 16:
        raise ValueError(f"expected a count for each of 65536 ids, got {len(counts)}")
    kernels.tally(given(ids, np.uint16), len(ids), step, given(counts, np.int32))


def neighbours(
    previous: NDArray[np.int32],
    following: NDArray[np.int32],
    words: NDArray[np.uint16],
    speakers: NDArray[np.int32],
    slots: NDArray[np.int64],
    reach: int,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """``(slots int32[n, 2 * reach], words int64 like it)``: see retrieval/context.py. The links are by slot and end in -1."""
    found = np.empty((len(slots), 2 * reach), np.int32)
    words_to = np.empty((len(slots), 2 * reach), np.int64)
    kernels.neighbours(
        given(previous, np.int32),
        given(following, np.int32),
        len(previous),
        given(words, np.uint16),
        given(speakers, np.int32),
        min(len(words), len(speakers)),
        given(slots, np.int64),
        len(slots),
        reach,
        given(found, np.int32),
        given(words_to, np.int64),
    )
    return found, words_to


def window_bm25(
    slots: NDArray[np.int64],
    around: NDArray[np.int32],
    inside: NDArray[np.bool_],
    lengths: NDArray[np.float64],
    frequencies: NDArray[np.uint8],
    idf: NDArray[np.float64],
    k1: float,
    b: float,
) -> NDArray[np.float64]:
    """float64[n]: BM25 of each slot with the neighbours ``around`` it (int32[n, w]) that are ``inside``, as one text.
    ``lengths``: float64[size], ``frequencies``: uint8[t, size]; slots beyond them have neither."""
    if frequencies.shape != (len(idf), len(lengths)) or around.shape != inside.shape or len(around) != len(slots):
        raise ValueError("the arrays of a window do not fit together")
    scores = np.empty(len(slots))
    kernels.window_bm25(
        given(slots, np.int64),
        len(slots),
        given(around, np.int32),
        given(inside, np.bool_),
        around.shape[1],
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
