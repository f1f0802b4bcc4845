"""Whom to probe next, the probe that is running, and the probes run for others.

Invariant: every present member is probed once in each pass over the order, so a crash is noticed within two passes
whatever the random numbers are (SWIM 4.3: round robin, shuffled after every pass, newcomers at a random place).
Called by ``swim``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.members import Address

if TYPE_CHECKING:
    from random import Random


class ProbeOrder:
    """The members to probe, in the order of this pass."""

    __slots__ = ("_next", "_order", "_rng")

    def __init__(self, rng: Random) -> None:
        self._order: list[NodeId] = []
        self._next = 0
        self._rng = rng

    def add(self, node: NodeId) -> None:
        position = self._rng.randrange(len(self._order) + 1)
        self._order.insert(position, node)
        if position < self._next:
            self._next += 1

    def add_all(self, nodes: list[NodeId]) -> None:
        """Many newcomers at once: a shuffled pass starts, which costs O(n) instead of O(n^2)."""
        self._order.extend(nodes)
        self._rng.shuffle(self._order)
        self._next = 0

    def remove(self, node: NodeId) -> None:
        position = self._order.index(node)
        del self._order[position]
        if position < self._next:
            self._next -= 1

    def next(self) -> NodeId | None:
        """The next to probe; None when there is nobody."""
        if not self._order:
            return None
        if self._next >= len(self._order):
            self._rng.shuffle(self._order)
            self._next = 0
        node = self._order[self._next]
        self._next += 1
        return node

    def sample(self, count: int, is_wanted: Callable[[NodeId], bool]) -> list[NodeId]:
        """Up to ``count`` different members that are wanted, uniformly. Draws by rejection, as nearly all members are
        wanted nearly always; scans once when the draws are used up."""
        order = self._order
        if len(order) > 2 * count + 2:
            chosen: list[NodeId] = []
            for _ in range(4 * count):
                node = order[int(self._rng.random() * len(order))]
                if node not in chosen and is_wanted(node):
                    chosen.append(node)
                    if len(chosen) == count:
                        return chosen
        wanted = [node for node in order if is_wanted(node)]
        return wanted if len(wanted) <= count else self._rng.sample(wanted, count)

    def __len__(self) -> int:
        return len(self._order)


class Probe:
    """The one probe this node runs per period. First the target alone is asked until ``direct_ms``, then others too;
    the verdict falls at ``verdict_ms``."""

    __slots__ = ("addr", "direct_ms", "helpers", "nacks", "seq", "target", "verdict_ms")

    def __init__(self, target: NodeId, addr: Address, seq: int, direct_ms: float, verdict_ms: float) -> None:
        self.target = target
        self.addr = addr
        self.seq = seq
        self.direct_ms = direct_ms
        self.verdict_ms = verdict_ms
        self.helpers = 0
        self.nacks = 0

    @property
    def deadline_ms(self) -> float:
        return min(self.direct_ms, self.verdict_ms)

    def ask_others(self) -> None:
        """The direct phase is over."""
        self.direct_ms = math.inf

    def credit(self, stolen_ms: float) -> None:
        self.direct_ms += stolen_ms
        self.verdict_ms += stolen_ms


class Relay:
    """One probe run for another node."""

    __slots__ = ("asker", "asker_node", "asker_seq", "expires_ms", "nack_ms", "target")

    def __init__(
        self, asker: Address, asker_node: NodeId, asker_seq: int, target: NodeId, nack_ms: float, expires_ms: float
    ) -> None:
        self.asker = asker
        self.asker_node = asker_node
        self.asker_seq = asker_seq
        self.target = target
        self.nack_ms = nack_ms
        self.expires_ms = expires_ms


class Relays:
    """Probes for others, oldest first; all wait equally long, so insertion order is deadline order."""

    __slots__ = ("_nackable", "_running")

    def __init__(self) -> None:
        self._running: dict[int, Relay] = {}
        self._nackable: dict[int, Relay] = {}

    def add(self, seq: int, relay: Relay) -> None:
        self._running[seq] = relay
        self._nackable[seq] = relay

    def answered(self, seq: int, target: NodeId) -> Relay | None:
        """The relay that this ack completes, if any; a late ack still counts after the nack was sent."""
        relay = self._running.get(seq)
        if relay is None or relay.target != target:
            return None
        del self._running[seq]
        self._nackable.pop(seq, None)
        return relay

    def deadline_ms(self) -> float:
        for relay in self._nackable.values():
            return relay.nack_ms
        return math.inf

    def pop_unanswered(self, now_ms: float) -> Relay | None:
        """One relay whose asker is to get a nack now."""
        for seq, relay in self._nackable.items():
            if relay.nack_ms > now_ms:
                return None
            del self._nackable[seq]
            return relay
        return None

    def expire(self, now_ms: float) -> None:
        while self._running:
            seq, relay = next(iter(self._running.items()))
            if relay.expires_ms > now_ms:
                return
            del self._running[seq]
            self._nackable.pop(seq, None)

    def __len__(self) -> int:
        return len(self._running)
