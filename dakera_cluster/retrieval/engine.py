"""The recall pipeline over one namespace: classify, candidates, fusion, late interaction, features, ranking, coverage.

Pure and deterministic: the answer follows from the rows, the question and the options, bit for bit, whatever order the
rows came in and whichever replica answers; ties are broken by id. Each step is a function with typed input and output. The
lists of every step have fixed sizes, so a list of ten is the head of the list of fifty.

Every call of a kernel lets the other threads of the node go first, and waits for its turn afterwards. So the second stage is
made ready before the first, which goes on with it in the same call where nothing is needed between: then its time is part of
the ``candidates`` in ``timings_us``, and ``rank`` is what is left to do.

Three blocks make the answer: the pool, ordered by the model (RANKED memories with all their features); what late
interaction saw of the rest of the pool; and the remaining candidates in fused order.

Called by the shard in the namespace's lane; the question was embedded by the coordinator.
"""

from __future__ import annotations

import time as clock

import msgspec
import numpy as np
from numpy.typing import NDArray

from dakera_cluster.model.memories import DEFAULT_IMPORTANCE
from dakera_cluster.native import importance
from dakera_cluster.native.pool import Bounds, Judging, Pool, SecondLook, Weighing
from dakera_cluster.retrieval import ties
from dakera_cluster.retrieval.candidates import Candidates, Mask, candidates
from dakera_cluster.retrieval.classify import QuestionKind, classify
from dakera_cluster.retrieval.coverage import covering
from dakera_cluster.retrieval.features import NAMES, completed, judging
from dakera_cluster.retrieval.late import EXACT_TOKENS, MAX_TOKENS, LateQuery, best_of, late_query, second_look
from dakera_cluster.retrieval.lexical import WordScores, asked
from dakera_cluster.retrieval.model import Model, shipped
from dakera_cluster.retrieval.options import Options, Rerank, Settings
from dakera_cluster.retrieval.query import QueryFeatures
from dakera_cluster.retrieval.temporal import QueryTime, query_time
from dakera_cluster.retrieval.view import RecallView

POOL = 192
"""Candidates that late interaction sees."""
RANKED = 96
"""Of those, the ones whose context is looked at and whom the model orders."""
LATE_SHARE = 1.0
"""Weight of the late score beside the fused one when the pool is cut to RANKED."""
IMPORTANCE_WEIGHT = 1.0
"""Relevance between a memory of importance 0 and one of importance 1, decayed to now; the model's relevance spans about ten. One of
ordinary importance, what a memory has when nobody says otherwise, neither gains nor loses."""
BLOCK_GAP = 1.0
"""Relevance between the last memory of a block and the first of the next."""

_BOUNDS = Bounds(POOL, RANKED, LATE_SHARE, EXACT_TOKENS, MAX_TOKENS)


class Ranking(msgspec.Struct, frozen=True, gc=False):
    """``slots``: int64[n] in order. ``columns``: float64[4, n], parallel to them: ``relevance``, descending; ``scores``, in (0, 1);
    ``cosine``, NaN without a vector; and ``bm25``, 0 where no word is said. ``features``: one mapping a result, when asked for."""

    slots: NDArray[np.int64]
    columns: NDArray[np.float64]
    kind: QuestionKind
    reranked: bool
    candidates: int
    timings_us: dict[str, int]
    features: list[dict[str, float]] | None = None

    @property
    def relevance(self) -> NDArray[np.float64]:
        return np.asarray(self.columns[0])

    @property
    def scores(self) -> NDArray[np.float64]:
        return np.asarray(self.columns[1])

    @property
    def cosine(self) -> NDArray[np.float64]:
        return np.asarray(self.columns[2])

    @property
    def bm25(self) -> NDArray[np.float64]:
        return np.asarray(self.columns[3])


class _Clock:
    """Times of the steps, in order."""

    __slots__ = ("_at", "timings_us")

    def __init__(self) -> None:
        self.timings_us: dict[str, int] = {}
        self._at = clock.perf_counter_ns()

    def lap(self, step: str) -> None:
        now = clock.perf_counter_ns()
        self.timings_us[step] = (now - self._at) // 1000
        self._at = now


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """What the second stage makes of all that was ``found``: the ``pool``, whose features are what the model orders. ``equal``: how
    many of the wanted are as relevant as the next one."""

    kind: QuestionKind
    late: LateQuery
    found: Candidates
    pool: Pool
    equal: int


def rank(
    view: RecallView,
    query: QueryFeatures,
    options: Options,
    settings: Settings,
    allowed: Mask | None = None,
    model: Model | None = None,
) -> Ranking:
    """The best ``options.k`` memories among ``allowed`` (mask by slot; None: every memory the indexes hold)."""
    laps = _Clock()
    model = model or shipped()
    first = _first_stage(view, query, options, settings, allowed, model, options.k, laps)
    if first.second is None or not len(first.found.slots):
        slots, columns = _as_found(view, query, first.found, settings, options.k)
        laps.lap("answer")
        return Ranking(slots, columns, first.kind, False, len(first.found.slots), laps.timings_us)
    prepared = _second_stage(view, query, first, first.second)
    laps.lap("rank")
    slots, columns, held = _answer(view, prepared, model, options.k)
    explained = _explained(prepared, slots, model) if options.explain else None
    laps.lap("answer")
    return Ranking(slots, columns, first.kind, True, held, laps.timings_us, explained)


