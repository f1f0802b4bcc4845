"""First stage: which memories are worth a closer look, and in what order.

Lists: vectors (and passages), BM25, the entity pass, the neighbours of what the words found, and a further vector pass for
each extra iteration. They are fused (min-max or reciprocal ranks) together with the words of each candidate's window.
Everything here is cheap a memory; its order decides only who enters the pool, unless reranking is off.

The lists have fixed sizes up to LIST_SIZE wanted results, so the order does not depend on how many are wanted; who wants
more gets longer lists. Called by the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.index.analysis import query_terms
from dakera_cluster.index.vectors import VectorIndex
from dakera_cluster.native import hits, windows
from dakera_cluster.retrieval import ties
from dakera_cluster.retrieval.entities import proper_nouns
from dakera_cluster.retrieval.lexical import WINDOW_B, WINDOW_K1, WordScores
from dakera_cluster.retrieval.options import Fusion, Options, Routing, Settings
from dakera_cluster.retrieval.query import QueryFeatures
from dakera_cluster.retrieval.temporal import QueryTime, day_closeness, month_match
from dakera_cluster.retrieval.view import RecallView

LIST_SIZE = 192
ENTITY_LIST_SIZE = 50
MAX_NAME_SHARE = 0.1
MAX_NAME_HOLDERS = 2_000
"""A name that more of the memories, or more memories, hold than this tells nothing, and its own pass would cost a scan."""
MAX_NAMES_KNOWN = 4_096
"""Names whose terms are kept: questions name the same few again and again."""
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
    """``slots``: int64[n], the best first. ``columns``: float64[5, n], parallel to them: ``fused`` (descending), ``cosine`` (NaN
    without a vector), ``bm25``, ``coverage`` and ``window``."""

    slots: NDArray[np.int64]
    columns: NDArray[np.float64]

    @property
    def fused(self) -> NDArray[np.float64]:
        return np.asarray(self.columns[0])

    @property
    def cosine(self) -> NDArray[np.float64]:
        return np.asarray(self.columns[1])

    @property
    def bm25(self) -> NDArray[np.float64]:
        return np.asarray(self.columns[2])

    @property
    def coverage(self) -> NDArray[np.float64]:
        return np.asarray(self.columns[3])

    @property
    def window(self) -> NDArray[np.float64]:
        return np.asarray(self.columns[4])

    def head(self, n: int) -> Candidates:
        """The first ``n``."""
        return Candidates(self.slots[:n], self.columns[:, :n])

    def at(self, places: NDArray[np.int64]) -> Candidates:
        """Those at ``places``."""
        return Candidates(self.slots[places], self.columns.take(places, axis=1))


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
    vectors = _comparable(view, query) if routing is not Routing.BM25 else None
    keys = view.evidence.whole_column("key")
    talk = view.evidence.talk
    rare = _rare_names(view, query.text, words)
    found = _NOTHING
    if routing is not Routing.VECTOR:
        found = windows.spread(
            talk,
            words.found.slots,
            words.found.bm25[1:],
            keys,
            size,
            allowed,
            SPREAD_FROM,
            SPREAD_REACH,
            WINDOW_WORDS // 2,
        )
    if vectors is None or query.vector is None:
        slots = np.unique(found)
        cosine = np.full(len(slots), np.nan)
    else:
        named = words.holding(rare) if settings.entity_vector_search else _NOTHING
        long = _by_passage(view, query.vector, size, allowed)
        others = np.concatenate([found, long]) if len(long) else found
        slots, cosine = vectors.survey(query.vector, keys, size, allowed, named, ENTITY_LIST_SIZE, others)
        for _ in range(1, options.iterations):
            slots = np.union1d(slots, _again(view, query.vector, vectors, slots, cosine, words, allowed))
            cosine = vectors.scores(query.vector, slots).astype(np.float64)
    how = _fusion(view, words, slots, cosine, rare, options, settings, routing, time)
    return Candidates(
        *windows.fused(
            talk, words.found, how, slots, cosine, WINDOW_REACH, WINDOW_WORDS // 2, WINDOW_K1, WINDOW_B, keys
        )
    )


_NOTHING = np.zeros(0, np.int64)


def _comparable(view: RecallView, query: QueryFeatures) -> VectorIndex | None:
    """The vectors, when the question's can be compared with them."""
    if query.vector is None or view.vectors is None or view.vectors.dimension != len(query.vector):
        return None
    return view.vectors


