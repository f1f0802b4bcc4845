"""Second stage: what is known of each memory of the pool, as numbers a linear sum can weigh.

Graded features are min-max scaled over the ranked pool, so they mean "how good among the candidates of this question"
whatever the namespace's size and kind; flags and shares are left as they are. Every feature says in NAMES what it is; the
weights are data (model.py). Nothing here knows a data set.

Called by the engine.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native import late as native
from dakera_cluster.native import pool as pools
from dakera_cluster.native import talk as native_talk
from dakera_cluster.native.features import Asked, Layout
from dakera_cluster.retrieval import talk
from dakera_cluster.retrieval.candidates import Candidates
from dakera_cluster.retrieval.context import Neighbourhood, neighbourhood
from dakera_cluster.retrieval.late import LateQuery, glance
from dakera_cluster.retrieval.lexical import WINDOW_B, WINDOW_K1, WordScores, window_scores
from dakera_cluster.retrieval.order import NOBODY
from dakera_cluster.retrieval.query import QueryFeatures
from dakera_cluster.retrieval.temporal import QueryTime, day_closeness, month_match
from dakera_cluster.retrieval.traits import LENGTH_SCORES, Role
from dakera_cluster.retrieval.view import RecallView

NEIGHBOUR_SHARE = 0.8
"""What a neighbour's word counts beside the memory's own when a window covers the question."""
NEAR_WORDS, WIDE_WORDS = 150, 400
WINDOW_TURNS = 4
RANK_SCALE = 5
"""Places after which a rank counts half."""

NAMES: dict[str, str] = {
    "bm25": "BM25 of the memory",
    "coverage": "share of the question's words (by idf) it holds",
    "window": "BM25 of it and its neighbours, 60 words",
    "window_turns": "BM25 of it and the four turns on each side",
    "window_wide": "BM25 of it and its neighbours, 400 words",
    "cosine": "cosine of the question and the memory",
    "passage": "cosine of the question and its best passage",
    "cosine_next": "cosine of the question and the memory that follows",
    "cosine_lead": "mean cosine of it and the 300 words that lead up to it",
    "late": "late interaction, the question's words by idf, best passage",
    "late_first": "late interaction with its first passage",
    "cover_turn": "late interaction where the turn before or after may cover a word",
    "cover_next": "late interaction where the turn after may cover a word",
    "cover_near": "late interaction where 150 words around may cover a word",
    "cover_talk": "late interaction where the candidates within 1,000 words of its talk may cover a word",
    "session": "best late interaction among the candidates of its session",
    "speaker": "share of its speaker's name that the question says",
    "speaker_only": "its speaker is the only one the question names",
    "cover_said": "cover_turn, times the share of its speaker's name that the question says",
    "time_words": "it speaks of time and the question asks when",
    "number": "it holds a number and the question asks how many or how much",
    "date_day": "closeness of its time to the days the question names",
    "date_month": "its time lies in a month the question names",
    "length": "how much it says, up to 40 words",
    "about_self": "it speaks of its own speaker (I, my)",
    "asks": "it asks something itself",
    "self_asked": "about_self, when the question speaks of the asker (I, my)",
    "assistant": "an assistant said it and the question speaks of the asker (I, my)",
    "in_session": "it has a turn before it",
    "cosine_apart": "cosine, times the share of the question's words that no candidate holds",
    "window_met": "window, times the share of the question's words that a candidate holds",
    "window_wide_met": "window_wide, times that share",
    "window_rank": "1 for the candidate with the best window, falling with the rank",
    "late_long": "late, times how long its talk is",
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
        "asks",
        "self_asked",
        "assistant",
        "in_session",
        "cosine_apart",
        "window_met",
        "window_wide_met",
        "window_rank",
        "late_long",
        "cover_said",
    )
)
"""Features that mean the same for every question; all others are scaled over the ranked pool."""

_SHARES = frozenset(("cosine_apart", "window_met", "window_wide_met", "late_long", "cover_said"))
"""Graded features that count again, in proportion to what else is known of the question or the memory."""
_PLACE = {name: place for place, name in enumerate(NAMES)}
_LAYOUT = Layout(
    [*NAMES], [name for name in NAMES if name not in FLAGS or name in _SHARES], RANK_SCALE, (WINDOW_K1, WINDOW_B)
)
_WORD = re.compile(r"[a-z0-9]+")
_FIRST_PERSON = re.compile(r"\b(?:i|i['’]\w+|my|me|mine|we|our|us)\b", re.IGNORECASE)
_HOW_MUCH = re.compile(
    r"\bhow (?:many|much|often|old|far|long|big|tall)\b|\b(?:what|which) (?:number|percentage|amount|price|score)\b",
    re.IGNORECASE,
)


def judging(view: RecallView, query: QueryFeatures, time: QueryTime, weighing: pools.Weighing) -> pools.Judging:
    """How the memories of a pool are to be ranked."""
    evidence = view.evidence
    are_alone = evidence.order.is_empty
    return pools.Judging(
        _LAYOUT,
        _asked(time.asks_when, _HOW_MUCH.search(query.text) is not None, _FIRST_PERSON.search(query.text) is not None),
        evidence.traits,
        evidence.talk,
        view.importance,
        weighing,
        are_alone=are_alone,
        is_whole=are_alone and not (time.is_bound or evidence.has_passages or not evidence.speaker_names().is_empty),
    )


def completed(
    view: RecallView,
    query: QueryFeatures,
    late: LateQuery,
    words: WordScores,
    time: QueryTime,
    pool: pools.Pool,
    found: Candidates,
    how: pools.Judging,
) -> pools.Judged:
    """``pool`` with the features that come from elsewhere than its memories, and concluded. ``found``: all candidates."""
    slots = pool.slots
    # A row that nothing is written to says nothing of anybody.
    columns = {**_passages(view, query, pool), **_speaker(view, query.text, slots), **_time(view, time, slots)}
    talk_lengths = None
    if not how.are_alone:
        stretch = talk.stretch(view, slots)
        columns |= _in_company(view, query, late, words, pool, stretch, found)
        talk_lengths = talk.length(stretch)
    values = pool.values
    for name, column in columns.items():
        values[_PLACE[name]] = column
    # A question in other words than the memories' own must be answered by meaning, one in the same words by the words.
    return pools.concluded(pool, talk_lengths, how)


@cache
def _asked(asks_when: bool, asks_how_much: bool, of_self: bool) -> Asked:
    return Asked(LENGTH_SCORES, Role.ASSISTANT, asks_when=asks_when, asks_how_much=asks_how_much, of_self=of_self)


def _in_company(
    view: RecallView,
    query: QueryFeatures,
    late: LateQuery,
    words: WordScores,
    pool: pools.Pool,
    stretch: talk.Stretch,
    found: Candidates,
) -> dict[str, NDArray[np.float64]]:
    slots = pool.slots
    around = neighbourhood(view.evidence, slots)
    known = found.slots, found.cosine
    lead, following = talk.cosines(view, query, slots, pool.cosine, stretch, around.next, known)
    best = np.ascontiguousarray(pool.best.T)
    return {
        "window_turns": window_scores(words, slots, around.slots, around.turns(WINDOW_TURNS)),
        "window_wide": window_scores(words, slots, around.slots, around.within(WIDE_WORDS)),
        "cosine_lead": lead,
        "cosine_next": following,
        "cover_talk": talk.covered(late, best, slots, stretch),
        **_context(view, late, slots, best, around),
        "session": native_talk.best_alike(np.maximum(pool.late, 0.0), view.evidence.order.codes(slots)),
        "in_session": (around.slots[:, 0] != NOBODY).astype(np.float64),
    }


def _passages(view: RecallView, query: QueryFeatures, pool: pools.Pool) -> dict[str, NDArray[np.float64]]:
    if not view.evidence.has_passages or query.vector is None:
        return {}
    if view.vectors is None or view.vectors.dimension != len(query.vector):
        return {}
    passage = view.evidence.passage_scores(query.vector, pool.slots).astype(np.float64)
    return {"passage": np.where(np.isnan(passage), pool.cosine, passage)}


def _context(
    view: RecallView, late: LateQuery, slots: NDArray[np.int64], best: NDArray[np.float32], around: Neighbourhood
) -> dict[str, NDArray[np.float64]]:
    """Late interaction in which what stands around a memory may cover a word of the question. ``best``: float32[n, t]."""
    turn, near_words = around.turns(1), around.within(NEAR_WORDS)
    following = turn.copy()
    following[:, : turn.shape[1] // 2] = False
    windows = {"cover_turn": turn, "cover_next": following, "cover_near": near_words}
    # The matches of the pool's own slots are known.
    places, others = native_talk.places_of(slots, around.slots, turn | near_words)
    if len(others):
        best = np.ascontiguousarray(np.concatenate([best, glance(late, view.evidence.tokens, others).T]))
    return {
        name: native.lent_cover(best, places, inside, NEIGHBOUR_SHARE, late.weights) for name, inside in windows.items()
    }


def _speaker(view: RecallView, question: str, slots: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    names = view.evidence.speaker_names()
    if names.is_empty:
        return {}
    shares = names.shares(_WORD.findall(question.lower()))
    codes = view.evidence.column("speaker", slots)
    full = np.flatnonzero(shares >= 1.0)
    only = (codes == full[0]).astype(np.float64) if len(full) == 1 else np.zeros(len(slots))
    return {"speaker": shares[codes], "speaker_only": only}


def _time(view: RecallView, time: QueryTime, slots: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    if not time.is_bound:
        return {}
    when = view.evidence.column("when", slots)
    return {
        "date_day": day_closeness(when, time).astype(np.float64),
        "date_month": month_match(when, time).astype(np.float64),
    }
