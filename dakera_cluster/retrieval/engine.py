"""The recall pipeline over one namespace: classify, candidates, fusion, late interaction, features, ranking, coverage.

Pure and deterministic: the answer follows from the rows, the question and the options, bit for bit, whatever order the
rows came in and whichever replica answers; ties are broken by id. Each step is a function with typed input and output and
its time in ``timings_us``. The lists of every step have fixed sizes, so a list of ten is the head of the list of fifty.

Three blocks make the answer: the pool, ordered by the model (RANKED memories with all their features); what late
interaction saw of the rest of the pool; and the remaining candidates in fused order.

Called by the shard in the namespace's lane; the question was embedded by the coordinator.
"""

from __future__ import annotations

import time as clock
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.retrieval import ties
from dakera_cluster.retrieval.candidates import Candidates, Mask, candidates
from dakera_cluster.retrieval.classify import QuestionKind, classify
from dakera_cluster.retrieval.coverage import covering
from dakera_cluster.retrieval.features import NAMES, Features, features
from dakera_cluster.retrieval.late import LateQuery, best_of, late_query
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
"""Relevance between a memory of importance 0 and one of importance 1; the model's relevance spans about ten."""
BLOCK_GAP = 1.0
"""Relevance between the last memory of a block and the first of the next."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """``slots``: int64[n] in order; ``relevance``: float64[n], descending; ``scores``: float64[n] in (0, 1). ``cosine`` and
    ``bm25``: float64[n], NaN where a list does not know the memory. ``features``: one mapping a result, when asked for."""

    slots: NDArray[np.int64]
    relevance: NDArray[np.float64]
    scores: NDArray[np.float64]
    cosine: NDArray[np.float64]
    bm25: NDArray[np.float64]
    kind: QuestionKind
    reranked: bool
    candidates: int
    timings_us: dict[str, int]
    features: list[dict[str, float]] | None = None


@dataclass(slots=True)
class _Clock:
    """Times of the steps, in order."""

    timings_us: dict[str, int] = field(default_factory=dict)
    _at: int = field(default_factory=clock.perf_counter_ns)

    def lap(self, step: str) -> None:
        now = clock.perf_counter_ns()
        self.timings_us[step] = (now - self._at) // 1000
        self._at = now


@dataclass(frozen=True, slots=True)
class Block:
    """Those of ``found`` at the places ``order``, by ``scores``: float64 by place. Taken when they are wanted: most answers end
    before."""

    found: Candidates
    order: NDArray[np.int64]
    scores: NDArray[np.float64]

    @property
    def slots(self) -> NDArray[np.int64]:
        return self.found.slots[self.order]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything up to the features: what the model orders (``features``), the rest of the pool and of the candidates."""

    kind: QuestionKind
    late: LateQuery
    features: Features
    ranked: Candidates
    pool_rest: Block
    rest: Block


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
    kind, time, words, found = _first_stage(view, query, options, settings, allowed, laps)
    if options.rerank is Rerank.NONE or not len(found.slots):
        relevance = found.fused + _importance(view, query, found.slots, settings)
        order = ties.ordered(relevance, view.evidence.keys(found.slots))
        order = ties.settled(order, relevance, found.slots, view.ids)[: options.k]
        level = relevance[order]
        results = found.at(order)
        return _ranking(results, level, np.clip(level, 0.0, 1.0), kind, len(found.slots), False, None, laps)
    prepared = _second_stage(view, query, kind, time, words, found, laps)
    return _answer(view, query, options, settings, prepared, model or shipped(), laps)


def prepare(
    view: RecallView, query: QueryFeatures, options: Options, settings: Settings, allowed: Mask | None = None
) -> Prepared:
    """The pipeline up to the features: what a fit learns from is exactly what the model will see."""
    laps = _Clock()
    kind, time, words, found = _first_stage(view, query, options, settings, allowed, laps)
    return _second_stage(view, query, kind, time, words, found, laps)


def _first_stage(
    view: RecallView,
    query: QueryFeatures,
    options: Options,
    settings: Settings,
    allowed: Mask | None,
    laps: _Clock,
) -> tuple[QuestionKind, QueryTime, WordScores, Candidates]:
    time = query_time(query.text, query.now_s)
    kind = classify(query.vector, time) if settings.ml_classifier else QuestionKind.FACTUAL
    laps.lap("classify")
    terms = asked(view.text.lists, query.text)
    laps.lap("words")
    bound = time if kind is QuestionKind.TEMPORAL else None
    words, found = candidates(view, query, terms, bound, options, settings, allowed)
    laps.lap("candidates")
    return kind, time, words, found


