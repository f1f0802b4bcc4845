"""A pool of candidates, cut to the best of them by how well the words of a question find their like in them. Called by
retrieval/late.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.late import TOO_MANY, WITHOUT_TOKENS, Query, Stored, done
from dakera_cluster.native.library import allocated, given, kernels

FOUND_COLUMNS = 5
"""What is known of a candidate: fused score, cosine, BM25, coverage and window."""
COLUMNS = FOUND_COLUMNS + 2
"""The same and the late score, as a whole and that of the first passage."""
COSINE, LATE = 1, FOUND_COLUMNS


class Pool:
    """The best of some candidates: ``slots`` int64[m], ``columns`` float64[COLUMNS, m] and ``best`` float32[t, m], what each token
    of the question found. They come first in the ``order`` (int64[n]: places) of the whole pool by ``level`` (float64[n] by
    place). ``struct``: those of the best, for kernels."""

    __slots__ = ("_room", "_size", "best", "columns", "held", "slots", "struct")

    def __init__(self, tokens: int, size: int, kept: int) -> None:
        """Room for the ``kept`` best of ``size``, for a kernel to fill."""
        start = 2 * size
        stop = start + COLUMNS * kept
        self._size = size
        self._room = room = np.empty(stop + kept + (tokens * kept + 1) // 2)
        self.columns = room[start:stop].reshape(COLUMNS, kept)
        self.slots: NDArray[np.int64] = room[stop : stop + kept].view(np.int64)
        self.best: NDArray[np.float32] = room[stop + kept :].view(np.float32)[: tokens * kept].reshape(tokens, kept)
        self.held = given(room, np.float64)
        self.struct = allocated("pool_memories", 1)

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def level(self) -> NDArray[np.float64]:
        return self._room[: self._size]

    @property
    def order(self) -> NDArray[np.int64]:
        return self._room[self._size : 2 * self._size].view(np.int64)

    @property
    def late(self) -> NDArray[np.float64]:
        """float64[m]: the late scores."""
        return np.asarray(self.columns[LATE])


def cut(
    query: Query,
    slots: NDArray[np.int64],
    columns: NDArray[np.float64],
    best: NDArray[np.float32],
    first: NDArray[np.float64],
    share: float,
    keys: NDArray[np.uint64],
    kept: int,
) -> Pool:
    """The ``kept`` best of a pool, the first n of some candidates (``slots`` int64[c], ``columns`` float64[FOUND_COLUMNS, c]), by
    their fused scores and ``share`` times their late ones, the weighted ``best`` (float32[t, n]), both scaled; ties by
    ``keys`` (by slot). ``first``: float64[n], of the first passage. Raises ValueError for a slot without a key."""
    size = len(first)
    _check(slots, columns, size)
    if best.shape != (len(query), size):
        raise ValueError("the arrays of a pool do not fit together")
    kept = min(kept, size)
    pool = Pool(len(query), size, kept)
    status = kernels.cut_pool(
        query.struct,
        given(slots, np.int64),
        given(columns, np.float64),
        len(slots),
        size,
        given(best, np.float32),
        given(first, np.float64),
        share,
        given(keys, np.uint64),
        len(keys),
        kept,
        pool.held,
        pool.struct,
    )
    done(status)
    return pool


def matched(
    query: Query,
    stored: Stored,
    slots: NDArray[np.int64],
    columns: NDArray[np.float64],
    size: int,
    most_exact: int,
    most: int,
    share: float,
    keys: NDArray[np.uint64],
    kept: int,
) -> Pool | None:
    """``cut`` of the first ``size`` candidates, matched as by ``late.whole``. None when a memory has no tokens, or all have more
    than ``most``."""
    size = min(size, len(slots))
    _check(slots, columns, size)
    if stored.struct[0].width != query.width:
        raise ValueError("tokens of another width")
    kept = min(kept, size)
    pool = Pool(len(query), size, kept)
    status = kernels.cut_matched(
        query.struct,
        stored.struct,
        given(slots, np.int64),
        given(columns, np.float64),
        len(slots),
        size,
        most_exact,
        most,
        share,
        given(keys, np.uint64),
        len(keys),
        kept,
        pool.held,
        pool.struct,
    )
    if status in (TOO_MANY, WITHOUT_TOKENS):
        return None
    done(status)
    return pool


def _check(slots: NDArray[np.int64], columns: NDArray[np.float64], size: int) -> None:
    if columns.shape != (FOUND_COLUMNS, len(slots)) or size > len(slots):
        raise ValueError("the arrays of a pool do not fit together")
