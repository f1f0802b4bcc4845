"""Second stage: what is known of each memory of the pool, as numbers a linear sum can weigh.

Graded features are min-max scaled over the ranked pool, so they mean "how good among the candidates of this question"
whatever the namespace's size and kind; flags and shares are left as they are. Every feature says in NAMES what it is; the
weights are data (model.py). Nothing here knows a data set.

Called by the engine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.retrieval import ties
from dakera_cluster.retrieval.candidates import Candidates
from dakera_cluster.retrieval.context import Neighbourhood, neighbourhood
from dakera_cluster.retrieval.evidence import NO_SPEAKER
from dakera_cluster.retrieval.late import LateQuery, Matches, glance, weighted
from dakera_cluster.retrieval.lexical import WordScores, window_scores
from dakera_cluster.retrieval.query import QueryFeatures
from dakera_cluster.retrieval.temporal import QueryTime, day_closeness, month_match
from dakera_cluster.retrieval.traits import Role, length_score
from dakera_cluster.retrieval.view import RecallView

NEIGHBOUR_SHARE = 0.8
"""What a neighbour's word counts beside the memory's own when a window covers the question."""
NEAR_WORDS, WIDE_WORDS = 150, 400
WINDOW_TURNS = 4

NAMES: dict[str, str] = {
    "bm25": "BM25 of the memory",
    "coverage": "share of the question's words (by idf) it holds",
    "window": "BM25 of it and its neighbours, 60 words",
    "window_turns": "BM25 of it and the four turns on each side",
    "window_wide": "BM25 of it and its neighbours, 400 words",
    "cosine": "cosine of the question and the memory",
    "passage": "cosine of the question and its best passage",
    "cosine_next": "cosine of the question and the memory that follows",
    "late": "late interaction, the question's words by idf, best passage",
    "late_first": "late interaction with its first passage",
    "late_even": "late interaction, all words of the question alike",
    "cover_turn": "late interaction where the turn before or after may cover a word",
    "cover_next": "late interaction where the turn after may cover a word",
    "cover_near": "late interaction where 150 words around may cover a word",
    "session": "best late interaction among the candidates of its session",
    "speaker": "share of its speaker's name that the question says",
    "speaker_only": "its speaker is the only one the question names",
    "time_words": "it speaks of time and the question asks when",
    "number": "it holds a number and the question asks how many or how much",
    "date_day": "closeness of its time to the days the question names",
    "date_month": "its time lies in a month the question names",
    "length": "how much it says, up to 40 words",
    "about_self": "it speaks of its own speaker (I, my)",
    "self_asked": "about_self, when the question speaks of the asker (I, my)",
    "assistant": "an assistant said it and the question speaks of the asker (I, my)",
    "in_session": "it has a turn before it",
    "cosine_apart": "cosine, times the share of the question's words that no candidate holds",
    "window_met": "window, times the share of the question's words that a candidate holds",
    "window_wide_met": "window_wide, times that share",
}
"""Feature name to what it means; the order is that of the columns."""

FLAGS = frozenset(
    (
        "speaker",
        "speaker_only",
        "time_words",
        "number",
        "date_day",
        "date_month",
        "length",
        "about_self",
        "self_asked",
        "assistant",
        "in_session",
        "cosine_apart",
        "window_met",
        "window_wide_met",
    )
)
"""Features that mean the same for every question; all others are scaled over the ranked pool."""

_WORD = re.compile(r"[a-z0-9]+")
_FIRST_PERSON = re.compile(r"\b(?:i|i['’]\w+|my|me|mine|we|our|us)\b", re.IGNORECASE)
_HOW_MUCH = re.compile(
    r"\bhow (?:many|much|often|old|far|long|big|tall)\b|\b(?:what|which) (?:number|percentage|amount|price|score)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Features:
    """``values``: float64[n, len(NAMES)] of ``slots``; ``best``: float32[t, n], what each question token found in each."""

    slots: NDArray[np.int64]
    values: NDArray[np.float64]
    best: NDArray[np.float32]


def features(
    view: RecallView,
    query: QueryFeatures,
    late: LateQuery,
    words: WordScores,
    time: QueryTime,
    pool: Candidates,
    own: Matches,
) -> Features:
    """The features of the pool. ``own`` are the matches of exactly the pool's slots."""
    slots = pool.slots
    around = neighbourhood(view.evidence, slots)
    columns: dict[str, NDArray[np.float64]] = {
        "bm25": pool.bm25,
        "coverage": pool.coverage,
        "window": pool.window,
        "window_turns": window_scores(words, slots, around.slots, around.turns(WINDOW_TURNS)),
        "window_wide": window_scores(words, slots, around.slots, around.within(WIDE_WORDS)),
        "late": weighted(late, own.best),
        "late_first": own.first,
        "late_even": _even(own.best),
        **_vectors(view, query, pool, around),
        **_context(view, late, slots, own, around),
        **_speaker(view, query.text, slots),
        **_time(view, query.text, time, slots),
        **_form(view, query.text, slots),
    }
    columns["session"] = _sessions(view, slots, columns["late"])
    # A question in other words than the memories' own must be answered by meaning, one in the same words by the words.
    met = float(pool.coverage.max(initial=0.0))
    columns["cosine_apart"] = (1 - met) * ties.scaled(columns["cosine"])
    columns["window_met"] = met * ties.scaled(columns["window"])
    columns["window_wide_met"] = met * ties.scaled(columns["window_wide"])
    columns["in_session"] = (around.slots[:, 0] >= 0).astype(np.float64)
    values = [columns[name].astype(np.float64) if name in FLAGS else ties.scaled(columns[name]) for name in NAMES]
    return Features(slots, np.stack(values, axis=1), own.best)


