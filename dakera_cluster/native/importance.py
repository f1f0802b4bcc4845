"""How important memories are, and what that adds to their relevance. Called by retrieval/engine.py and pool.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import OverArrays, filled, given, kernels


class Importance(OverArrays):
    """By slot: as ``stored`` (float32, 0 to 1), and Unix times of creation (``created``: int64, s) and last access
    (``accessed_ms``: int64)."""

    def __init__(self, stored: NDArray[np.float32], created: NDArray[np.int64], accessed_ms: NDArray[np.int64]) -> None:
        self.arrays = (stored, created, accessed_ms)
        self._kept = given(stored, np.float32), given(created, np.int64), given(accessed_ms, np.int64)
        self.struct = filled("importance_columns *", (*self._kept, min(len(stored), len(created), len(accessed_ms))))


Valuation = tuple[float, float, float, float]
"""``(now, half life, weight, ordinary)``: importance adds ``weight`` times how far it is from the ``ordinary`` one, in hundredths,
as it is left now (Unix s) when half of it goes in each half life (s, 0 for no decay) since the creation or last access."""


def add(importance: Importance, value: Valuation, slots: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
    """Add what the importance of ``slots`` (int64[n]) does to ``sums`` (float64[n]). Raises ValueError for a slot beyond the
    columns."""
    if len(sums) != len(slots):
        raise ValueError("the arrays of sums do not fit together")
    status = kernels.add_importance(
        importance.struct, filled("valuation *", value), given(slots, np.int64), len(slots), given(sums, np.float64)
    )
    if status:
        raise ValueError("slots reach beyond the columns")
