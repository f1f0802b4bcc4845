"""Results as a set: for questions that need several memories, the list should cover the question's words together.

A greedy pass over the head of the ranking: next comes the memory whose relevance plus what it adds to the words covered so
far is greatest (the submodular coverage of Lin and Bilmes 2011). Each choice depends on the ones before it only, so the
first ten of a list of fifty are the list of ten. Called by the engine for multi-hop and comparing questions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DEPTH = 30
"""Places the pass orders; what comes later keeps its order."""
GAIN = 1.0
"""Relevance that a word covered for the first time, weighing all of the question's idf, is worth."""


def covering(
    order: NDArray[np.int64], relevance: NDArray[np.float64], best: NDArray[np.float32], weights: NDArray[np.float64]
) -> NDArray[np.int64]:
    """``order`` (positions by relevance) with its head made covering. ``relevance``: float64[n] by position; ``best``:
    float32[t, n], what each question token found; ``weights``: float64[t]."""
    head = order[:DEPTH]
    if len(head) < 2 or not len(weights):
        return order
    found = np.maximum(best[:, head].astype(np.float64), 0.0)
    covered = np.zeros(len(weights))
    left = list(range(len(head)))
    chosen: list[int] = []
    while left:
        added = np.maximum(found[:, left] - covered[:, None], 0.0) * weights[:, None]
        # cumsum adds row by row: a sum whose order no library may change.
        gains = relevance[head[left]] + GAIN * np.cumsum(added, axis=0)[-1]
        # The head is in order of relevance and id, so the first maximum is the one to take.
        pick = left.pop(int(np.argmax(gains)))
        chosen.append(pick)
        covered = np.maximum(covered, found[:, pick])
    return np.concatenate([head[chosen], order[DEPTH:]])
