"""Products of a query with rows in 16-bit fixed point, which lie as planes of high and low bytes. Called by index/flat.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import NULL, given, kernels


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
    slot lies in a chunk. Raises MemoryError.
    """
    count = min(len(present), len(scales)) if allowed is None else min(len(present), len(scales), len(allowed))
    size = max(0, min(wanted, count))
    slots, scores = np.empty(size, np.int64), np.empty(size, np.float32)
    found = kernels.nearest(
        *_rows(planes, present, allowed, scales, query),
        count,
        given(query, np.float32),
        size,
        given(slots, np.int64),
        given(scores, np.float32),
    )
    if found < 0:
        raise MemoryError(f"no memory to scan {count} rows")
    return slots[:found], scores[:found]


def survey(
    planes: Planes,
    present: NDArray[np.bool_],
    allowed: NDArray[np.bool_] | None,
    scales: NDArray[np.float32],
    query: NDArray[np.float32],
    keys: NDArray[np.uint64],
    wanted: int,
    held: NDArray[np.int64],
    wanted_held: int,
    others: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """``(slots int64[m] ascending, cosines float64[m])`` of the ``wanted`` nearest, as by ``nearest`` but with ties broken by
    key, of the ``wanted_held`` nearest among ``held``, and of ``others``, whether allowed or not. Slots
    without a row have NaN. ``keys``: by slot, like ``scales``. Raises MemoryError."""
    known = min(len(present), len(scales))
    count = min(known, len(keys)) if allowed is None else min(known, len(keys), len(allowed))
    wanted, wanted_held = max(0, min(wanted, count)), max(0, min(wanted_held, len(held)))
    slots = np.empty(wanted + wanted_held + len(others), np.int64)
    cosines = np.empty(len(slots))
    found = kernels.survey(
        *_rows(planes, present, allowed, scales, query),
        count,
        known,
        given(query, np.float32),
        given(keys, np.uint64),
        wanted,
        given(held, np.int64),
        len(held),
        wanted_held,
        given(others, np.int64),
        len(others),
        given(slots, np.int64),
        given(cosines, np.float64),
    )
    if found < 0:
        raise MemoryError(f"no memory to survey {known} rows")
    return slots[:found], cosines[:found]


def _rows(
    planes: Planes,
    present: NDArray[np.bool_],
    allowed: NDArray[np.bool_] | None,
    scales: NDArray[np.float32],
    query: NDArray[np.float32],
) -> tuple[Any, ...]:
    return (
        given(planes.high, np.uint64),
        given(planes.low, np.uint64),
        planes.chunk_rows,
        len(query),
        given(present, np.bool_),
        NULL if allowed is None else given(allowed, np.bool_),
        given(scales, np.float32),
    )