def _even(best: NDArray[np.float32]) -> NDArray[np.float64]:
    total = np.zeros(best.shape[1])
    for row in best:
        total += row
    return total / max(1, len(best))


def _vectors(
    view: RecallView, query: QueryFeatures, pool: Candidates, around: Neighbourhood
) -> dict[str, NDArray[np.float64]]:
    unknown = np.full(len(pool.slots), np.nan)
    if query.vector is None or view.vectors is None or view.vectors.dimension != len(query.vector):
        return {"cosine": unknown, "passage": unknown, "cosine_next": np.zeros(len(pool.slots))}
    passage = view.evidence.passage_scores(query.vector, pool.slots).astype(np.float64)
    following = around.next.astype(np.int64)
    has_next = following >= 0
    after = np.zeros(len(pool.slots))
    after[has_next] = np.nan_to_num(view.vectors.scores(query.vector, following[has_next]).astype(np.float64))
    return {
        "cosine": pool.cosine,
        "passage": np.where(np.isnan(passage), pool.cosine, passage),
        "cosine_next": after,
    }


def _context(
    view: RecallView, late: LateQuery, slots: NDArray[np.int64], own: Matches, around: Neighbourhood
) -> dict[str, NDArray[np.float64]]:
    """Late interaction in which what stands around a memory may cover a word of the question."""
    turn, near_words = around.turns(1), around.within(NEAR_WORDS)
    following = turn.copy()
    following[:, : turn.shape[1] // 2] = False
    windows = {"cover_turn": turn, "cover_next": following, "cover_near": near_words}
    looked_at = turn | near_words
    # The matches of the pool's own slots are known.
    others = np.setdiff1d(around.slots[looked_at], slots).astype(np.int64)
    near = glance(late, view.evidence.tokens, others)
    every = np.concatenate([slots, others])
    order = np.argsort(every)
    best = np.concatenate([own.best, near], axis=1)
    reached = np.where(looked_at, around.slots, slots[:, None])
    place = order[np.searchsorted(every[order], reached)]
    covers: dict[str, NDArray[np.float64]] = {name: np.zeros(len(slots)) for name in windows}
    for row, weight in enumerate(late.weights.tolist()):
        there = NEIGHBOUR_SHARE * best[row][place]
        for name, inside in windows.items():
            lent = np.where(inside, there, 0).max(axis=1, initial=0)
            covers[name] += weight * np.maximum(own.best[row], lent)
    return covers


def _sessions(view: RecallView, slots: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    best: dict[str, float] = {}
    keys = view.evidence.order.keys()
    sessions = [keys[slot][0] if slot in keys else f"\0{slot}" for slot in slots.tolist()]
    for session, score in zip(sessions, scores.tolist(), strict=True):
        best[session] = max(best.get(session, 0.0), score)
    return np.array([best[session] for session in sessions])


def _speaker(view: RecallView, question: str, slots: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    asked = set(_WORD.findall(question.lower()))
    parts = {code: set(_WORD.findall(name)) for code, name in view.evidence.live_speakers().items()}
    held: dict[str, int] = {}
    for words in parts.values():
        for word in words:
            held[word] = held.get(word, 0) + 1
    shares = np.zeros(len(view.evidence.speakers) + 1)
    for code, words in parts.items():
        # A part that many speakers share (a title, a family's name) tells little of who is meant.
        total = sum(1 / held[word] for word in sorted(words))
        shares[code] = sum(1 / held[word] for word in sorted(words) if word in asked) / total if total else 0.0
    codes = view.evidence.column("speaker", slots)
    share = np.where(codes == NO_SPEAKER, 0.0, shares[codes])
    full = np.flatnonzero(shares >= 1.0)
    only = (codes == full[0]).astype(np.float64) if len(full) == 1 else np.zeros(len(slots))
    return {"speaker": share, "speaker_only": only}


def _time(view: RecallView, question: str, time: QueryTime, slots: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    when = view.evidence.column("when", slots)
    nothing = np.zeros(len(slots))
    how_much = _HOW_MUCH.search(question) is not None
    return {
        "time_words": view.evidence.column("has_time", slots).astype(np.float64) if time.asks_when else nothing,
        "number": view.evidence.column("has_number", slots).astype(np.float64) if how_much else nothing,
        "date_day": day_closeness(when, time).astype(np.float64),
        "date_month": month_match(when, time).astype(np.float64),
    }


def _form(view: RecallView, question: str, slots: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    of_self = _FIRST_PERSON.search(question) is not None
    about_self = view.evidence.column("about_self", slots).astype(np.float64)
    by_assistant = (view.evidence.column("role", slots) == Role.ASSISTANT).astype(np.float64)
    nothing = np.zeros(len(slots))
    return {
        "length": np.array([length_score(words) for words in view.evidence.column("words", slots).tolist()]),
        "about_self": about_self,
        "self_asked": about_self if of_self else nothing,
        "assistant": by_assistant if of_self else nothing,
    }
