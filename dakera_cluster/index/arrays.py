"""Arrays addressed by slot that grow as slots appear.

Slots are dense, so a view keeps plain numpy arrays indexed by slot; an untouched view holds arrays of length zero and
costs nothing. Growth is geometric while small and by an eighth when large, so that a namespace of a million rows does
not carry a second, empty half. Called by the views of this package only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FIRST_SLOTS = 16
DOUBLE_UP_TO_SLOTS = 4096


def room_for(length: int, capacity: int) -> int:
    """The capacity to hold ``length`` items, given that ``capacity`` was not enough."""
    if capacity < DOUBLE_UP_TO_SLOTS:
        return max(FIRST_SLOTS, length, 2 * capacity)
    return max(length, capacity + capacity // 8)


def grown(array: np.ndarray, length: int, fill: Any = 0) -> np.ndarray:
    """``array`` itself when it already has ``length`` items, else a larger copy whose new items are ``fill``."""
    if length <= len(array):
        return array
    larger = np.full((room_for(length, len(array)), *array.shape[1:]), fill, dtype=array.dtype)
    larger[: len(array)] = array
    return larger


def allows(allowed: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """``allowed[slots]`` where a slot past the end of the mask counts as not allowed."""
    if len(allowed) == 0:
        return np.zeros(len(slots), dtype=bool)
    if len(slots) and int(slots.max()) >= len(allowed):
        inside = slots < len(allowed)
        return np.asarray(inside & allowed[np.where(inside, slots, 0)])
    result: np.ndarray = allowed[slots]
    return result


def best(scores: np.ndarray, slots: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` best of parallel arrays, by score descending, then slot ascending: ``(slots, scores)``."""
    if k < len(scores):
        # Everything that ties with the k-th score stays in, or the cut would depend on the input's order.
        floor = np.partition(scores, len(scores) - k)[len(scores) - k]
        keep = scores >= floor
        scores, slots = scores[keep], slots[keep]
    order = np.lexsort((slots, -scores))[:k]
    return slots[order], scores[order]
