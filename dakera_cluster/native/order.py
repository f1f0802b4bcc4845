"""Orders by score and key, and min-max scaling. Called by retrieval/ties.py and model.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import given, kernels


def best(scores: NDArray[np.float64], keys: NDArray[np.uint64], wanted: int) -> NDArray[np.int64]:
    """The positions of the ``wanted`` best, in order: score descending (NaN last), then key, then position."""
    if len(keys) != len(scores):
        raise ValueError(f"{len(scores)} scores, but {len(keys)} keys")
    order = np.empty(max(0, min(wanted, len(scores))), np.int64)
    found = kernels.order_best(
        given(scores, np.float64), given(keys, np.uint64), len(scores), len(order), given(order, np.int64)
    )
    if found < 0:
        raise MemoryError(f"no memory to order {len(scores)} scores")
    return order


def scale_rows(values: NDArray[np.float64], wanted: NDArray[np.bool_]) -> None:
    """Min-max each ``wanted`` row of float64[r, n] to 0..1 in place; 0 where nothing differs. NaN counts as the minimum."""
    if len(wanted) != len(values):
        raise ValueError(f"{len(values)} rows, but {len(wanted)} flags")
    kernels.scale_rows(given(values, np.float64), given(wanted, np.bool_), *values.shape)


def weighted_rows(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[n]: the sum of the rows of float64[r, n], each times its weight, added row by row; rows of weight 0 are left out,
    whatever they hold."""
    if len(weights) != len(values):
        raise ValueError(f"{len(values)} rows, but {len(weights)} weights")
    sums = np.empty(values.shape[1])
    kernels.weighted_rows(given(values, np.float64), given(weights, np.float64), *values.shape, given(sums, np.float64))
    return sums


def ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """int64[n]: how many of the values are greater than each."""
    ahead = np.empty(len(values), np.int64)
    kernels.ranks(given(values, np.float64), len(values), given(ahead, np.int64))
    return ahead
