"""Results as a set: for questions that need several memories, the list should cover the question's words together.

A greedy pass over the head of the ranking: next comes the memory whose relevance plus what it adds to the words covered so
far is greatest (the submodular coverage of Lin and Bilmes 2011). Each choice depends on the ones before it only, so the
first ten of a list of fifty are the list of ten. Called by the engine for multi-hop and comparing questions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native import talk as native

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
    found = np.ascontiguousarray(np.maximum(best[:, head].T, 0.0), np.float64)
    # The head is in order of relevance and id, so the first of equals is the one to take.
    return np.concatenate([head[native.covering(relevance[head], found, GAIN * weights)], order[DEPTH:]])
