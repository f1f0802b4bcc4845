"""Suspicion: the time a member has to object before it is believed dead (Lifeguard's LHA-Suspicion), and its last word.

A refutation that gossip did not bring to *this* node (with 20 % loss one in some hundred does not arrive) would let the
suspicion run out here although everybody else knows better. So before the end the accused is asked directly, with the
accusation in the same packet; if it lives, the answer brings the refutation.

Invariant: a suspicion never ends before ``min_ms`` of this node's running time, nor later than ``max_ms`` plus the last
words; only members other than the first accuser shorten it. Called by ``beliefs``.
"""

from __future__ import annotations

import heapq
import math

from dakera_cluster.model.ids import NodeId


class Suspicion:
    """One running suspicion. ``deadline_ms`` is when it turns into a death unless it was refuted; ``asks`` times before
    that, ``ask_gap_ms`` apart, the accused is asked for its last word."""

    __slots__ = (
        "_accusers",
        "_ask_gap_ms",
        "_asks",
        "_expected",
        "_max_ms",
        "_min_ms",
        "_started_ms",
        "deadline_ms",
        "node",
    )

    def __init__(
        self,
        node: NodeId,
        accuser: NodeId,
        now_ms: float,
        *,
        min_ms: float,
        max_ms: float,
        expected: int,
        asks: int = 0,
        ask_gap_ms: float = 0.0,
    ) -> None:
        self.node = node
        self._started_ms = now_ms
        self._min_ms = min_ms
        self._max_ms = max_ms
        self._expected = expected
        self._asks = asks
        self._ask_gap_ms = ask_gap_ms
        self._accusers = {accuser: None}
        self.deadline_ms = now_ms + (max_ms if expected > 0 else min_ms)

    @property
    def confirmations(self) -> int:
        """Independent accusers besides the first."""
        return len(self._accusers) - 1

    @property
    def due_ms(self) -> float:
        """When something is to be done: the next question, or the end."""
        return self.deadline_ms - self._asks * self._ask_gap_ms

    def ask(self, now_ms: float) -> bool:
        """Whether the accused is to be asked now. A wait that was cut short lasts at least until it can have answered."""
        if self._asks == 0:
            return False
        self.deadline_ms = max(self.deadline_ms, now_ms + self._asks * self._ask_gap_ms)
        self._asks -= 1
        return True

    def confirm(self, accuser: NodeId) -> bool:
        """Count an accuser once. True when it shortened the wait, which makes it worth telling others."""
        if self.confirmations >= self._expected or accuser in self._accusers:
            return False
        self._accusers[accuser] = None
        share = math.log(self.confirmations + 1) / math.log(self._expected + 1)
        span = max(self._min_ms, self._max_ms - share * (self._max_ms - self._min_ms))
        self.deadline_ms = self._started_ms + span
        return True

    def condemn(self) -> bool:
        """Somebody waited a whole suspicion in vain: as good as all confirmations. True when it shortened the wait."""
        deadline_ms = self._started_ms + self._min_ms
        if deadline_ms >= self.deadline_ms:
            return False
        self._expected = 0
        self.deadline_ms = deadline_ms
        return True

    def credit(self, stolen_ms: float) -> None:
        """Give back time in which this node could not have heard an objection."""
        self._started_ms += stolen_ms
        self.deadline_ms += stolen_ms


class Suspicions:
    """All running suspicions, ordered by when they are due (a heap with lazy deletion: an entry counts only while it still
    matches its suspicion)."""

    __slots__ = ("_heap", "_running")

    def __init__(self) -> None:
        self._running: dict[NodeId, Suspicion] = {}
        self._heap: list[tuple[float, NodeId]] = []

    def get(self, node: NodeId) -> Suspicion | None:
        return self._running.get(node)

    def start(self, suspicion: Suspicion) -> None:
        self._running[suspicion.node] = suspicion
        self.reschedule(suspicion)

    def reschedule(self, suspicion: Suspicion) -> None:
        heapq.heappush(self._heap, (suspicion.due_ms, suspicion.node))

    def stop(self, node: NodeId) -> None:
        self._running.pop(node, None)

    def credit(self, stolen_ms: float) -> None:
        for suspicion in self._running.values():
            suspicion.credit(stolen_ms)
        self._heap = [(suspicion.due_ms, suspicion.node) for suspicion in self._running.values()]
        heapq.heapify(self._heap)

    def deadline_ms(self) -> float:
        """When the first running suspicion wants something done; infinity when there is none."""
        heap = self._heap
        while heap:
            due_ms, node = heap[0]
            suspicion = self._running.get(node)
            if suspicion is not None and suspicion.due_ms == due_ms:
                return due_ms
            heapq.heappop(heap)
        return math.inf

    def next_due(self, now_ms: float) -> Suspicion | None:
        """One suspicion that is due; call ``reschedule`` or ``stop`` before asking for the next."""
        if self.deadline_ms() > now_ms:
            return None
        return self._running[heapq.heappop(self._heap)[1]]

    def __len__(self) -> int:
        return len(self._running)
