"""Finding each other again: seeds and the recently dead are dialled for ever, with back-off.

After a partition each side believes the other dead, and nobody probes the dead; without re-dialling the cluster would
stay split for ever. One successful exchange is enough: both sides tell each other what they hold against whom, the
accused refute with a higher incarnation, and gossip does the rest.

Invariant: as long as a seed is not a present member, or a dead member has not come back, some dial to it lies ahead.
A dial never repeats faster than its back-off. Called by ``beliefs`` (who died, who lives) and ``swim`` (when to dial).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.members import Address
from dakera_cluster.protocols.swim_config import SwimConfig

if TYPE_CHECKING:
    from random import Random

_JITTER = 0.25
"""Spread of every back-off, so that the survivors of a partition do not dial in step."""


class _Lead:
    """An address worth dialling. ``node`` is who answered there (seeds) or who lived there (the dead)."""

    __slots__ = ("addr", "attempts", "due_ms", "node", "settled")

    def __init__(self, addr: Address, node: NodeId | None, due_ms: float) -> None:
        self.addr = addr
        self.node = node
        self.due_ms = due_ms
        self.attempts = 0
        self.settled = False


class Redialler:
    """Who to dial, and when."""

    __slots__ = ("_config", "_deadline_ms", "_lost", "_rng", "_seeds", "_self")

    def __init__(self, config: SwimConfig, me: NodeId, seeds: Iterable[Address], rng: Random, now_ms: float) -> None:
        self._config = config
        self._self = me
        self._rng = rng
        self._seeds = {addr: _Lead(addr, None, now_ms) for addr in seeds}
        self._lost: dict[NodeId, _Lead] = {}
        self._deadline_ms = now_ms if self._seeds else math.inf

    def deadline_ms(self) -> float:
        return self._deadline_ms

    def pop_due(self, now_ms: float, n: int) -> list[Address]:
        """Addresses to dial now; each is due again after its back-off, whether or not a result comes."""
        if now_ms < self._deadline_ms:
            return []
        due: dict[Address, None] = {}
        for lead in self._leads():
            if not lead.settled and lead.due_ms <= now_ms:
                due[lead.addr] = None
                lead.due_ms = now_ms + self._backoff_ms(lead.attempts, n)
                lead.attempts += 1
        self._refresh()
        return list(due)

    def answered(self, addr: Address, node: NodeId, is_present: bool) -> None:
        """``node`` answered a dial of ``addr``. A seed that is a present member needs no more dialling; neither does our
        own address, unless we are alone (``is_present`` is False then)."""
        lead = self._seeds.get(addr)
        if lead is not None:
            lead.node = node
            lead.attempts = 0
            lead.settled = is_present
            self._refresh()

    def came_back(self, node: NodeId) -> None:
        """``node`` is present (again)."""
        self._lost.pop(node, None)
        for lead in self._seeds.values():
            if lead.node == node or lead.node == self._self:
                lead.settled = True
        self._refresh()

    def left(self, node: NodeId, now_ms: float) -> None:
        """``node`` went on purpose: it is not looked for, unless its address is a seed's."""
        self._lost.pop(node, None)
        self._unsettle(node, now_ms)
        self._refresh()

    def died(self, node: NodeId, addr: Address, now_ms: float) -> None:
        self._lost.pop(node, None)
        self._lost[node] = _Lead(addr, node, now_ms + self._backoff_ms(0, 1))
        if len(self._lost) > self._config.redial_lost_max:
            del self._lost[next(iter(self._lost))]
        self._unsettle(node, now_ms)
        self._refresh()

    def alone(self, now_ms: float) -> None:
        """Nobody is left: even the seed that answered with our own id may lead to others (a name with many addresses)."""
        self._unsettle(self._self, now_ms)
        self._refresh()

    def _unsettle(self, node: NodeId, now_ms: float) -> None:
        for lead in self._seeds.values():
            if lead.settled and lead.node == node:
                lead.settled = False
                lead.attempts = 0
                lead.due_ms = now_ms + self._backoff_ms(0, 1)

    def _leads(self) -> Iterable[_Lead]:
        yield from self._seeds.values()
        yield from self._lost.values()

    def _refresh(self) -> None:
        self._deadline_ms = min((lead.due_ms for lead in self._leads() if not lead.settled), default=math.inf)

    def _backoff_ms(self, attempts: int, n: int) -> float:
        cap_ms = self._config.redial_cap_ms(n)
        base_ms = min(cap_ms, self._config.redial_min_ms * 2.0 ** min(attempts, 40))
        return base_ms * (1 - _JITTER + 2 * _JITTER * self._rng.random())
