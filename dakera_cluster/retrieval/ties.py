"""Orders and cuts that do not depend on slots. Called by every step that cuts.

Inside the engine equal scores are told apart by a hash of the row id (``Evidence.keys``): one number a memory, the same on
every replica and quick to compare. What the caller sees is put in order by the id itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native import order as native


def ordered(scores: NDArray[np.floating], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Positions by score descending, then key."""
    return native.best(np.asarray(scores, np.float64), keys, len(scores))


def best(scores: NDArray[np.floating], keys: NDArray[np.uint64], k: int) -> NDArray[np.int64]:
    """The positions of the ``k`` best, in order."""
    return native.best(np.asarray(scores, np.float64), keys, k)


def settled(
    order: NDArray[np.int64], scores: NDArray[np.floating], slots: NDArray[np.int64], ids: Sequence[str]
) -> NDArray[np.int64]:
    """``order`` (positions by score descending) with every run of equal scores in the order of the row ids."""
    ranked = scores[order]
    differ = ranked[1:] != ranked[:-1]
    if differ.all():
        return order
    edges = [0, *(np.flatnonzero(differ) + 1).tolist(), len(order)]
    order = order.copy()
    for start, stop in pairwise(edges):
        if stop - start > 1:
            run = order[start:stop].tolist()
            order[start:stop] = sorted(run, key=lambda position: ids[int(slots[position])])
    return order


def scaled(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Min-max to 0..1; all zero when there is nothing to tell apart. NaN counts as the minimum."""
    return np.asarray(all_scaled(values)[0])


def all_scaled(*values: NDArray[np.floating]) -> NDArray[np.float64]:
    """``scaled`` of arrays of one length, as rows."""
    rows = np.array(values, np.float64)
    native.scale_rows(rows, np.ones(len(rows), np.bool_))
    return rows
