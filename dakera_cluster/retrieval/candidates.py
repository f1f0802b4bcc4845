"""First stage: which memories are worth a closer look, and in what order.

Lists: vectors (and passages), BM25, the entity pass, the neighbours of what the words found, and a further vector pass for
each extra iteration. They are fused (min-max or reciprocal ranks) together with the words of each candidate's window.
Everything here is cheap a memory; its order decides only who enters the pool, unless reranking is off.

The lists have fixed sizes up to LIST_SIZE wanted results, so the order does not depend on how many are wanted; who wants
more gets longer lists. Called by the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.index.vectors import VectorIndex
from dakera_cluster.retrieval import ties
from dakera_cluster.retrieval.context import neighbourhood
from dakera_cluster.retrieval.entities import proper_nouns
from dakera_cluster.retrieval.lexical import WordScores, window_scores
from dakera_cluster.retrieval.options import Fusion, Options, Routing, Settings
from dakera_cluster.retrieval.query import QueryFeatures
from dakera_cluster.retrieval.temporal import QueryTime, day_closeness, month_match
from dakera_cluster.retrieval.view import RecallView

LIST_SIZE = 192
TIE_ROOM = 64
"""Further vector results fetched so that equal scores at the end of the list can be told apart by id."""
ENTITY_LIST_SIZE = 50
MAX_NAME_SHARE = 0.1
MAX_NAME_HOLDERS = 2_000
"""A name that more of the memories, or more memories, hold than this tells nothing, and its own pass would cost a scan."""
SPREAD_FROM = 48
SPREAD_REACH = 4
WINDOW_REACH = 6
WINDOW_WORDS = 60
WINDOW_WEIGHT = 0.5
FEEDBACK_MEMORIES = 3
FEEDBACK_SHARE = 0.5

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Candidates:
    """``slots``: int64[n], the best first; ``fused``: float64[n], descending. Parallel to them ``cosine`` (float64[n], NaN
    without a vector), ``bm25``, ``coverage`` and ``window`` (float64[n])."""

    slots: NDArray[np.int64]
    fused: NDArray[np.float64]
    cosine: NDArray[np.float64]
    bm25: NDArray[np.float64]
    coverage: NDArray[np.float64]
    window: NDArray[np.float64]

    def head(self, n: int) -> Candidates:
        """The first ``n``."""
        return Candidates(
            self.slots[:n], self.fused[:n], self.cosine[:n], self.bm25[:n], self.coverage[:n], self.window[:n]
        )


def candidates(
    view: RecallView,
    query: QueryFeatures,
    words: WordScores,
    time: QueryTime | None,
    options: Options,
    settings: Settings,
    allowed: Mask | None,
) -> Candidates:
    """The fused candidates. ``time`` is given for temporal questions only: it turns the temporal factor on."""
    routing = options.routing
    has_vectors = query.vector is not None and view.vectors is not None and len(view.vectors) > 0
    if routing is Routing.AUTO:
        routing = Routing.HYBRID if has_vectors else Routing.BM25
    size = max(LIST_SIZE, options.k)
    holders = _holders(view, query.text, words)
    lists: list[NDArray[np.int64]] = []
    near = _NOTHING
    if routing is not Routing.BM25:
        near = _by_vector(view, query.vector, size, allowed)
        lists.append(near.slots)
        if settings.entity_vector_search:
            lists.append(_by_entity(view, query, holders, allowed))
    if routing is not Routing.VECTOR:
        by_words = _by_words(view, words, size, allowed)
        lists.append(by_words)
        lists.append(_beside(view, by_words[:SPREAD_FROM], allowed))
    slots = np.unique(np.concatenate(lists)) if lists else np.zeros(0, np.int64)
    for _ in range(1, options.iterations if routing is not Routing.BM25 else 1):
        slots = np.union1d(slots, _again(view, query, slots, words, allowed))
    cosine = _cosines(view, query, slots, near, routing)
    return _fused(view, words, slots, cosine, holders, time, options, settings, routing)


@dataclass(frozen=True, slots=True)
class _Near:
    """What a vector pass found: ``slots``: int64[n]; ``cosines``: float64[m] of the first m of them."""

    slots: NDArray[np.int64]
    cosines: NDArray[np.float64]


_NOTHING = _Near(np.zeros(0, np.int64), np.zeros(0))


def _by_vector(view: RecallView, vector: NDArray[np.float32] | None, size: int, allowed: Mask | None) -> _Near:
    if vector is None or view.vectors is None or view.vectors.dimension != len(vector):
        return _NOTHING
    found = _nearest(view, view.vectors, vector, size, allowed)
    long, long_scores = view.evidence.passage_hits(vector, size, allowed)
    if not len(long):
        return found
    long = long[ties.best(long_scores, view.evidence.keys(long), size)]
    return _Near(np.concatenate([found.slots, long]), found.cosines)


def _cosines(
    view: RecallView, query: QueryFeatures, slots: NDArray[np.int64], near: _Near, routing: Routing
) -> NDArray[np.float64]:
    """The cosine of each of ``slots`` (ascending), NaN without a vector. A row's cosine is the same on every path, so what
    the search for the nearest worked out is not worked out again."""
    cosine = np.full(len(slots), np.nan)
    vectors = view.vectors if routing is not Routing.BM25 else None
    if query.vector is None or vectors is None or vectors.dimension != len(query.vector):
        return cosine
    places = np.searchsorted(slots, near.slots[: len(near.cosines)])
    cosine[places] = near.cosines
    unknown = np.ones(len(slots), np.bool_)
    unknown[places] = False
    cosine[unknown] = vectors.scores(query.vector, slots[unknown])
    return cosine


def _nearest(
    view: RecallView, vectors: VectorIndex, vector: NDArray[np.float32], size: int, allowed: Mask | None
) -> _Near:
    """The ``size`` nearest. The index breaks ties by slot, so all that tie with the last one are fetched and cut by key."""
    fetch = size + TIE_ROOM
    while True:
        slots, scores = vectors.search(vector, fetch, allowed)
        if len(scores) < fetch or scores[-1] < scores[size - 1]:
            break
        fetch *= 4
    best = ties.best(scores, view.evidence.keys(slots), size)
    return _Near(slots[best], scores[best].astype(np.float64))


def _by_words(view: RecallView, words: WordScores, size: int, allowed: Mask | None) -> NDArray[np.int64]:
    # On floats, nonzero is several times slower than on the booleans of a comparison.
    hits = np.flatnonzero(words.bm25 > 0)
    if allowed is not None:
        hits = hits[(hits < len(allowed)) & allowed[np.minimum(hits, len(allowed) - 1)]] if len(allowed) else hits[:0]
    return hits[ties.best(words.bm25[hits], view.evidence.keys(hits), size)]


def _by_entity(
    view: RecallView, query: QueryFeatures, holders: list[NDArray[np.bool_]], allowed: Mask | None
) -> NDArray[np.int64]:
    """The nearest among the memories that hold a rare name of the question."""
    if not holders or view.vectors is None or query.vector is None or view.vectors.dimension != len(query.vector):
        return np.zeros(0, np.int64)
    mask = np.logical_or.reduce(holders)
    if allowed is not None:
        mask[: len(allowed)] &= allowed[: len(mask)]
        mask[len(allowed) :] = False
    if not mask.any():
        return np.zeros(0, np.int64)
    return _nearest(view, view.vectors, query.vector, ENTITY_LIST_SIZE, mask).slots


def _holders(view: RecallView, question: str, words: WordScores) -> list[NDArray[np.bool_]]:
    """For each rare name of the question, a mask by slot of the memories that hold it."""
    limit = min(MAX_NAME_SHARE * len(view.text), MAX_NAME_HOLDERS)
    named = {term for name in proper_nouns(question) for term in view.text.query_terms(name)}
    masks = [words.frequencies[row] > 0 for row, term in enumerate(words.terms) if term in named]
    return [mask for mask in masks if 0 < np.count_nonzero(mask) <= limit]


def _beside(view: RecallView, slots: NDArray[np.int64], allowed: Mask | None) -> NDArray[np.int64]:
    """The near neighbours of ``slots`` that share a window with them."""
    around = neighbourhood(view.evidence, slots, SPREAD_REACH)
    found = np.unique(around.slots[around.within(WINDOW_WORDS)]).astype(np.int64)
    if allowed is None:
        return found
    return found[(found < len(allowed)) & allowed[np.minimum(found, len(allowed) - 1)]] if len(allowed) else found[:0]


def _again(
    view: RecallView, query: QueryFeatures, slots: NDArray[np.int64], words: WordScores, allowed: Mask | None
) -> NDArray[np.int64]:
    """What lies near the question moved towards the best memories so far."""
    if query.vector is None or view.vectors is None or not len(slots):
        return np.zeros(0, np.int64)
    cosine = view.vectors.scores(query.vector, slots).astype(np.float64)
    score = ties.scaled(cosine) + ties.scaled(_at(words.bm25, slots))
    near = slots[ties.best(score, view.evidence.keys(slots), FEEDBACK_MEMORIES)]
    vectors = view.vectors.vectors(near)
    vectors = vectors[~np.isnan(vectors).any(axis=1)]
    if not len(vectors):
        return np.zeros(0, np.int64)
    moved = (1 - FEEDBACK_SHARE) * query.vector + FEEDBACK_SHARE * vectors.mean(axis=0)
    return _by_vector(view, moved.astype(np.float32), ENTITY_LIST_SIZE, allowed).slots


def _fused(
    view: RecallView,
    words: WordScores,
    slots: NDArray[np.int64],
    cosine: NDArray[np.float64],
    holders: list[NDArray[np.bool_]],
    time: QueryTime | None,
    options: Options,
    settings: Settings,
    routing: Routing,
) -> Candidates:
    bm25, coverage = _at(words.bm25, slots), _at(words.coverage, slots)
    around = neighbourhood(view.evidence, slots, WINDOW_REACH)
    window = window_scores(words, slots, around.slots, around.within(WINDOW_WORDS))
    by_vector, by_words, by_window = ties.all_scaled(cosine, bm25, window)
    if routing is Routing.VECTOR:
        fused = by_vector
    elif routing is Routing.BM25:
        fused = by_words
    else:
        weight = 0.5 if options.vector_weight is None else options.vector_weight
        if options.fusion is Fusion.RRF:
            fused = weight * _reciprocal(cosine, slots, view, settings) + (1 - weight) * _reciprocal(
                np.where(bm25 > 0, bm25, np.nan), slots, view, settings
            )
        else:
            fused = weight * by_vector + (1 - weight) * by_words
        if options.fusion is None:
            fused = fused + WINDOW_WEIGHT * by_window
        if settings.name_boost > 0 and holders:
            fused = fused + settings.name_boost * _named(holders, slots)
    if time is not None and time.is_bound and settings.temporal_inference:
        when = view.evidence.column("when", slots)
        near = np.maximum(day_closeness(when, time), month_match(when, time))
        fused = fused * (1 + settings.temporal_mult_beta * (near - 0.5))
    order = ties.ordered(fused, view.evidence.keys(slots))
    return Candidates(slots[order], fused[order], cosine[order], bm25[order], coverage[order], window[order])


def _reciprocal(
    scores: NDArray[np.float64], slots: NDArray[np.int64], view: RecallView, settings: Settings
) -> NDArray[np.float64]:
    """(k + 1) / (k + rank), so that the first of a list has 1; 0 for what the list does not hold."""
    result = np.zeros(len(scores))
    held = np.flatnonzero(~np.isnan(scores))
    order = held[ties.ordered(scores[held], view.evidence.keys(slots[held]))]
    result[order] = (settings.rrf_k + 1) / (settings.rrf_k + 1 + np.arange(len(order)))
    return result


def _named(holders: list[NDArray[np.bool_]], slots: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the question's rare names that each memory holds."""
    share = np.zeros(len(slots))
    for holding in holders:
        share += _at(holding, slots)
    return share / len(holders)


def _at(values: NDArray[Any], slots: NDArray[np.int64]) -> NDArray[np.float64]:
    inside = slots < len(values)
    return np.where(inside, values[np.where(inside, slots, 0)], 0.0) if len(values) else np.zeros(len(slots))
