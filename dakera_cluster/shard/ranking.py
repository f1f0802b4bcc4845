"""Candidate lists and their fusion: vectors, BM25, or both.

Scores are deterministic functions of the rows; ties go to the smaller id, never to a slot, because slots depend on the
order of arrival and replicas hear of rows in different orders. Called by `shard.search`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dakera_cluster.index.flat import Metric
from dakera_cluster.shard.ops import Fusion, Mode, Search
from dakera_cluster.shard.view import Mask, NamespaceView

HYBRID_CANDIDATES = 100
"""Candidates a list contributes to fusion at least: with fewer, the fused head would depend on k."""
CANDIDATES_PER_RESULT = 3

Slots = np.ndarray[Any, np.dtype[np.int64]]
Scores = np.ndarray[Any, np.dtype[np.float64]]


class Ranked:
    """Slots best first with their fused score and, where known, the score of each list (NaN when not)."""

    __slots__ = ("scores", "slots", "text", "vector")

    def __init__(self, slots: Slots, scores: Scores, vector: Scores, text: Scores) -> None:
        self.slots, self.scores, self.vector, self.text = slots, scores, vector, text


def rank(view: NamespaceView, request: Search, allowed: Mask | None) -> Ranked:
    """The best ``request.k`` of the view. ``allowed`` None allows every live document."""
    query = np.frombuffer(request.vector, dtype="<f4") if request.vector is not None else None
    if request.mode is Mode.VECTOR and query is not None:
        slots, scores = vector_candidates(view, query, request.k, allowed, request.metric, exact=request.exact)
        return _cut(view, slots, scores, scores, np.full(len(slots), np.nan), request.k)
    if request.mode is Mode.TEXT or query is None or view.vectors is None:
        found, bm25 = view.text.search(request.text or "", request.k, allowed)
        return _cut(view, found.astype(np.int64), bm25.astype(np.float64), np.full(len(found), np.nan), bm25, request.k)
    return _hybrid(view, request, query, allowed)


def vector_candidates(
    view: NamespaceView, query: Any, k: int, allowed: Mask | None, metric: str | None, *, exact: bool
) -> tuple[Slots, Scores]:
    """Nearest neighbours; a metric other than the namespace's own is computed exactly over what is allowed."""
    if view.vectors is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    wanted = Metric.of(metric, "distance_metric") if metric is not None else None
    slots, scores = view.vectors.search(query, k, allowed, exact=exact, metric=wanted)
    return slots, scores.astype(np.float64)


def _hybrid(view: NamespaceView, request: Search, query: Any, allowed: Mask | None) -> Ranked:
    depth = max(HYBRID_CANDIDATES, CANDIDATES_PER_RESULT * request.k)
    near, near_scores = vector_candidates(view, query, depth, allowed, request.metric, exact=request.exact)
    said, said_scores = view.text.search(request.text or "", depth, allowed)
    slots = np.union1d(near, said).astype(np.int64)
    if request.fusion is Fusion.RRF:
        vector, text = _scatter(slots, near, near_scores), _scatter(slots, said.astype(np.int64), said_scores)
        fused = request.vector_weight * _reciprocal(view, slots, vector, request.rrf_k) + (
            1 - request.vector_weight
        ) * _reciprocal(view, slots, text, request.rrf_k)
        return _cut(view, slots, fused, vector, text, request.k)
    # Every candidate gets its true score on both sides: a document that one list missed is not a document that scores 0.
    vector = np.full(len(slots), np.nan)
    if view.vectors is not None:
        vector = view.vectors.scores(query, slots).astype(np.float64)
    text = view.text.scores(request.text or "", slots).astype(np.float64)
    fused = request.vector_weight * _minmax(vector) + (1 - request.vector_weight) * _minmax(text)
    return _cut(view, slots, fused, vector, text, request.k)


def _scatter(slots: Slots, found: Slots, scores: Any) -> Scores:
    values = np.full(len(slots), np.nan)
    values[np.searchsorted(slots, found)] = scores
    return values


def _reciprocal(view: NamespaceView, slots: Slots, scores: Scores, k: int) -> Scores:
    """1 / (k + rank) of each slot in its list, 0 when it is not in it (Cormack, Clarke, Buettcher 2009)."""
    values = np.zeros(len(slots))
    listed = np.flatnonzero(~np.isnan(scores))
    order = _order(view, slots[listed], scores[listed])
    values[listed[order]] = 1.0 / (k + 1 + np.arange(len(listed)))
    return values


def _minmax(scores: Scores) -> Scores:
    """Scores spread over [0, 1]; a document without one gets 0."""
    known = scores[~np.isnan(scores)]
    if not len(known):
        return np.zeros(len(scores))
    low, high = float(known.min()), float(known.max())
    if high <= low:
        return np.where(np.isnan(scores) | (scores == 0), 0.0, 1.0)
    return np.asarray(np.nan_to_num((scores - low) / (high - low), nan=0.0))


def _order(view: NamespaceView, slots: Slots, scores: Scores) -> Slots:
    """Positions best first: by score, ties by id."""
    ids = np.array([view.ids[slot] for slot in slots.tolist()], dtype=object)
    if len(np.unique(scores)) == len(scores):
        return np.asarray(np.argsort(-scores, kind="stable"))
    by_id = np.argsort(ids, kind="stable")
    return np.asarray(by_id[np.argsort(-scores[by_id], kind="stable")])


def _cut(view: NamespaceView, slots: Slots, scores: Scores, vector: Scores, text: Any, k: int) -> Ranked:
    order = _order(view, slots, scores)[:k]
    return Ranked(slots[order], scores[order], vector[order], np.asarray(text, dtype=np.float64)[order])