def prepare(view: RecallView, query: QueryFeatures, settings: Settings) -> Prepared:
    """The pipeline up to the features: what a fit learns from is exactly what the model will see."""
    first = _first_stage(view, query, Options(), settings, None, None, 0, _Clock())
    assert first.second is not None
    return _second_stage(view, query, first, first.second)


class _Second(msgspec.Struct, frozen=True, gc=False):
    """How the second stage will go: known before the first, which goes on with the ``look`` at once where it can."""

    late: LateQuery
    how: Judging
    look: SecondLook | None


class _First(msgspec.Struct, frozen=True, gc=False):
    """What the question is, what was found, and the ``second`` stage, None where the candidates are all that is wanted."""

    kind: QuestionKind
    time: QueryTime
    words: WordScores
    found: Candidates
    second: _Second | None


def _first_stage(
    view: RecallView,
    query: QueryFeatures,
    options: Options,
    settings: Settings,
    allowed: Mask | None,
    model: Model | None,
    wanted: int,
    laps: _Clock,
) -> _First:
    time = query_time(query.text, query.now_s)
    kind = classify(query.vector, time) if settings.ml_classifier else QuestionKind.FACTUAL
    laps.lap("classify")
    terms = asked(view.text.lists, query.text)
    laps.lap("words")
    bound = time if kind is QuestionKind.TEMPORAL else None
    second = None
    if options.rerank is not Rerank.NONE:
        weighing = Weighing(_valuation(query, settings), None if model is None else model.native, wanted)
        late = late_query(query, view.evidence.tokens, max(1, len(view.text)))
        how = judging(view, query, time, weighing)
        second = _Second(late, how, second_look(late, view.evidence.tokens, _BOUNDS, how))
    at_once = second.look if second is not None and view.evidence.tokens.are_whole else None
    words, found = candidates(view, query, terms, bound, options, settings, allowed, at_once)
    laps.lap("candidates")
    return _First(kind, time, words, found, second)


def _as_found(
    view: RecallView, query: QueryFeatures, found: Candidates, settings: Settings, wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """``(slots, columns)`` of the candidates in the order of their fused scores and importance."""
    relevance = found.fused.copy()
    importance.add(view.importance, _valuation(query, settings), found.slots, relevance)
    order = ties.ordered(relevance, view.evidence.keys(found.slots))
    order = ties.settled(order, relevance, found.slots, view.ids)[:wanted]
    level = relevance[order]
    return found.slots[order], np.vstack([level, np.clip(level, 0.0, 1.0), found.columns[1:3, order]])


def _second_stage(view: RecallView, query: QueryFeatures, first: _First, second: _Second) -> Prepared:
    tokens, keys = view.evidence.tokens, view.evidence.whole_column("key")
    late, how, found = second.late, second.how, first.found
    pool, equal = best_of(late, tokens, first.words, found, _BOUNDS, how, second.look, keys)
    if not how.is_whole:
        pool, equal = completed(view, query, late, first.words, first.time, pool, found, how)
    return Prepared(first.kind, late, found, pool, equal)


def _answer(
    view: RecallView, prepared: Prepared, model: Model, wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """``(slots, columns)`` of the ranking, and how many memories there are up to the last block it is taken from."""
    pool, covers = prepared.pool, prepared.kind in (QuestionKind.MULTI_HOP, QuestionKind.COMPARISON)
    if not covers and not prepared.equal and wanted <= len(pool):
        return *pool.answered(wanted), len(pool)
    order = ties.settled(pool.ranking, pool.sums, pool.slots, view.ids)
    relevance = pool.sums[order]
    if covers:
        order = covering(order, pool.sums, pool.best, prepared.late.weights)
        # Scores must fall with the rank: a memory taken earlier for what it adds counts as much as the one it passed.
        relevance = np.maximum.accumulate(pool.sums[order][::-1])[::-1]
    head = order[:wanted]
    found, held = prepared.found, len(pool)
    slots, levels, known = [pool.slots[head]], [relevance], [pool.columns[1:3, head]]
    for places, scores in ((pool.order[RANKED:], pool.level), (np.arange(POOL, len(found.slots)), found.fused)):
        if held >= wanted:
            break
        floor = (levels[-1][-1] if len(levels[-1]) else 0.0) - BLOCK_GAP
        slots.append(found.slots[places])
        levels.append(floor - 1.0 + ties.scaled(scores[places]))
        known.append(found.columns[1:3, places])
        held += len(places)
    level = np.concatenate(levels)[:wanted]
    columns = np.vstack([level, model.scores(level), np.concatenate(known, axis=1)[:, :wanted]])
    return np.concatenate(slots)[:wanted], columns, held


def _explained(prepared: Prepared, slots: NDArray[np.int64], model: Model) -> list[dict[str, float]]:
    """Of each result: every feature, and what each adds to its relevance; nothing of one that the model did not order."""
    places = {slot: place for place, slot in enumerate(prepared.pool.slots.tolist())}
    values = prepared.pool.values
    found: list[dict[str, float]] = []
    for slot in slots.tolist():
        if slot not in places:
            found.append({})
            continue
        named = dict(zip(NAMES, values[:, places[slot]].tolist(), strict=True))
        shares = {f"{name}.weighted": model.weights.get(name, 0.0) * value for name, value in named.items()}
        found.append(named | {name: share for name, share in shares.items() if share})
    return found


def _valuation(query: QueryFeatures, settings: Settings) -> importance.Valuation:
    return query.now_s, settings.half_life_s or 0.0, IMPORTANCE_WEIGHT, DEFAULT_IMPORTANCE
