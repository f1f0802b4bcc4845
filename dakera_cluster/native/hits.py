"""The best of scored slots. Called by retrieval/candidates.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import NULL, given, kernels


def best(
    slots: NDArray[np.int64],
    scores: NDArray[np.float64],
    keys: NDArray[np.uint64],
    wanted: int,
    allowed: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """The places of the ``wanted`` best of ``slots``, in order: score descending (NaN last), then key, then slot. ``keys`` and
    ``allowed`` are by slot; a slot past the end of ``allowed`` is not allowed. Raises ValueError for a slot without a key."""
    if len(slots) != len(scores):
        raise ValueError(f"{len(slots)} slots, but {len(scores)} scores")
    places = np.empty(max(0, min(wanted, len(slots))), np.int64)
    found = kernels.best_hits(
        given(slots, np.int64),
        given(scores, np.float64),
        len(slots),
        NULL if allowed is None else given(allowed, np.bool_),
        0 if allowed is None else len(allowed),
        given(keys, np.uint64),
        len(keys),
        len(places),
        given(places, np.int64),
    )
    if found == -1:
        raise MemoryError(f"no memory to order {len(slots)} slots")
    if found < 0:
        raise ValueError("a slot has no key")
    return places[:found]
