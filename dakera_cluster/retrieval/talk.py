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

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native import talk as native
from dakera_cluster.native.late import lent_cover
from dakera_cluster.retrieval.late import LateQuery
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


@dataclass(frozen=True, slots=True)
class Stretch:
    """Of n slots: ``slots``: int32[n, 2 * REACH], the turns before (nearest first), then the ones after, NOBODY beyond the talk;
    ``words``: int64 like it, words of each and of all nearer ones on its side; ``turns``: int64[n], how many there are."""

    slots: NDArray[np.int32]
    words: NDArray[np.int64]
    turns: NDArray[np.int64]


def stretch(view: RecallView, slots: NDArray[np.int64]) -> Stretch:
    """The talk around ``slots``, as far as this module looks: it ends at a pause, and at what nobody said."""
    order, columns = view.evidence.order, view.evidence.columns
    return Stretch(
        *native.stretches(
            order.previous, order.next, columns["words"], columns["speaker"], columns["when"], slots, REACH, PAUSE_S
        )
    )


def covered(
    late: LateQuery, best: NDArray[np.float32], slots: NDArray[np.int64], around: Stretch
) -> NDArray[np.float64]:
    """float64[n]: late interaction where every candidate of the same stretch may cover a word of the question. ``best``:
    float32[n, t], what each of ``slots`` holds of each word."""
    inside = around.words <= TALK_WORDS
    return lent_cover(best, native.places_among(slots, around.slots, inside), inside, 1.0, late.weights)


def cosines(
    view: RecallView,
    query: QueryFeatures,
    slots: NDArray[np.int64],
    cosine: NDArray[np.float64],
    around: Stretch,
    following: NDArray[np.int32],
    known: tuple[NDArray[np.int64], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``(lead, next)``, float64[n] each: the mean cosine of each memory and what leads up to it, each weighing its words, NaN
    where ``cosine`` (float64[n], of the memories themselves) is; and the cosine of the memory in ``following``, 0 for nobody.
    ``known``: slots and their cosines, as far as they have been worked out (else NaN)."""
    if query.vector is None or view.vectors is None or view.vectors.dimension != len(query.vector):
        return cosine, np.zeros(len(slots))
    # Neighbours of neighbouring memories are the same, and so is what follows: each is compared once.
    beside = np.concatenate([around.slots[:, :LEAD_TURNS], following[:, None]], axis=1)
    inside = np.ones(beside.shape, np.bool_)
    inside[:, :LEAD_TURNS] = around.words[:, :LEAD_TURNS] <= LEAD_WORDS
    is_known = ~np.isnan(known[1])
    compared = known[0][is_known]
    places, others = native.places_of(compared, beside, inside)
    worked_out = np.nan_to_num(view.vectors.scores(query.vector, others)) if len(others) else np.zeros(0)
    # NOBODY finds what stands last.
    near = np.concatenate([known[1][is_known], worked_out, [0.0]])
    after = near[places[:, LEAD_TURNS]]
    before = np.ascontiguousarray(places[:, :LEAD_TURNS])
    if not len(before) or int(before.max()) == NOBODY:
        return cosine, after
    own = np.maximum(view.evidence.column("words", slots), 1).astype(np.int64)
    words = view.evidence.column("words", np.concatenate([compared, others])).astype(np.int64)
    return native.means_of(cosine, own, near[:-1], words, before), after


def length(around: Stretch) -> NDArray[np.float64]:
    """float64[n]: 0 for memories outside a talk or in a short one, up to 1 for those in the midst of long ones."""
    return np.asarray(np.maximum(around.turns + 1 - SHORT_TALK_TURNS, 0) / (1 + 2 * REACH - SHORT_TALK_TURNS))
