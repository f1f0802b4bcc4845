"""Everything this node says: packets with news piggybacked, and short bursts while there is news.

Invariants: no packet exceeds ``PACKET_MAX_BYTES``; whatever we hold against the receiver is the first thing it reads; at
most one burst per ``gossip_interval_ms``, none without news. Called by ``swim``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.beliefs import Beliefs
from dakera_cluster.protocols.dissemination import update_bytes
from dakera_cluster.protocols.members import ALIVE, DEAD, Address, Update
from dakera_cluster.protocols.packets import Body, ClusterState, Gossip, Packet, update_budget_bytes
from dakera_cluster.protocols.swim_config import Feature, SwimConfig
from dakera_cluster.protocols.swim_events import Effect, SendPacket
from dakera_cluster.protocols.swim_stats import SwimStats

if TYPE_CHECKING:
    from random import Random


class Outbox:
    """Composes packets. ``cluster_state`` rides on every one of them."""

    __slots__ = ("_beliefs", "_config", "_next_burst_ms", "_rng", "_stats", "_tells_first", "cluster_state")

    def __init__(self, config: SwimConfig, beliefs: Beliefs, stats: SwimStats, rng: Random, now_ms: float) -> None:
        self.cluster_state = ClusterState()
        self._config = config
        self._beliefs = beliefs
        self._stats = stats
        self._rng = rng
        self._next_burst_ms = now_ms
        self._tells_first = config.has(Feature.BUDDY)

    def deadline_ms(self) -> float:
        return self._next_burst_ms if self._beliefs.gossip.is_pending else math.inf

    def publish(self, state: ClusterState) -> None:
        """Carry a newer cluster state, and make sure that packets go out that carry it."""
        self.cluster_state = state
        self._beliefs.gossip.nudge(self._config.retransmit_limit(self._beliefs.n))

    def hurry(self, now_ms: float) -> None:
        """The next burst need not keep its distance from the last."""
        self._next_burst_ms = now_ms

    def burst_if_due(self, now_ms: float, out: list[Effect]) -> None:
        """Tell the news to a few at once instead of waiting for the next probe."""
        beliefs = self._beliefs
        if now_ms < self._next_burst_ms or not beliefs.gossip.is_pending:
            return
        self._next_burst_ms = now_ms + self._config.gossip_interval_ms
        targets = beliefs.order.sample(self._config.gossip_fanout, lambda node: True)
        told_dead = self._tell_dead(now_ms, out)
        if not targets and not told_dead:
            beliefs.gossip.clear()
            return
        self._stats.gossip_bursts += 1
        for node in targets:
            member = beliefs.members.get(node)
            if member is not None and beliefs.gossip.is_pending:
                self.send(member.addr, node, Gossip(), out)

    def send(self, addr: Address, to: NodeId, body: Body, out: list[Effect]) -> None:
        """One packet with as much news as fits; first of all what we hold against ``to``, so that it can object."""
        beliefs = self._beliefs
        held = beliefs.members.get(to)
        accused = held is not None and held.state is not ALIVE and (self._tells_first or held.state is DEAD)
        if not accused and not beliefs.gossip.is_pending:
            self.post(addr, body, (), out)
            return
        budget = update_budget_bytes(beliefs.me.node, body)
        limit = self._config.retransmit_limit(beliefs.n)
        if not accused:
            self.post(addr, body, tuple(beliefs.gossip.take(budget, limit)), out)
            return
        assert held is not None
        claim = held.claim(beliefs.me.node)
        news = beliefs.gossip.take(budget - update_bytes(claim), limit)
        self.post(addr, body, (claim, *(update for update in news if update.node != to)), out)

    def post(self, addr: Address, body: Body, updates: tuple[Update, ...], out: list[Effect]) -> None:
        """One packet with exactly these updates. Nothing goes to our own address: who lived there before us is gone, and
        a packet of our own coming back would look like a twin's."""
        me = self._beliefs.me
        if addr == me.addr:
            return
        self._stats.packets_sent += 1
        self._stats.updates_sent += len(updates)
        out.append(SendPacket(addr, Packet(me.node, me.boot, body, self.cluster_state, updates)))

    def _tell_dead(self, now_ms: float, out: list[Effect]) -> bool:
        """Now and then a burst includes a dead member: if it lives after all, it learns what we believe. It gets that one
        claim only; news told to the dead would count as told."""
        dead = self._beliefs.recently_dead(now_ms)
        if not dead or self._rng.random() >= len(dead) / (len(dead) + len(self._beliefs.order)):
            return False
        member = dead[int(self._rng.random() * len(dead))]
        self.post(member.addr, Gossip(), (member.claim(self._beliefs.me.node),), out)
        return True
