"""Rows in fixed point in chunks of 64, as kernels read them."""

from __future__ import annotations

import numpy as np

from dakera_cluster.native import vectors

CHUNK_ROWS = 64


def rows_of(
    values: np.ndarray, scales: np.ndarray | None = None, present: np.ndarray | None = None
) -> tuple[list[np.ndarray], vectors.Rows]:
    """``values``: int16[n, d]. All are present and of scale 1 unless told otherwise. The first part must outlive the second."""
    parts = [np.stack(vectors.split(values[at : at + CHUNK_ROWS])) for at in range(0, len(values), CHUNK_ROWS)]
    high = np.array([part[0].ctypes.data for part in parts], np.uint64)
    low = np.array([part[1].ctypes.data for part in parts], np.uint64)
    present = np.ones(len(values), bool) if present is None else present
    scales = np.ones(len(values), np.float32) if scales is None else scales
    return parts, vectors.Rows(high, low, CHUNK_ROWS, values.shape[1], present, scales)
