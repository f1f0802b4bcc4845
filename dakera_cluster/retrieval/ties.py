"""Orders and cuts that do not depend on slots: equal scores are told apart by row id. Called by every step that cuts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def ordered(scores: NDArray[np.floating], slots: NDArray[np.int64], ids: Sequence[str]) -> NDArray[np.int64]:
    """Positions by score descending, then row id."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    tied = np.flatnonzero(ranked[1:] == ranked[:-1])
    if not len(tied):
        return order
    # Only runs of equal scores are put in order by id: strings are slow to compare.
    start = 0
    while start < len(tied):
        stop = start
        while stop + 1 < len(tied) and tied[stop + 1] == tied[stop] + 1:
            stop += 1
        first, last = int(tied[start]), int(tied[stop]) + 2
        order[first:last] = sorted(order[first:last].tolist(), key=lambda position: ids[int(slots[position])])
        start = stop + 1
    return order


def best(scores: NDArray[np.floating], slots: NDArray[np.int64], k: int, ids: Sequence[str]) -> NDArray[np.int64]:
    """The positions of the ``k`` best, in order."""
    if k <= 0:
        return np.zeros(0, np.int64)
    if len(scores) > k:
        floor = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = np.flatnonzero(scores >= floor)
        return kept[ordered(scores[kept], slots[kept], ids)][:k]
    return ordered(scores, slots, ids)


def scaled(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Min-max to 0..1; all zero when there is nothing to tell apart. NaN counts as the minimum."""
    values = np.asarray(values, np.float64)
    known = values[~np.isnan(values)]
    if not len(known):
        return np.zeros(len(values))
    low, high = float(known.min()), float(known.max())
    if high <= low:
        return np.zeros(len(values))
    return np.asarray((np.where(np.isnan(values), low, values) - low) / (high - low))