def _by_passage(view: RecallView, vector: NDArray[np.float32], size: int, allowed: Mask | None) -> NDArray[np.int64]:
    """The long memories whose passages are nearest."""
    long, scores = view.evidence.passage_hits(vector, size, allowed)
    return long[ties.best(scores, view.evidence.keys(long), size)] if len(long) else long


def _rare_names(view: RecallView, question: str, words: WordScores) -> list[int]:
    """The rows of the terms that are rare names of the question."""
    limit = min(MAX_NAME_SHARE * len(view.text), MAX_NAME_HOLDERS)
    named = {term for name in proper_nouns(question) for term in _terms_of(name)}
    return [row for row, term in enumerate(words.terms) if term in named and 0 < words.holders[row] <= limit]


@lru_cache(MAX_NAMES_KNOWN)
def _terms_of(name: str) -> tuple[str, ...]:
    return tuple(query_terms(name))


def _again(
    view: RecallView,
    vector: NDArray[np.float32],
    vectors: VectorIndex,
    slots: NDArray[np.int64],
    cosine: NDArray[np.float64],
    words: WordScores,
    allowed: Mask | None,
) -> NDArray[np.int64]:
    """What lies near the question moved towards the best memories so far."""
    if not len(slots):
        return _NOTHING
    keys = view.evidence.whole_column("key")
    score = ties.scaled(cosine) + ties.scaled(words.at(slots)[0])
    near = vectors.vectors(slots[hits.best(slots, score, keys, FEEDBACK_MEMORIES)])
    near = near[~np.isnan(near).any(axis=1)]
    if not len(near):
        return _NOTHING
    moved = ((1 - FEEDBACK_SHARE) * vector + FEEDBACK_SHARE * near.mean(axis=0)).astype(np.float32)
    others = _by_passage(view, moved, ENTITY_LIST_SIZE, allowed)
    return vectors.survey(moved, keys, ENTITY_LIST_SIZE, allowed, _NOTHING, 0, others)[0]


def _fusion(
    view: RecallView,
    words: WordScores,
    slots: NDArray[np.int64],
    cosine: NDArray[np.float64],
    rare: list[int],
    options: Options,
    settings: Settings,
    routing: Routing,
    time: QueryTime | None,
) -> windows.Fusion:
    """What the candidates' scores are made of."""
    factors = None
    if time is not None and time.is_bound and settings.temporal_inference:
        when = view.evidence.column("when", slots)
        near = np.maximum(day_closeness(when, time), month_match(when, time))
        factors = np.asarray(1 + settings.temporal_mult_beta * (near - 0.5), np.float64)
    if routing is not Routing.HYBRID:
        by_vector = float(routing is Routing.VECTOR)
        return windows.Fusion(by_vector, 1 - by_vector, 0.0, factors=factors)
    weight = 0.5 if options.vector_weight is None else options.vector_weight
    given = None
    if options.fusion is Fusion.RRF:
        bm25, _ = words.at(slots)
        said = np.where(bm25 > 0, bm25, np.nan)
        given = weight * _reciprocal(cosine, slots, view, settings)
        given += (1 - weight) * _reciprocal(said, slots, view, settings)
    by_window = WINDOW_WEIGHT if options.fusion is None else 0.0
    return windows.Fusion(weight, 1 - weight, by_window, settings.name_boost, rare, given, factors)


def _reciprocal(
    scores: NDArray[np.float64], slots: NDArray[np.int64], view: RecallView, settings: Settings
) -> NDArray[np.float64]:
    """(k + 1) / (k + rank), so that the first of a list has 1; 0 for what the list does not hold."""
    result = np.zeros(len(scores))
    held = np.flatnonzero(~np.isnan(scores))
    order = held[ties.ordered(scores[held], view.evidence.keys(slots[held]))]
    result[order] = (settings.rrf_k + 1) / (settings.rrf_k + 1 + np.arange(len(order)))
    return result
