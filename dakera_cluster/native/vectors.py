"""Products of a query with rows in 16-bit fixed point, which lie as planes of high and low bytes. Called by index/flat.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import NULL, given, kernels

MAX_STEP = 32_767
_SUM_LIMIT = (2**31 - 1) / 128
"""What the steps of a query may add up to: times a high byte, the sum fits 32 bits."""


@dataclass(frozen=True, slots=True)
class Planes:
    """Where the rows lie: addresses (uint64 by chunk, 0 for none) of the high (int8[rows, d]) and of the low bytes
    (uint8[rows, d]) of chunks of ``chunk_rows`` rows. Whoever makes one vouches for the addresses."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    chunk_rows: int


def split(values: NDArray[np.int16]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The high bytes (as they lie in memory: to be read as signed) and the low bytes."""
    bits = values.view(np.uint16)
    return (bits >> 8).astype(np.uint8), (bits & 0xFF).astype(np.uint8)


def joined(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.int16]:
    """The values of two planes."""
    return ((high.astype(np.uint16) << 8) | low).view(np.int16)


def gather(planes: Planes, slots: NDArray[np.int64], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[n]: the product of ``query`` (float32[d]) with the row at each of ``slots``, all of which lie in a chunk."""
    dots = np.empty(len(slots), np.float32)
    kernels.dots_gather(
        given(planes.high, np.uint64),
        given(planes.low, np.uint64),
        planes.chunk_rows,
        given(slots, np.int64),
        len(slots),
        len(query),
        given(query, np.float32),
        given(dots, np.float32),
    )
    return dots


def nearest(
    planes: Planes,
    present: NDArray[np.bool_],
    allowed: NDArray[np.bool_] | None,
    scales: NDArray[np.float32],
    query: NDArray[np.float32],
    wanted: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """``(slots int64[m], cosines float32[m])`` of the ``wanted`` best present and allowed slots, by cosine, then slot; the
    cosine is ``gather``'s product times the row's scale.

    ``present``, ``allowed`` and ``scales`` are by slot; what lies past the end of one of them is not chosen, and every present
    slot lies in a chunk.
    """
    count = min(len(present), len(scales)) if allowed is None else min(len(present), len(scales), len(allowed))
    size = max(0, min(wanted, count))
    slots, scores = np.empty(size, np.int64), np.empty(size, np.float32)
    steps, step, offset, slack = _coarse(query)
    found = kernels.nearest(
        given(planes.high, np.uint64),
        given(planes.low, np.uint64),
        planes.chunk_rows,
        given(present, np.bool_),
        NULL if allowed is None else given(allowed, np.bool_),
        count,
        len(query),
        given(scales, np.float32),
        given(query, np.float32),
        given(steps, np.int16),
        step,
        offset,
        slack,
        size,
        given(np.empty(count, np.float32), np.float32),
        given(slots, np.int64),
        given(scores, np.float32),
    )
    return slots[:found], scores[:found]


def _coarse(query: NDArray[np.float32]) -> tuple[NDArray[np.int16], float, float, float]:
    """``(steps int16[d], step, offset, slack)``: sum(high * steps) * step + offset differs from the product with a row by at
    most ``slack``. The low bytes count as 128 there; they and the query's rounding are what is neglected."""
    wide = query.astype(np.float64)
    sizes = np.abs(wide)
    total, peak = float(sizes.sum()), float(sizes.max(initial=0.0))
    if peak == 0.0:
        return np.zeros(len(query), np.int16), 0.0, 0.0, 1.0
    per_unit = min(MAX_STEP / peak, (_SUM_LIMIT - len(query)) / total)
    rounding = 0.5 * len(query) * 2**15 / per_unit
    return np.rint(wide * per_unit).astype(np.int16), 256 / per_unit, 128 * float(wide.sum()), 128 * total + rounding
