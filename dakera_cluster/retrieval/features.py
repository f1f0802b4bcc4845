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

from dakera_cluster.native import late as native
from dakera_cluster.native import order, traits
from dakera_cluster.native import talk as native_talk
from dakera_cluster.retrieval import talk
from dakera_cluster.retrieval.candidates import Candidates
from dakera_cluster.retrieval.context import Neighbourhood, neighbourhood
from dakera_cluster.retrieval.late import LateQuery, Matches, alone, glance, weighted
from dakera_cluster.retrieval.lexical import WordScores, window_scores
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

_SHARE_OF = {
    "cosine_apart": "cosine",
    "window_met": "window",
    "window_wide_met": "window_wide",
    "late_long": "late",
    "cover_said": "cover_turn",
}
"""Graded features that count again, in proportion to what else is known of the question or the memory."""
_PLACE = {name: place for place, name in enumerate(NAMES)}
_GRADED = np.array([name not in FLAGS or name in _SHARE_OF for name in NAMES])
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
    found: Candidates,
) -> Features:
    """The features of the pool. ``own`` are the matches of exactly the pool's slots; ``found``: all candidates."""
    slots = pool.slots
    late_scores = weighted(late, own.best)
    columns: dict[str, NDArray[np.float64]] = {
        "bm25": pool.bm25,
        "coverage": pool.coverage,
        "window": pool.window,
        "window_rank": _by_rank(pool.window),
        "late": late_scores,
        "late_first": own.first,
        **_vectors(view, query, pool),
        **_speaker(view, query.text, slots),
        **_time(view, time, slots),
        **_form(view, query.text, time, slots),
    }
    if view.evidence.order.is_empty:
        columns |= _alone(late, words, pool, own, late_scores)
        talk_length: NDArray[np.float64] | float = 0.0
    else:
        stretch = talk.stretch(view, slots)
        columns |= _in_company(view, query, late, words, pool, own, late_scores, stretch, found)
        talk_length = talk.length(stretch)
    # A column that is not there says nothing of anybody.
    values = np.zeros((len(NAMES), len(slots)))
    for name, column in columns.items():
        values[_PLACE[name]] = column
    for name, other in _SHARE_OF.items():
        values[_PLACE[name]] = columns.get(other, 0.0)
    order.scale_rows(values, _GRADED)
    # A question in other words than the memories' own must be answered by meaning, one in the same words by the words.
    met = float(pool.coverage.max(initial=0.0))
    shares = {
        "cosine_apart": 1 - met,
        "window_met": met,
        "window_wide_met": met,
        "late_long": talk_length,
        "cover_said": columns.get("speaker", 0.0),
    }
    for name, share in shares.items():
        values[_PLACE[name]] *= share
    return Features(slots, values.T, own.best)


def _by_rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for the greatest, half of it RANK_SCALE places later; equals share the better place."""
    return np.asarray(RANK_SCALE / (RANK_SCALE + order.ranks(values)))


def _alone(
    late: LateQuery, words: WordScores, pool: Candidates, own: Matches, late_scores: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """What stands around a memory where none has a session: itself."""
    text = window_scores(
        words, pool.slots, np.empty((len(pool.slots), 0), np.int32), np.empty((len(pool.slots), 0), bool)
    )
    cover = alone(late, own.best)
    return {
        "window_turns": text,
        "window_wide": text,
        "cosine_lead": pool.cosine,
        **dict.fromkeys(("cover_turn", "cover_next", "cover_near", "cover_talk"), cover),
        "session": np.maximum(late_scores, 0.0),
    }


def _in_company(
    view: RecallView,
    query: QueryFeatures,
    late: LateQuery,
    words: WordScores,
    pool: Candidates,
    own: Matches,
    late_scores: NDArray[np.float64],
    stretch: talk.Stretch,
    found: Candidates,
) -> dict[str, NDArray[np.float64]]:
    slots = pool.slots
    around = neighbourhood(view.evidence, slots)
    known = found.slots, found.cosine
    lead, following = talk.cosines(view, query, slots, pool.cosine, stretch, around.next, known)
    best = np.ascontiguousarray(own.best.T)
    return {
        "window_turns": window_scores(words, slots, around.slots, around.turns(WINDOW_TURNS)),
        "window_wide": window_scores(words, slots, around.slots, around.within(WIDE_WORDS)),
        "cosine_lead": lead,
        "cosine_next": following,
        "cover_talk": talk.covered(late, best, slots, stretch),
        **_context(view, late, slots, best, around),
        "session": native_talk.best_alike(np.maximum(late_scores, 0.0), view.evidence.order.codes(slots)),
        "in_session": (around.slots[:, 0] != NOBODY).astype(np.float64),
    }


def _vectors(view: RecallView, query: QueryFeatures, pool: Candidates) -> dict[str, NDArray[np.float64]]:
    if query.vector is None or view.vectors is None or view.vectors.dimension != len(query.vector):
        unknown = np.full(len(pool.slots), np.nan)
        return {"cosine": unknown, "passage": unknown}
    passage = view.evidence.passage_scores(query.vector, pool.slots).astype(np.float64)
    return {"cosine": pool.cosine, "passage": np.where(np.isnan(passage), pool.cosine, passage)}


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
        best = np.concatenate([best, glance(late, view.evidence.tokens, others).T])
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


def _form(view: RecallView, question: str, time: QueryTime, slots: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    rows = traits.rows(
        view.evidence.columns,
        slots,
        LENGTH_SCORES,
        Role.ASSISTANT,
        asks_when=time.asks_when,
        asks_how_much=_HOW_MUCH.search(question) is not None,
        of_self=_FIRST_PERSON.search(question) is not None,
    )
    return dict(zip(traits.ROWS, rows, strict=True))
