"""Who is in the cluster, as this node believes it: the nouns of membership and the rule that orders news about a member.

Invariant: news about one node is totally ordered by (boot, incarnation, state), alive < suspect < dead < left, and a
belief only ever moves up that order. All nodes that heard the same news therefore believe the same, in whatever order,
and however often, they heard it. Only the member itself raises its incarnation, so nobody can be revived by hearsay.

    news of a node we hold as          alive(b,i)   suspect(b,i)   dead(b,i)        left(b,i)
    unknown, news carries address      adopt        adopt          adopt (grave)    adopt (grave)
    unknown, no address                ignore       ignore         ignore           ignore
    anything, news is older            ignore       ignore         ignore           ignore
    alive, same (b,i)                  ignore [1]   adopt          doubt [2]        adopt
    suspect, same (b,i)                ignore [1]   confirm        condemn [2]      adopt
    dead, same (b,i)                   ignore       ignore         ignore           adopt
    left, same (b,i)                   ignore       ignore         ignore           ignore
    alive or suspect, news is newer    adopt        adopt [3]      doubt [2][3]     adopt
    dead or left, news is newer        adopt        adopt [3]      adopt [3]        adopt

[1] CONFLICT when the address differs: one incarnation cannot live at two addresses.
[2] A remote death is hearsay: the member becomes suspect here and gets one minimal suspicion time to object. With
    ``DOUBT_DEATHS`` off (plain SWIM) it is adopted.
[3] Ignored when it speaks of a later boot than the one we know and carries no address: that life is not known yet.

Called by ``beliefs`` (apply news), ``swim`` and the driver (snapshots).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import msgspec

from dakera_cluster.model.ids import BootId, NodeId

META_MAX_BYTES = 256
"""Bound on the encoded metadata of one member: an alive message must leave room for others in a 1,200 byte packet."""
NODE_ID_MAX_BYTES = 64
HOST_MAX_BYTES = 64

Meta = dict[str, str | int]
"""Small facts a node tells about itself: api url, peer port, zone, shard-map version, ... Never mutated once published."""


WireNumber = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""Incarnations, epochs, versions on the wire: exact in every language that reads msgpack."""
WireBoot = Annotated[BootId, msgspec.Meta(ge=0, le=1 << 53)]
WireNodeId = Annotated[NodeId, msgspec.Meta(min_length=1, max_length=NODE_ID_MAX_BYTES)]


class Address(NamedTuple):
    """Where a node's gossip endpoint is reached; metadata of a member, never its identity."""

    host: Annotated[str, msgspec.Meta(min_length=1, max_length=HOST_MAX_BYTES)]
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]


