"""Products of a query with rows in 16-bit fixed point, which lie as planes of high and low bytes. Called by index/flat.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import NULL, filled, given, kernels


class Rows:
    """Rows of ``width`` components. ``high``, ``low``: addresses (uint64 by chunk, 0 for none) of the high (int8[rows, d]) and of
    the low bytes (uint8[rows, d]) of chunks of ``chunk_rows`` rows; whoever makes one vouches for them. ``present`` (every such
    slot lies in a chunk) and ``scales`` are by slot; what lies past the end of one of them is not there. Good for as
    long as its arrays are the owner's."""

    def __init__(
        self,
        high: NDArray[np.uint64],
        low: NDArray[np.uint64],
        chunk_rows: int,
        width: int,
        present: NDArray[np.bool_],
        scales: NDArray[np.float32],
    ) -> None:
        self.width, self.known = width, min(len(present), len(scales))
        kept = given(high, np.uint64), given(low, np.uint64), given(present, np.bool_), given(scales, np.float32)
        self._kept = kept
        self.struct = filled("vector_rows *", (*kept, chunk_rows, width, self.known))


def split(values: NDArray[np.int16]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The high bytes (as they lie in memory: to be read as signed) and the low bytes."""
    bits = values.view(np.uint16)
    return (bits >> 8).astype(np.uint8), (bits & 0xFF).astype(np.uint8)


def joined(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.int16]:
    """The values of two planes."""
    return ((high.astype(np.uint16) << 8) | low).view(np.int16)


def gather(rows: Rows, slots: NDArray[np.int64], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[n]: the product of ``query`` (float32[d]) with the row at each of ``slots``, all of which lie in a chunk."""
    _check(rows, query)
    dots = np.empty(len(slots), np.float32)
    kernels.dots_gather(
        rows.struct, given(slots, np.int64), len(slots), given(query, np.float32), given(dots, np.float32)
    )
    return dots


def nearest(
    rows: Rows, allowed: NDArray[np.bool_] | None, query: NDArray[np.float32], wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """``(slots int64[m], cosines float32[m])`` of the ``wanted`` best present and allowed slots, by cosine, then slot; the
    cosine is ``gather``'s product times the row's scale. ``allowed`` is by slot, and ends the search. Raises MemoryError."""
    _check(rows, query)
    size = max(0, min(wanted, rows.known))
    slots, scores = np.empty(size, np.int64), np.empty(size, np.float32)
    found = kernels.nearest(
        rows.struct,
        NULL if allowed is None else given(allowed, np.bool_),
        0 if allowed is None else len(allowed),
        given(query, np.float32),
        size,
        given(slots, np.int64),
        given(scores, np.float32),
    )
    if found < 0:
        raise MemoryError(f"no memory to scan {rows.known} rows")
    return slots[:found], scores[:found]


def survey(
    rows: Rows,
    allowed: NDArray[np.bool_] | None,
    query: NDArray[np.float32],
    keys: NDArray[np.uint64],
    wanted: int,
    held: NDArray[np.int64],
    wanted_held: int,
    others: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """``(slots int64[m] ascending, cosines float64[m])`` of the ``wanted`` nearest, as by ``nearest`` but with ties broken by
    key, of the ``wanted_held`` nearest among ``held``, and of ``others``, whether allowed or not. Slots
    without a row have NaN. ``keys``: by slot, like ``allowed``. Raises MemoryError."""
    _check(rows, query)
    wanted, wanted_held = max(0, min(wanted, rows.known)), max(0, min(wanted_held, len(held)))
    slots = np.empty(wanted + wanted_held + len(others), np.int64)
    cosines = np.empty(len(slots))
    found = kernels.survey(
        rows.struct,
        NULL if allowed is None else given(allowed, np.bool_),
        0 if allowed is None else len(allowed),
        given(query, np.float32),
        given(keys, np.uint64),
        len(keys),
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
        raise MemoryError(f"no memory to survey {rows.known} rows")
    return slots[:found], cosines[:found]


def _check(rows: Rows, query: NDArray[np.float32]) -> None:
    if len(query) != rows.width:
        raise ValueError(f"a query of {len(query)} components for rows of {rows.width}")
