"""What this node believes about everybody, itself included, and how news changes it.

Theory: every claim, heard or our own, goes through ``judge`` (members.py has the table); this module carries the verdict
out: the table of members, the running suspicions, the probe order, the graves, what is gossiped next, and the events
for the rest of the node. A claim about this very process is answered, never believed.

Invariants: a member is in the probe order exactly while it is present, has a suspicion exactly while it is SUSPECT, and
a grave exactly while it is DEAD or LEFT. Our own incarnation never falls. Called by ``swim`` only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.dissemination import Dissemination, Urgency
from dakera_cluster.protocols.healing import Redialler
from dakera_cluster.protocols.health import LocalHealth
from dakera_cluster.protocols.members import (
    ALIVE,
    DEAD,
    LEFT,
    META_MAX_BYTES,
    SUSPECT,
    Address,
    Member,
    Membership,
    Meta,
    NodeState,
    SelfVerdict,
    Update,
    Verdict,
    judge,
    judge_self,
)
from dakera_cluster.protocols.probing import ProbeOrder
from dakera_cluster.protocols.suspicion import Suspicion, Suspicions
from dakera_cluster.protocols.swim_config import Feature, SwimConfig
from dakera_cluster.protocols.swim_events import Change, Conflict, Effect, MemberEvent
from dakera_cluster.protocols.swim_stats import SwimStats

_URGENCY = {ALIVE: Urgency.PRESENCE, SUSPECT: Urgency.ACCUSATION, DEAD: Urgency.DEATH, LEFT: Urgency.PRESENCE}
_encoder = msgspec.msgpack.Encoder()


def check_meta(meta: Meta) -> Meta:
    """``meta`` when it fits its bound; raises ValueError otherwise."""
    size = len(_encoder.encode(meta))
    if size > META_MAX_BYTES:
        raise ValueError(f"metadata of a member must be at most {META_MAX_BYTES} bytes encoded, got {size}")
    return meta


class Beliefs:
    """The members, and the machinery that follows their states."""

    __slots__ = (
        "_config",
        "_conflicts_ms",
        "_doubt_deaths",
        "_graves",
        "_health",
        "_redialler",
        "_stats",
        "gossip",
        "heard_ms",
        "me",
        "members",
        "order",
        "suspicions",
    )

    def __init__(
        self,
        config: SwimConfig,
        me: Member,
        order: ProbeOrder,
        redialler: Redialler,
        health: LocalHealth,
        stats: SwimStats,
        known: Iterable[Member],
    ) -> None:
        self.me = me
        self.members = Membership()
        self.suspicions = Suspicions()
        self.gossip = Dissemination()
        self.order = order
        self.heard_ms: dict[NodeId, float] = {}
        """When each member last spoke to us itself: the age of the evidence behind a belief."""
        self._config = config
        self._doubt_deaths = config.has(Feature.DOUBT_DEATHS)
        self._redialler = redialler
        self._health = health
        self._stats = stats
        self._graves: dict[NodeId, float] = {}
        self._conflicts_ms: dict[NodeId, float] = {}
        for member in known:
            if member.node != me.node and member.state is ALIVE:
                self.members.put(member)
        self.order.add_all([member.node for member in self.members])

    @property
    def n(self) -> int:
        """Present members, this node included."""
        return self.members.present + 1

    def deadline_ms(self) -> float:
        for buried_ms in self._graves.values():
            return min(self.suspicions.deadline_ms(), buried_ms + self._config.reap_ms)
        return self.suspicions.deadline_ms()

    def recently_dead(self, now_ms: float) -> list[Member]:
        """The dead that bursts still go to."""
        dead: list[Member] = []
        for node, buried_ms in reversed(self._graves.items()):
            if now_ms - buried_ms > self._config.gossip_to_dead_ms:
                break
            member = self.members.get(node)
            if member is not None and member.state is DEAD:
                dead.append(member)
        return dead

    def apply(self, news: Update, now_ms: float, out: list[Effect], *, retell: bool = True) -> bool:
        """Take in one claim from elsewhere. ``retell`` False: adopt it silently, the others know it. True when it
        accuses this node, so that whoever told it deserves an answer."""
        self._stats.updates_received += 1
        if news.node == self.me.node:
            return self._apply_self(news, now_ms, out)
        self._apply_other(news, now_ms, out, retell=retell)
        return False

    def _apply_other(self, news: Update, now_ms: float, out: list[Effect], *, retell: bool) -> None:
        held = self.members.get(news.node)
        verdict = judge(held, news, self._doubt_deaths)
        if verdict is Verdict.IGNORE:
            self._stats.updates_ignored += 1
        elif verdict is Verdict.CONFLICT:
            self.conflict(news, now_ms, out, is_self=False)
        elif verdict is Verdict.CONFIRM:
            self._confirm(news)
        elif verdict is Verdict.CONDEMN:
            self._condemn(news)
        elif self._exceeds_bounds(held, news):
            self._stats.updates_refused += 1
        else:
            state = SUSPECT if verdict is Verdict.DOUBT else news.state
            self._adopt(held, news, state, now_ms, out)
            if retell:
                self._tell(news)
            if verdict is Verdict.DOUBT:
                self._stats.deaths_doubted += 1
                self._condemn(news)

    def _exceeds_bounds(self, held: Member | None, news: Update) -> bool:
        if held is None and len(self.members) >= self._config.members_max:
            return True
        return news.meta is not None and len(_encoder.encode(news.meta)) > META_MAX_BYTES

    def accuse(self, node: NodeId, now_ms: float, out: list[Effect]) -> None:
        """Our own probe of ``node`` failed."""
        held = self.members.get(node)
        if held is None or not held.state.is_present:
            return
        claim = Update(node, held.boot, held.incarnation, SUSPECT, self.me.node)
        if held.state is SUSPECT:
            self._confirm(claim)
        else:
            self._adopt(held, claim, SUSPECT, now_ms, out)
            self._tell(claim)

    def expire(self, now_ms: float, out: list[Effect]) -> list[Member]:
        """Suspicions that nobody refuted become deaths, old graves are forgotten. Returns the suspects to be asked for
        their last word now."""
        asked: list[Member] = []
        while (suspicion := self.suspicions.next_due(now_ms)) is not None:
            held = self.members.get(suspicion.node)
            assert held is not None and held.state is SUSPECT
            if suspicion.ask(now_ms):
                self.suspicions.reschedule(suspicion)
                asked.append(held)
                continue
            self._stats.suspicions_expired += 1
            claim = Update(held.node, held.boot, held.incarnation, DEAD, self.me.node)
            self._adopt(held, claim, DEAD, now_ms, out)
            self._tell(claim)
        self._reap(now_ms, out)
        return asked

    def _reap(self, now_ms: float, out: list[Effect]) -> None:
        for node, buried_ms in list(self._graves.items()):
            if buried_ms + self._config.reap_ms > now_ms:  # as in deadline_ms: the same sum, or rounding never ends
                break
            del self._graves[node]
            member = self.members.get(node)
            if member is not None:
                self.members.drop(node)
                self.gossip.forget(node)
                self.heard_ms.pop(node, None)
                self._stats.members_reaped += 1
                out.append(MemberEvent(Change.REAPED, member))

    def change_self(self, meta: Meta, addr: Address | None) -> None:
        """New facts about this node, under a new incarnation."""
        me = self.me
        self._become(Member(me.node, me.boot, me.incarnation + 1, me.state, addr or me.addr, check_meta(meta)))

    def leave(self) -> None:
        """From now on we are gone: same incarnation, highest rank, so that no accusation can override it."""
        self._become(msgspec.structs.replace(self.me, state=LEFT))

    def _become(self, me: Member) -> None:
        self.me = me
        self.gossip.add(me.claim(me.node), Urgency.SELF)

    def _apply_self(self, news: Update, now_ms: float, out: list[Effect]) -> bool:
        verdict = judge_self(self.me, news)
        if verdict is SelfVerdict.REFUTE:
            self._stats.refutations += 1
            self._health.add(1)
            incarnation = max(self.me.incarnation, news.incarnation) + 1
            self._become(msgspec.structs.replace(self.me, incarnation=incarnation))
        elif verdict is SelfVerdict.REASSERT:
            if not self.gossip.is_waiting(self.me.node):
                self._stats.reassertions += 1
                self._become(self.me)
        elif verdict is not SelfVerdict.IGNORE:
            self.conflict(news, now_ms, out, is_self=True)
            return False
        return verdict is not SelfVerdict.IGNORE

    def _adopt(self, held: Member | None, news: Update, state: NodeState, now_ms: float, out: list[Effect]) -> None:
        """Believe ``news``, as ``state``, and let everything that depends on the state follow."""
        if held is None:
            assert news.addr is not None
            member = Member(news.node, news.boot, news.incarnation, state, news.addr, news.meta or {}, now_ms)
        else:
            # An accusation says nothing of address and metadata: what was last known of them stays.
            addr = held.addr if news.addr is None else news.addr
            meta = held.meta if news.meta is None else news.meta
            since_ms = held.since_ms if held.state is state else now_ms
            member = Member(news.node, news.boot, news.incarnation, state, addr, meta, since_ms)
        self._stats.updates_adopted += 1
        was_present = held is not None and held.state.is_present
        self.members.put(member)
        if state is SUSPECT:
            self._start_suspicion(member.node, news.origin, now_ms)
        elif was_present:
            self.suspicions.stop(member.node)
        if state.is_present and not was_present:
            self._graves.pop(member.node, None)
            self.order.add(member.node)
            self._redialler.came_back(member.node)
        elif not state.is_present:
            self._bury(member, now_ms, was_present=was_present)
        self._report(held, member, out)

    def _start_suspicion(self, node: NodeId, accuser: NodeId, now_ms: float) -> None:
        config, n = self._config, self.n
        self._stats.suspicions_started += 1
        # With a crowd of suspects the fault is likely the network's, and questions would only add to it.
        asks = config.last_words if len(self.suspicions) < config.last_words_crowd else 0
        self.suspicions.start(
            Suspicion(
                node,
                accuser,
                now_ms,
                min_ms=config.suspicion_min_ms(n),
                max_ms=config.suspicion_max_ms(n),
                expected=config.expected_confirmations(n),
                asks=asks if config.has(Feature.LAST_WORD) else 0,
                ask_gap_ms=config.probe_timeout_ms,
            )
        )

    def _bury(self, member: Member, now_ms: float, *, was_present: bool) -> None:
        self._graves.pop(member.node, None)
        self._graves[member.node] = now_ms
        if was_present:
            self.order.remove(member.node)
        if member.state is DEAD:
            self._redialler.died(member.node, member.addr, now_ms)
        else:
            self._redialler.left(member.node, now_ms)
        if self.members.present == 0:
            self._redialler.alone(now_ms)

    def _report(self, held: Member | None, member: Member, out: list[Effect]) -> None:
        state, stats = member.state, self._stats
        if held is None:
            if not state.is_present:
                return
            stats.members_joined += 1
            out.append(MemberEvent(Change.JOINED, member))
            if state is SUSPECT:
                out.append(MemberEvent(Change.SUSPECT, member))
            return
        if state is ALIVE:
            if held.state is LEFT:
                stats.members_joined += 1
                out.append(MemberEvent(Change.JOINED, member))
                return
            if held.state is not ALIVE:
                if held.state is SUSPECT:
                    stats.suspicions_refuted += 1
                else:
                    stats.members_revived += 1
                out.append(MemberEvent(Change.ALIVE, member))
            if (held.boot, held.addr, held.meta) != (member.boot, member.addr, member.meta):
                out.append(MemberEvent(Change.UPDATED, member))
        elif held.state is not state:
            if state is DEAD:
                stats.members_died += 1
            elif state is LEFT:
                stats.members_left += 1
            elif held.state is not ALIVE:
                stats.members_revived += 1
            out.append(MemberEvent(_CHANGE[state], member))

    def _confirm(self, news: Update) -> None:
        suspicion = self.suspicions.get(news.node)
        if suspicion is not None and suspicion.confirm(news.origin):
            self._stats.suspicions_confirmed += 1
            self.suspicions.reschedule(suspicion)
            self._tell(news)
        else:
            self._stats.updates_ignored += 1

    def _condemn(self, news: Update) -> None:
        suspicion = self.suspicions.get(news.node)
        if suspicion is not None and suspicion.condemn():
            self._stats.suspicions_condemned += 1
            self.suspicions.reschedule(suspicion)
            self._tell(news)

    def _tell(self, news: Update) -> None:
        """Pass a claim on as it was made: who made it counts as an accuser wherever it arrives."""
        if news.state is not ALIVE and news.addr is not None:
            news = Update(news.node, news.boot, news.incarnation, news.state, news.origin)
        self.gossip.add(news, _URGENCY[news.state])

    def conflict(self, news: Update, now_ms: float, out: list[Effect], *, is_self: bool) -> None:
        self._stats.conflicts += 1
        if now_ms - self._conflicts_ms.get(news.node, -math.inf) < self._config.conflict_report_ms:
            return
        self._conflicts_ms.pop(news.node, None)
        self._conflicts_ms[news.node] = now_ms
        if len(self._conflicts_ms) > _CONFLICTS_MAX:
            del self._conflicts_ms[next(iter(self._conflicts_ms))]
        out.append(Conflict(news.node, news.boot, news.addr, is_self))


_CHANGE = {SUSPECT: Change.SUSPECT, DEAD: Change.DEAD, LEFT: Change.LEFT}
_CONFLICTS_MAX = 256
