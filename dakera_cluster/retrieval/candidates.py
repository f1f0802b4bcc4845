"""First stage: which memories are worth a closer look, and in what order.

Lists: vectors (and passages), BM25, the entity pass, the neighbours of what the words found, and a further vector pass for
each extra iteration. They are fused (min-max or reciprocal ranks) together with the words of each candidate's window.
Everything here is cheap a memory; its order decides only who enters the pool, unless reranking is off.

The lists have fixed sizes up to LIST_SIZE wanted results, so the order does not depend on how many are wanted; who wants
more gets longer lists. Called by the engine.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from dakera_cluster.index.vectors import VectorIndex
from dakera_cluster.native import candidates as native
from dakera_cluster.native import hits, windows
from dakera_cluster.native.candidates import Asked
from dakera_cluster.native.pool import SecondLook
from dakera_cluster.native.vectors import Rows
from dakera_cluster.retrieval import ties
from dakera_cluster.retrieval.lexical import WINDOW_B, WINDOW_K1, WordScores
from dakera_cluster.retrieval.options import Fusion, Options, Routing, Settings
from dakera_cluster.retrieval.query import QueryFeatures
from dakera_cluster.retrieval.temporal import QueryTime, day_closeness, month_match
from dakera_cluster.retrieval.view import RecallView

LIST_SIZE = 192
ENTITY_LIST_SIZE = 50
SPREAD_FROM = 48
SPREAD_REACH = 4
WINDOW_REACH = 6
WINDOW_WORDS = 60
WINDOW_WEIGHT = 0.5
FEEDBACK_MEMORIES = 3
FEEDBACK_SHARE = 0.5
MAX_SETTINGS = 64
"""Ways of looking that are kept ready: nearly all questions are asked in one or two."""

Mask = NDArray[np.bool_]


class Candidates(msgspec.Struct, frozen=True, gc=False):
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


def candidates(
    view: RecallView,
    query: QueryFeatures,
    asked: Asked,
    time: QueryTime | None,
    options: Options,
    settings: Settings,
    allowed: Mask | None,
    second: SecondLook | None = None,
) -> tuple[WordScores, Candidates]:
    """What the words of the question say, and the fused candidates. ``time`` is given for temporal questions only: it turns the
    temporal factor on. A ``second`` look is taken at them on the way where one pass finds them all."""
    vector = query.vector
    routing = options.routing
    if routing is Routing.AUTO:
        has_vectors = vector is not None and view.vectors is not None and len(view.vectors) > 0
        routing = Routing.HYBRID if has_vectors else Routing.BM25
    size = max(LIST_SIZE, options.k)
    vectors = _comparable(view, query) if routing is not Routing.BM25 else None
    if time is not None and not (time.is_bound and settings.temporal_inference):
        time = None
    lists, talk = view.text.lists, view.evidence.talk
    far = _outlook(size, routing is not Routing.VECTOR, settings.entity_vector_search)
    how = _general(options.fusion, options.vector_weight, settings.name_boost, routing)
    by_ranks = options.fusion is Fusion.RRF and routing is Routing.HYBRID
    # What one pass over everything can do; the rest needs to know the candidates first.
    at_once = how if time is None and options.iterations == 1 and not by_ranks else None
    if vectors is None or vector is None:
        found, near, _ = native.look(lists, talk, None, far, asked, None, allowed, None, None)
        words, slots = WordScores(found), np.unique(near)
        cosine = np.full(len(slots), np.nan)
    else:
        long = _by_passage(view, vector, size, allowed) if view.evidence.has_passages else None

        def look(rows: Rows | None, unit: NDArray[np.float32]) -> tuple[bool, native.Look]:
            how = at_once if rows is not None else None
            return rows is not None, native.look(lists, talk, rows, far, asked, unit, allowed, long, how, second)

        scanned, (found, slots, known) = vectors.look(vector, look)
        words = WordScores(found)
        if scanned and at_once is not None:
            return words, Candidates(slots, known)
        cosine = known
        keys = view.evidence.whole_column("key")
        if not scanned:
            named = words.naming() if settings.entity_vector_search else _NOTHING
            slots, cosine = vectors.survey(vector, keys, size, allowed, named, ENTITY_LIST_SIZE, slots)
        for _ in range(1, options.iterations):
            slots = np.union1d(slots, _again(view, vector, vectors, slots, cosine, words, allowed))
            cosine = vectors.scores(vector, slots).astype(np.float64)
    if time is not None or by_ranks:
        how = _particular(view, words, slots, cosine, options, settings, routing, time)
    return words, Candidates(*windows.fused(talk, found, how, far, slots, cosine))


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


@lru_cache(MAX_SETTINGS)
def _outlook(size: int, by_words: bool, by_name: bool) -> windows.Outlook:
    return windows.Outlook(
        size if by_words else 0,
        size,
        ENTITY_LIST_SIZE if by_name else 0,
        SPREAD_FROM,
        SPREAD_REACH,
        WINDOW_WORDS // 2,
        (WINDOW_REACH, WINDOW_WORDS // 2),
        (WINDOW_K1, WINDOW_B),
    )


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


@lru_cache(MAX_SETTINGS)
def _general(fusion: Fusion | None, vector_weight: float | None, name_boost: float, routing: Routing) -> windows.Fusion:
    """What the scores of all candidates are made of."""
    return windows.Fusion(*_weights(fusion, vector_weight, name_boost, routing))


def _weights(
    fusion: Fusion | None, vector_weight: float | None, name_boost: float, routing: Routing
) -> tuple[float, float, float, float]:
    if routing is not Routing.HYBRID:
        by_vector = float(routing is Routing.VECTOR)
        return by_vector, 1 - by_vector, 0.0, 0.0
    weight = 0.5 if vector_weight is None else vector_weight
    return weight, 1 - weight, WINDOW_WEIGHT if fusion is None else 0.0, name_boost


def _particular(
    view: RecallView,
    words: WordScores,
    slots: NDArray[np.int64],
    cosine: NDArray[np.float64],
    options: Options,
    settings: Settings,
    routing: Routing,
    time: QueryTime | None,
) -> windows.Fusion:
    """What the scores of these candidates are made of: of their ranks, or times what their time says."""
    weights = _weights(options.fusion, options.vector_weight, settings.name_boost, routing)
    given, factors = None, None
    if time is not None:
        when = view.evidence.column("when", slots)
        near = np.maximum(day_closeness(when, time), month_match(when, time))
        factors = np.asarray(1 + settings.temporal_mult_beta * (near - 0.5), np.float64)
    if options.fusion is Fusion.RRF and routing is Routing.HYBRID:
        bm25, _ = words.at(slots)
        said = np.where(bm25 > 0, bm25, np.nan)
        given = weights[0] * _reciprocal(cosine, slots, view, settings)
        given += weights[1] * _reciprocal(said, slots, view, settings)
    return windows.Fusion(*weights, given, factors)


def _reciprocal(
    scores: NDArray[np.float64], slots: NDArray[np.int64], view: RecallView, settings: Settings
) -> NDArray[np.float64]:
    """(k + 1) / (k + rank), so that the first of a list has 1; 0 for what the list does not hold."""
    result = np.zeros(len(scores))
    held = np.flatnonzero(~np.isnan(scores))
    order = held[ties.ordered(scores[held], view.evidence.keys(slots[held]))]
    result[order] = (settings.rrf_k + 1) / (settings.rrf_k + 1 + np.arange(len(order)))
    return result