def _second_stage(
    view: RecallView,
    query: QueryFeatures,
    kind: QuestionKind,
    time: QueryTime,
    words: WordScores,
    found: Candidates,
    laps: _Clock,
) -> Prepared:
    evidence = view.evidence
    late = late_query(query, evidence.tokens, max(1, len(view.text)))
    keys = evidence.whole_column("key")
    pool = best_of(late, evidence.tokens, found.slots, found.columns, POOL, LATE_SHARE, keys, RANKED)
    laps.lap("late")
    ranked = Candidates(pool.slots, pool.columns[:-2])
    values = features(view, query, late, words, time, ranked, pool, found)
    laps.lap("features")
    rest = Block(found, np.arange(POOL, len(found.slots)), found.fused)
    return Prepared(kind, late, values, ranked, Block(found, pool.order[RANKED:], pool.level), rest)


def _answer(
    view: RecallView,
    query: QueryFeatures,
    options: Options,
    settings: Settings,
    prepared: Prepared,
    model: Model,
    laps: _Clock,
) -> Ranking:
    ranked = prepared.ranked
    importance = _importance(view, query, ranked.slots, settings)
    keys = view.evidence.whole_column("key")
    relevance, order, has_ties = model.ordered(prepared.features.values, importance, ranked.slots, keys)
    if has_ties:
        order = ties.settled(order, relevance, ranked.slots, view.ids)
    if prepared.kind in (QuestionKind.MULTI_HOP, QuestionKind.COMPARISON):
        order = covering(order, relevance, prepared.features.best, prepared.late.weights)
        # Scores must fall with the rank: a memory taken earlier for what it adds counts as much as the one it passed.
        relevance = np.maximum.accumulate(relevance[order][::-1])[::-1]
    else:
        relevance = relevance[order]
    laps.lap("rank")
    explained = None
    if options.explain:
        explained = [_explained(prepared.features, int(row), model) for row in order[: options.k].tolist()]
    blocks, levels, held = [ranked.at(order[: options.k])], [relevance], len(order)
    for block in (prepared.pool_rest, prepared.rest):
        if held >= options.k:
            break
        floor = (levels[-1][-1] if len(levels[-1]) else 0.0) - BLOCK_GAP
        blocks.append(block.found.at(block.order))
        levels.append(floor - 1.0 + ties.scaled(block.scores[block.order]))
        held += len(block.order)
    level = (np.concatenate(levels) if len(levels) > 1 else relevance)[: options.k]
    results = _joined(blocks).head(options.k) if len(blocks) > 1 else blocks[0]
    scores = model.scores(level)
    if explained is not None:
        explained += [{} for _ in range(len(level) - len(explained))]
    return _ranking(results, level, scores, prepared.kind, held, True, explained, laps)


def _explained(found: Features, row: int, model: Model) -> dict[str, float]:
    """Every feature of a result, and what each adds to its relevance."""
    named = {name: float(value) for name, value in zip(NAMES, found.values[row].tolist(), strict=True)}
    shares = {f"{name}.weighted": model.weights.get(name, 0.0) * value for name, value in named.items()}
    return named | {name: share for name, share in shares.items() if share}


def _importance(
    view: RecallView, query: QueryFeatures, slots: NDArray[np.int64], settings: Settings
) -> NDArray[np.float64]:
    """What importance, decayed to now, adds to relevance: 0 at 0.5, what a memory has when nobody says otherwise."""
    importance = view.importance_of(slots).astype(np.float64)
    if settings.half_life_s is not None:
        age = np.maximum(0.0, query.now_s - view.accessed_of(slots))
        importance = importance * np.exp2(-age / settings.half_life_s)
    # In hundredths: an access a minute ago must not reorder what is equal in every other way.
    return np.asarray(IMPORTANCE_WEIGHT * (importance.round(2) - 0.5))


def _joined(blocks: list[Candidates]) -> Candidates:
    return Candidates(
        np.concatenate([block.slots for block in blocks]), np.concatenate([block.columns for block in blocks], axis=1)
    )


def _ranking(
    found: Candidates,
    relevance: NDArray[np.float64],
    scores: NDArray[np.float64],
    kind: QuestionKind,
    candidates: int,
    reranked: bool,
    explained: list[dict[str, float]] | None,
    laps: _Clock,
) -> Ranking:
    laps.lap("answer")
    return Ranking(
        slots=found.slots,
        relevance=relevance,
        scores=scores,
        cosine=found.cosine,
        bm25=np.where(found.bm25 > 0, found.bm25, np.nan),
        kind=kind,
        reranked=reranked,
        candidates=candidates,
        timings_us=laps.timings_us,
        features=explained,
    )
