"""MaxSim of a question's tokens over stored sign bits. Called by retrieval/late.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import given, kernels

MAX_WIDTH = 4096
MAX_TOKENS = 64
MAX_STEP = 2047
"""Largest component of a question's token: sixteen of them stay within 16 bits."""

Runs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""``(begins, lengths, owners)``: rows of signs matched on their own, and whose they are; those of one owner together."""


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
    width = 8 * signs.shape[1]
    _check(width, len(steps), steps.shape[1] == width, signs, runs, best, first)
    status = kernels.late_exact(
        *_stored(signs, runs),
        given(steps, np.int16),
        len(steps),
        given(sums, np.float64),
        given(scales, np.float64),
        given(weights, np.float64),
        given(best, np.float32),
        given(first, np.float64),
        len(first),
    )
    if status < 0:
        raise MemoryError(f"no memory to match {len(runs[0])} runs")


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
    _check(width, len(query), query.shape[1] == signs.shape[1], signs, runs, best, first)
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
    """float64[n]: the weighted sum over tokens of what the first n columns of ``best`` (float32[t, m]) found, or ``share`` of
    what the columns ``places`` (int64[n, w], where ``inside``) did."""
    count, width = places.shape
    if len(best) > MAX_TOKENS or inside.shape != places.shape or count > best.shape[1]:
        raise ValueError("the arrays of a cover do not fit together")
    cover = np.empty(count)
    kernels.lent_cover(
        given(np.ascontiguousarray(best.T), np.float32),
        len(best),
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
    return given(signs, np.uint8), 8 * signs.shape[1], *(given(part, np.int64) for part in runs), len(runs[0])


def _check(
    width: int,
    tokens: int,
    fits: bool,
    signs: NDArray[np.uint8],
    runs: Runs,
    best: NDArray[np.float32],
    first: NDArray[np.float64],
) -> None:
    begins, lengths, owners = runs
    if width > MAX_WIDTH or tokens > MAX_TOKENS or not fits or best.shape != (tokens, len(first)):
        raise ValueError(f"{tokens} tokens of width {width} do not fit the kernel or the arrays given")
    if len(begins) and (int((begins + lengths).max()) > len(signs) or int(owners.max()) >= len(first)):
        raise ValueError("runs reach beyond the tokens or the results")
