"""Suspicion: the time a member has to object before it is believed dead (Lifeguard's LHA-Suspicion).

Invariant: a suspicion never ends before ``min_ms`` and never after ``max_ms`` of this node's running time, and only
members other than the first accuser shorten it. Called by ``beliefs``.
"""

from __future__ import annotations

import heapq
import math

from dakera_cluster.model.ids import NodeId


class Suspicion:
    """One running suspicion. ``deadline_ms`` is when it turns into a death unless it was refuted."""

    __slots__ = ("_accusers", "_expected", "_max_ms", "_min_ms", "_started_ms", "deadline_ms", "node")

    def __init__(
        self, node: NodeId, accuser: NodeId, now_ms: float, min_ms: float, max_ms: float, expected: int
    ) -> None:
        self.node = node
        self._started_ms = now_ms
        self._min_ms = min_ms
        self._max_ms = max_ms
        self._expected = expected
        self._accusers = {accuser: None}
        self.deadline_ms = now_ms + (max_ms if expected > 0 else min_ms)

    @property
    def confirmations(self) -> int:
        """Independent accusers besides the first."""
        return len(self._accusers) - 1

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
    """All running suspicions, ordered by deadline (a heap with lazy deletion: confirmations only move deadlines forward
    in the heap, and a heap entry counts only while it still matches its suspicion)."""

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
        heapq.heappush(self._heap, (suspicion.deadline_ms, suspicion.node))

    def stop(self, node: NodeId) -> None:
        self._running.pop(node, None)

    def credit(self, stolen_ms: float) -> None:
        for suspicion in self._running.values():
            suspicion.credit(stolen_ms)
        self._heap = [(suspicion.deadline_ms, suspicion.node) for suspicion in self._running.values()]
        heapq.heapify(self._heap)

    def deadline_ms(self) -> float:
        """The earliest end of a running suspicion; infinity when there is none."""
        heap = self._heap
        while heap:
            deadline_ms, node = heap[0]
            suspicion = self._running.get(node)
            if suspicion is not None and suspicion.deadline_ms == deadline_ms:
                return deadline_ms
            heapq.heappop(heap)
        return math.inf

    def pop_due(self, now_ms: float) -> Suspicion | None:
        """Remove and return one suspicion whose time is over."""
        if self.deadline_ms() > now_ms:
            return None
        _, node = heapq.heappop(self._heap)
        return self._running.pop(node)

    def __len__(self) -> int:
        return len(self._running)
