"""Dot products of a query with rows in 16-bit fixed point. Called by index/flat.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import NULL, given, kernels


def scan(rows: NDArray[np.int16], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[n]: the product of each row of int16[n, d] with ``query`` (float32[d])."""
    count, width = rows.shape
    if query.shape != (width,):
        raise ValueError(f"expected a query of {width} components, got {query.shape}")
    dots = np.empty(count, np.float32)
    kernels.dots_scan(given(rows, np.int16), count, width, given(query, np.float32), given(dots, np.float32))
    return dots


def gather(
    chunks: NDArray[np.uint64], chunk_rows: int, slots: NDArray[np.int64], query: NDArray[np.float32]
) -> NDArray[np.float32]:
    """float32[n]: the same for the rows at ``slots``, which lie in chunks of ``chunk_rows`` rows at the addresses ``chunks``.

    The caller vouches for the addresses and for every slot lying in a chunk."""
    dots = np.empty(len(slots), np.float32)
    kernels.dots_gather(
        given(chunks, np.uint64),
        chunk_rows,
        given(slots, np.int64),
        len(slots),
        len(query),
        given(query, np.float32),
        given(dots, np.float32),
    )
    return dots


def nearest(
    chunks: NDArray[np.uint64],
    chunk_rows: int,
    present: NDArray[np.bool_],
    allowed: NDArray[np.bool_] | None,
    scales: NDArray[np.float32],
    query: NDArray[np.float32],
    wanted: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """``(slots int64[m], cosines float32[m])`` of the ``wanted`` best present and allowed slots, by cosine, then slot.

    ``present``, ``allowed`` and ``scales`` are by slot; what lies past the end of a mask is not chosen. The caller vouches for
    the addresses as in ``gather``."""
    count = min(len(present), len(scales)) if allowed is None else min(len(present), len(scales), len(allowed))
    size = max(0, min(wanted, count))
    slots, scores = np.empty(size, np.int64), np.empty(size, np.float32)
    found = kernels.nearest(
        given(chunks, np.uint64),
        chunk_rows,
        given(present, np.bool_),
        NULL if allowed is None else given(allowed, np.bool_),
        count,
        len(query),
        given(scales, np.float32),
        given(query, np.float32),
        size,
        given(slots, np.int64),
        given(scores, np.float32),
    )
    return slots[:found], scores[:found]