class NodeState(enum.IntEnum):
    """Rank of a claim about one incarnation; a higher rank overrides a lower one."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3

    @property
    def is_present(self) -> bool:
        """Probed, gossiped to, counted in N."""
        return self <= NodeState.SUSPECT


ALIVE, SUSPECT, DEAD, LEFT = NodeState.ALIVE, NodeState.SUSPECT, NodeState.DEAD, NodeState.LEFT


class Update(msgspec.Struct, frozen=True, array_like=True):
    """One claim, as it travels: ``origin`` says that ``node`` (boot, incarnation) is in ``state``.

    ``addr`` and ``meta`` are there when the state is alive, and in state sync; accusations travel without them.
    """

    node: WireNodeId
    boot: WireBoot
    incarnation: WireNumber
    state: NodeState
    origin: WireNodeId
    addr: Address | None = None
    meta: Meta | None = None


class Member(msgspec.Struct, frozen=True):
    """What this node believes of another. ``since_ms`` is when it came to believe the state, on the local clock."""

    node: NodeId
    boot: BootId
    incarnation: int
    state: NodeState
    addr: Address
    meta: Meta
    since_ms: float = 0.0

    def claim(self, origin: NodeId) -> Update:
        """The claim to gossip: short for accusations, complete for the living."""
        if self.state is ALIVE:
            return self.record(origin)
        return Update(self.node, self.boot, self.incarnation, self.state, origin)

    def record(self, origin: NodeId) -> Update:
        """The complete claim, for state sync: the reader may not know the member at all."""
        return Update(self.node, self.boot, self.incarnation, self.state, origin, self.addr, self.meta)


class Verdict(enum.Enum):
    """What to do with a claim about another node; the table stands on top of this module."""

    IGNORE = "ignore"
    ADOPT = "adopt"
    CONFIRM = "confirm"
    DOUBT = "doubt"
    CONDEMN = "condemn"
    CONFLICT = "conflict"


def judge(held: Member | None, news: Update, doubt_deaths: bool) -> Verdict:
    """Order one claim against the held belief. Pure; total over every (belief, claim) pair."""
    state = news.state
    if held is None:
        return Verdict.IGNORE if news.addr is None else Verdict.ADOPT
    if news.boot != held.boot:
        newer = news.boot > held.boot
    elif news.incarnation != held.incarnation:
        newer = news.incarnation > held.incarnation
    else:
        return _judge_same_incarnation(held, news, doubt_deaths)
    if not newer:
        return Verdict.IGNORE
    if news.boot != held.boot and news.addr is None and state is not LEFT:
        return Verdict.IGNORE
    if state is DEAD and doubt_deaths and held.state.is_present:
        return Verdict.DOUBT
    return Verdict.ADOPT


def _judge_same_incarnation(held: Member, news: Update, doubt_deaths: bool) -> Verdict:
    state = news.state
    if state is ALIVE:
        moved = held.state.is_present and news.addr is not None and news.addr != held.addr
        return Verdict.CONFLICT if moved else Verdict.IGNORE
    if state <= held.state:
        return Verdict.CONFIRM if state is SUSPECT and held.state is SUSPECT else Verdict.IGNORE
    if state is DEAD and doubt_deaths:
        return Verdict.DOUBT if held.state is ALIVE else Verdict.CONDEMN
    return Verdict.ADOPT


class SelfVerdict(enum.Enum):
    """What to do with a claim about this very process."""

    IGNORE = "ignore"
    REFUTE = "refute"
    REASSERT = "reassert"
    """An accusation or an earlier life that we already outlived: whoever says so missed our answer, so give it again."""
    SUPERSEDED = "superseded"
    """A later boot holds our node id: this process lost its identity and must not refute."""
    DUPLICATE = "duplicate"
    """Another process claims our node id and boot (a copied disk): refuting would only start a war of incarnations."""


def judge_self(me: Member, news: Update) -> SelfVerdict:
    """Order a claim about this process. ``me.state`` is LEFT from the moment this process announced its leave."""
    if news.boot > me.boot:
        return SelfVerdict.SUPERSEDED
    if news.boot < me.boot:
        return SelfVerdict.REASSERT
    if news.state is ALIVE:
        ours = news.incarnation < me.incarnation or (news.incarnation == me.incarnation and news.addr == me.addr)
        return SelfVerdict.IGNORE if ours else SelfVerdict.DUPLICATE
    if news.incarnation < me.incarnation:
        return SelfVerdict.REASSERT
    if me.state is LEFT:
        return SelfVerdict.IGNORE
    return SelfVerdict.REFUTE


class Membership:
    """The table of other nodes (never this one), and how many are present: kept as it changes, N is read on every packet."""

    __slots__ = ("_members", "present")

    def __init__(self) -> None:
        self._members: dict[NodeId, Member] = {}
        self.present = 0

    def get(self, node: NodeId) -> Member | None:
        return self._members.get(node)

    def put(self, member: Member) -> None:
        old = self._members.get(member.node)
        if old is not None and old.state.is_present:
            self.present -= 1
        if member.state.is_present:
            self.present += 1
        self._members[member.node] = member

    def drop(self, node: NodeId) -> None:
        old = self._members.pop(node, None)
        if old is not None and old.state.is_present:
            self.present -= 1

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)
