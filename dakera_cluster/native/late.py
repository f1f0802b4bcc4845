"""MaxSim of a question's tokens over stored sign bits. Called by retrieval/late.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import given, kernels

MAX_WIDTH = 4096
MAX_TOKENS = 64
MAX_STEP = 2047
"""Largest component of a question's token: sixteen of them stay within 16 bits."""
NO_MEMORY, BEYOND = -1, -2

Runs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""``(begins, lengths, owners)``: rows of signs matched on their own, and whose they are; those of one owner together."""


def steps(
    vectors: NDArray[np.float32],
) -> tuple[NDArray[np.int16], NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]]:
    """``(steps int16[t, d], sums float64[t], scales float64[t], signs uint8[t, d / 8])`` of the tokens float32[t, d]: each in
    whole steps, its largest component at MAX_STEP of them; a row's sum; what a step is worth in a similarity, which divides
    by the root of d; sign bits. A component that is no number counts as 0."""
    tokens, width = vectors.shape
    if width % 8:
        raise ValueError(f"tokens of width {width} have no whole bytes of signs")
    whole, signs = np.empty((tokens, width), np.int16), np.empty((tokens, width // 8), np.uint8)
    sums, scales = np.empty(tokens), np.empty(tokens)
    kernels.late_steps(
        given(vectors, np.float32),
        tokens,
        width,
        MAX_STEP,
        MAX_STEP * math.sqrt(width),
        given(whole, np.int16),
        given(sums, np.float64),
        given(scales, np.float64),
        given(signs, np.uint8),
    )
    return whole, sums, scales, signs


def exact(
    signs: NDArray[np.uint8],
    runs: Runs,
    steps: NDArray[np.int16],
    sums: NDArray[np.float64],
    scales: NDArray[np.float64],
    weights: NDArray[np.float64],
    best: NDArray[np.float32],
    first: NDArray[np.float64],
) -> None:
    """Write ``best`` (float32[t, n]) and ``first`` (float64[n]) of the owners in ``runs``: the similarity of each token in the
    owner's best run, and the weighted sum in its first. ``signs``: uint8[rows, d / 8]; ``steps``: int16[t, d]."""
    width, tokens = 8 * signs.shape[1], len(steps)
    _check(width, tokens, steps.shape[1] == width and len(sums) == len(scales) == tokens, runs, weights, best, first)
    _done(
        kernels.late_exact(
            *_stored(signs, runs),
            given(steps, np.int16),
            tokens,
            given(sums, np.float64),
            given(scales, np.float64),
            given(weights, np.float64),
            given(best, np.float32),
            given(first, np.float64),
            len(first),
        )
    )


def estimated(
    signs: NDArray[np.uint8],
    runs: Runs,
    query: NDArray[np.uint8],
    cosines: NDArray[np.float32],
    weights: NDArray[np.float64],
    best: NDArray[np.float32],
    first: NDArray[np.float64],
) -> None:
    """As ``exact``, from signs on both sides: ``query`` is uint8[t, d / 8], ``cosines`` float32[d + 1] by differing signs."""
    width = 8 * signs.shape[1]
    fits = query.shape[1] == signs.shape[1] and len(cosines) == width + 1
    _check(width, len(query), fits, runs, weights, best, first)
    _done(
        kernels.late_estimated(
            *_stored(signs, runs),
            given(query, np.uint8),
            len(query),
            given(cosines, np.float32),
            given(weights, np.float64),
            given(best, np.float32),
            given(first, np.float64),
            len(first),
        )
    )


def occurrences(ids: NDArray[np.uint16], wanted: NDArray[np.uint16]) -> NDArray[np.int64]:
    """int64[n]: how often each of the ``wanted`` is among the ``ids``."""
    counts = np.empty(len(wanted), np.int64)
    kernels.occurrences(given(ids, np.uint16), len(ids), given(wanted, np.uint16), len(wanted), given(counts, np.int64))
    return counts


def weighted(values: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[n]: the sum of the rows of float32[t, n], each times its weight, added row by row."""
    sums = np.empty(values.shape[1])
    kernels.weighted_sums(
        given(values, np.float32), given(weights, np.float64), len(values), values.shape[1], given(sums, np.float64)
    )
    return sums


def lent_cover(
    best: NDArray[np.float32],
    places: NDArray[np.int64],
    inside: NDArray[np.bool_],
    share: float,
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """float64[n]: the weighted sum over tokens of what the first n rows of ``best`` (float32[m, t]) found, or ``share`` of what
    the rows ``places`` (int64[n, w], where ``inside``; -1 is nobody) did."""
    count, width = places.shape
    rows, tokens = best.shape
    if tokens > MAX_TOKENS or inside.shape != places.shape or count > rows or len(weights) != tokens:
        raise ValueError("the arrays of a cover do not fit together")
    cover = np.empty(count)
    kernels.lent_cover(
        given(best, np.float32),
        rows,
        tokens,
        given(places, np.int64),
        given(inside, np.bool_),
        count,
        width,
        share,
        given(weights, np.float64),
        given(cover, np.float64),
    )
    return cover


def _stored(signs: NDArray[np.uint8], runs: Runs) -> tuple[Any, ...]:
    """The arguments both ways of matching begin with."""
    begins, lengths, owners = (given(part, np.int64) for part in runs)
    return given(signs, np.uint8), len(signs), 8 * signs.shape[1], begins, lengths, owners, len(runs[0])


def _check(
    width: int,
    tokens: int,
    fits: bool,
    runs: Runs,
    weights: NDArray[np.float64],
    best: NDArray[np.float32],
    first: NDArray[np.float64],
) -> None:
    fits = fits and len(runs[0]) == len(runs[1]) == len(runs[2]) and len(weights) == tokens
    if width > MAX_WIDTH or tokens > MAX_TOKENS or not fits or best.shape != (tokens, len(first)):
        raise ValueError(f"{tokens} tokens of width {width} do not fit the kernel or the arrays given")


def _done(status: int) -> None:
    if status == NO_MEMORY:
        raise MemoryError("no memory to match the tokens of a question")
    if status == BEYOND:
        raise ValueError("runs reach beyond the tokens or the results")
