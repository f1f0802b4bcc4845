"""What the talk around a memory says of it, beyond the turns beside it.

A question about a subject is answered where the subject is spoken of, and a long talk speaks of it for minutes: single turns
say little of it, their neighbourhood says it together. Three numbers tell how much of that a memory has. Which words of the
question the other candidates of its stretch of talk hold (what many candidates stand around is where the subject is); how
near in meaning it is together with what led up to it; and how long its talk is, because the longer, the less a single turn
that happens to say the words means.

From the rows alone and bounded: REACH turns to each side, whatever the session's length. Only what somebody said leans on
its neighbours (context.py). Sums run in the order of the talk, so they are the same on every replica. Called by features.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native import late as native
from dakera_cluster.retrieval.context import Neighbourhood, neighbourhood
from dakera_cluster.retrieval.late import LateQuery, alone
from dakera_cluster.retrieval.order import NOBODY
from dakera_cluster.retrieval.query import QueryFeatures
from dakera_cluster.retrieval.view import RecallView

REACH = 64
"""Turns looked at on each side."""
PAUSE_S = 3_600.0
"""A talk that rests longer than this is another one, also where the session goes on."""
TALK_WORDS = 1_000
"""Words on each side that count as the same stretch of talk."""
LEAD_TURNS = 16
LEAD_WORDS = 300
"""What leads up to a memory: as many turns and words before it, at most."""
SHORT_TALK_TURNS = 32
"""A talk of that many turns is not long at all; one that goes on beyond REACH on both sides is as long as can be."""


def stretch(view: RecallView, slots: NDArray[np.int64]) -> Neighbourhood:
    """The talk around ``slots``, as far as this module looks: neighbours beyond a pause, or beyond what nobody said, are
    NOBODY, whatever their words."""
    around = neighbourhood(view.evidence, slots, REACH)
    if (around.slots == NOBODY).all():
        return around
    sides = around.slots.reshape(len(slots), 2, REACH)
    when = np.empty((len(slots), 2, 1 + REACH))
    when[:, :, 0] = view.evidence.column("when", slots)[:, None]
    # What is read for NOBODY does not matter: with NOBODY the talk is over in any case.
    when[:, :, 1:] = view.evidence.whole_column("when")[sides]
    over = np.logical_or.accumulate((np.abs(np.diff(when)) > PAUSE_S) | (sides == NOBODY), axis=2)
    sides[over] = NOBODY
    return around


def covered(
    late: LateQuery, best: NDArray[np.float32], slots: NDArray[np.int64], around: Neighbourhood
) -> NDArray[np.float64]:
    """float64[n]: late interaction where every candidate of the same stretch may cover a word of the question. ``best``:
    float32[t, n], what each word found in each of ``slots``."""
    greatest = int(around.slots.max(initial=NOBODY))
    if greatest == NOBODY:
        return alone(late, best)
    places = _places(slots, greatest)[around.slots]
    inside = (places != NOBODY) & around.within(2 * TALK_WORDS)
    return native.lent_cover(best, np.where(inside, places, 0), inside, 1.0, late.weights)


def led_up_to(
    view: RecallView, query: QueryFeatures, slots: NDArray[np.int64], cosine: NDArray[np.float64], around: Neighbourhood
) -> NDArray[np.float64]:
    """float64[n]: the mean cosine of each memory and what leads up to it, each weighing its words; NaN where ``cosine``
    (float64[n], of the memories themselves) is."""
    if query.vector is None or view.vectors is None or view.vectors.dimension != len(query.vector):
        return cosine
    before = around.slots[:, :LEAD_TURNS].astype(np.int64)
    inside = (before != NOBODY) & (around.words[:, :LEAD_TURNS] <= LEAD_WORDS)
    reached = before[inside]
    if not len(reached):
        return cosine
    # Neighbours of neighbouring memories are the same: a mask by slot tells them apart faster than a sort.
    is_reached = np.zeros(int(reached.max(initial=NOBODY)) + 1, np.bool_)
    is_reached[reached] = True
    others = np.flatnonzero(is_reached)
    near = np.zeros(before.shape)
    near[inside] = np.nan_to_num(view.vectors.scores(query.vector, others))[_places(others)[reached]]
    words = np.where(inside, view.evidence.column("words", before), 0)
    own = np.maximum(view.evidence.column("words", slots), 1)
    # cumsum adds turn by turn: a sum whose order no library may change.
    weight = np.cumsum(np.vstack([own, words.T]), axis=0, dtype=np.float64)[-1]
    total = np.cumsum(np.vstack([own * cosine, (words * near).T]), axis=0)[-1]
    return np.asarray(total / weight)


def length(around: Neighbourhood) -> NDArray[np.float64]:
    """float64[n]: 0 for memories outside a talk or in a short one, up to 1 for those in the midst of long ones."""
    turns = 1 + np.count_nonzero(around.slots != NOBODY, axis=1)
    return np.asarray(np.maximum(turns - SHORT_TALK_TURNS, 0) / (1 + 2 * REACH - SHORT_TALK_TURNS))


def _places(slots: NDArray[np.int64], greatest: int = NOBODY) -> NDArray[np.int64]:
    """By slot, up to ``greatest`` at least: its place in ``slots``, NOBODY for others and for NOBODY itself."""
    places = np.full(max(int(slots.max(initial=NOBODY)), greatest) + 2, NOBODY, np.int64)
    places[slots] = np.arange(len(slots))
    return places
