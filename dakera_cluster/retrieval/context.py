"""The neighbourhood of a memory in its session, cut by a budget of words rather than by a number of turns.

A turn of a chat is short and leans on the turns around it; an essay of an assistant stands alone, and a question beside it
must not borrow its words. So a window takes in the nearest neighbours as long as they fit its words: many short turns, few
long ones, none that is longer than the budget. That decides from the data at hand where context helps: long memories,
those without a session and those that nobody said (facts, notes) have none.

Called by candidates.py (to pull neighbours in) and features.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native import words as native
from dakera_cluster.retrieval.evidence import Evidence

REACH = 16
"""Neighbours looked at on each side."""
MAX_TURN_WORDS = 200
"""Words of the turns between a memory and its neighbour beyond which they are no turns of one talk."""


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Of n slots: ``slots``: int32[n, 2 * reach], the ones before (nearest first), then the ones after; ``words``: int64 like
    it, words of each and of all nearer ones on its side; NOBODY has more words than any budget."""

    slots: NDArray[np.int32]
    words: NDArray[np.int64]

    def within(self, words: int) -> NDArray[np.bool_]:
        """bool[n, 2 * reach]: the neighbours in a window of that many words, half of them on each side."""
        return self.words <= words // 2

    def turns(self, count: int) -> NDArray[np.bool_]:
        """bool[n, 2 * reach]: the ``count`` nearest on each side, as long as they are turns and no documents."""
        half = self.slots.shape[1] // 2
        nearest = np.arange(2 * half) % half < count
        return np.asarray(nearest & (self.words <= MAX_TURN_WORDS))

    @property
    def next(self) -> NDArray[np.int32]:
        """The slot that follows each, NOBODY at the end of a session."""
        return self.slots[:, self.slots.shape[1] // 2]


def neighbourhood(evidence: Evidence, slots: NDArray[np.int64], reach: int = REACH) -> Neighbourhood:
    """The neighbours of ``slots``."""
    # What nobody said is no turn of a talk: facts filed under one session do not lean on each other.
    order = evidence.order
    words, speakers = evidence.whole_column("words"), evidence.whole_column("speaker")
    return Neighbourhood(*native.neighbours(order.previous, order.next, words, speakers, slots, reach))
