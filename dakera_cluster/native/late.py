"""MaxSim of a question's tokens over stored sign bits. Called by retrieval/late.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import NULL, OverArrays, allocated, filled, given, kernels, seen

MAX_WIDTH = 4096
MAX_TOKENS = 64
MAX_STEP = 2047
"""Largest component of a question's token: sixteen of them stay within 16 bits."""
NO_MEMORY, BEYOND, TOO_MANY = -1, -2, -3

Runs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""``(begins, lengths, owners)``: rows of signs matched on their own, and whose they are; those of one owner together."""


class Cosines:
    """``values``: float32[d + 1], the similarity of vectors of width d by how many of their signs differ."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.width, self.values = len(values) - 1, given(values, np.float32)


class Query:
    """The tokens of a question, and what each weighs. ``vectors``: float32 or float16[t, d]; ``weights``: float64[t];
    ``cosines``: of its width. ``struct``: all of it, for kernels.

    Tokens are matched in whole steps (``steps``: int16[t, d]), the largest component of each at MAX_STEP of them; ``sums``:
    float64[t], of the steps; ``scales``: float64[t], what a step is worth in a similarity, which divides by the root of d;
    ``signs``: uint8[t, d / 8]. The first kernel that matches the question makes them. A component that is no number counts
    as 0."""

    __slots__ = ("_kept", "_room", "struct", "weights", "width")

    def __init__(self, vectors: NDArray[np.floating], weights: NDArray[np.float64], cosines: Cosines) -> None:
        tokens, width = vectors.shape
        if width % 8:
            raise ValueError(f"tokens of width {width} have no whole bytes of signs")
        if width > MAX_WIDTH or tokens > MAX_TOKENS or len(weights) != tokens or cosines.width != width:
            raise ValueError(f"{tokens} tokens of width {width} do not fit the kernel or the arrays given")
        self.weights, self.width = weights, width
        are_halves = vectors.dtype == np.float16
        held, weighing = given(vectors, np.float16 if are_halves else np.float32), given(weights, np.float64)
        self._room = room = allocated("uint8_t", 16 * tokens + 17 * (tokens * width // 8))
        self._kept = held, weighing, cosines
        measures = MAX_STEP, MAX_STEP * math.sqrt(width)
        self.struct = filled(
            "late_query *",
            (NULL, NULL, NULL, NULL, weighing, cosines.values, tokens, width, held, are_halves, *measures, room),
        )

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def sums(self) -> NDArray[np.float64]:
        return self._ready()[: 8 * len(self)].view(np.float64)

    @property
    def scales(self) -> NDArray[np.float64]:
        return self._ready()[8 * len(self) : 16 * len(self)].view(np.float64)

    @property
    def steps(self) -> NDArray[np.int16]:
        stop = len(self) * (16 + 2 * self.width)
        return self._ready()[16 * len(self) : stop].view(np.int16).reshape(len(self), self.width)

    @property
    def signs(self) -> NDArray[np.uint8]:
        return self._ready()[len(self) * (16 + 2 * self.width) :].reshape(len(self), self.width // 8)

    def _ready(self) -> NDArray[np.uint8]:
        kernels.late_ready(self.struct)
        return np.frombuffer(seen(self._room), np.uint8)


class Stored(OverArrays):
    """The tokens of memories: ``signs`` uint8[rows, d / 8]; by slot, ``starts`` (int64) and ``counts`` (int32) of their rows. Good
    for as long as its arrays are the owner's."""

    def __init__(self, signs: NDArray[np.uint8], starts: NDArray[np.int64], counts: NDArray[np.int32]) -> None:
        self.arrays = (signs, starts, counts)
        self._kept = given(signs, np.uint8), given(starts, np.int64), given(counts, np.int32)
        self.struct = allocated("token_rows", 1)
        own = self.struct[0]
        own.signs, own.starts, own.counts = self._kept
        own.rows, own.width, own.known = len(signs), 8 * signs.shape[1], min(len(starts), len(counts))


def whole(
    query: Query, stored: Stored, slots: NDArray[np.int64], most_exact: int, most: int
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]] | None:
    """``(best float32[t, n], first float64[n], seen bool[n])``: each of ``slots`` matched as one run of tokens:
    exactly while they hold at most ``most_exact`` tokens together, else by signs. None when they hold more than ``most``."""
    if stored.struct[0].width != query.width:
        raise ValueError("tokens of another width")
    best = np.empty((len(query), len(slots)), np.float32)
    first, seen = np.empty(len(slots)), np.empty(len(slots), np.bool_)
    status = kernels.late_whole(
        query.struct,
        stored.struct,
        given(slots, np.int64),
        len(slots),
        most_exact,
        most,
        given(best, np.float32),
        given(first, np.float64),
        given(seen, np.bool_),
    )
    if status == TOO_MANY:
        return None
    done(status)
    return best, first, seen


def exact(query: Query, stored: Stored, runs: Runs, best: NDArray[np.float32], first: NDArray[np.float64]) -> None:
    """Write ``best`` (float32[t, n]) and ``first`` (float64[n]) of the owners in ``runs``: the similarity of each token in the
    owner's best run, and the weighted sum in its first."""
    _matched(kernels.late_exact, query, stored, runs, best, first)


def estimated(query: Query, stored: Stored, runs: Runs, best: NDArray[np.float32], first: NDArray[np.float64]) -> None:
    """As ``exact``, from signs on both sides."""
    _matched(kernels.late_estimated, query, stored, runs, best, first)


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


def _matched(
    kernel: Any, query: Query, stored: Stored, runs: Runs, best: NDArray[np.float32], first: NDArray[np.float64]
) -> None:
    begins, lengths, owners = runs
    fits = stored.struct[0].width == query.width and len(begins) == len(lengths) == len(owners)
    if not fits or best.shape != (len(query), len(first)):
        raise ValueError("the question, the tokens and the arrays given do not fit together")
    done(
        kernel(
            query.struct,
            stored.struct,
            *(given(part, np.int64) for part in runs),
            len(begins),
            given(best, np.float32),
            given(first, np.float64),
            len(first),
        )
    )


def done(status: int) -> None:
    """Raise what a kernel of matching reports."""
    if status == NO_MEMORY:
        raise MemoryError("no memory to match the tokens of a question")
    if status == BEYOND:
        raise ValueError("runs reach beyond the tokens or the results")
