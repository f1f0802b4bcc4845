"""What goes into the membership core and what comes out of it. The core does nothing by itself: the driver turns the
world into events, and carries the effects out, in order.

Duties of a driver: feed ``Tick`` whenever ``next_deadline_ms()`` has come (late is allowed, early is harmless); answer
every ``PushPull`` and ``StreamProbe`` with exactly one result event; give ``now_ms`` of one clock that never goes back.
"""

from __future__ import annotations

import enum

import msgspec

from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.members import Address, Member, Meta
from dakera_cluster.protocols.packets import ClusterState, Packet, Sync


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


class PacketReceived(msgspec.Struct, frozen=True):
    """A decoded datagram; ``source`` is where answers go."""

    source: Address
    packet: Packet


class StreamProbeResult(msgspec.Struct, frozen=True):
    """Outcome of a ``StreamProbe``: did the node with that id answer over TCP?"""

    seq: int
    answered: bool


class PushPullResult(msgspec.Struct, frozen=True):
    """Outcome of a ``PushPull``: the other side's state, or None when it could not be had."""

    addr: Address
    sync: Sync | None


class SyncReceived(msgspec.Struct, frozen=True):
    """Another node started an exchange with us; the driver answers it with ``Swim.sync()``."""

    sync: Sync


class LoopLag(msgspec.Struct, frozen=True):
    """The event loop just ran ``lag_ms`` late. Feed it before the packets and ticks that waited meanwhile."""

    lag_ms: float


class UpdateMeta(msgspec.Struct, frozen=True):
    """This node has something new to say about itself, or a new address."""

    meta: Meta
    addr: Address | None = None


class PublishState(msgspec.Struct, frozen=True):
    """This node learned a cluster state elsewhere (it wrote or read the bucket)."""

    state: ClusterState


class Leave(msgspec.Struct, frozen=True):
    """Announce a graceful leave. ``LeaveComplete`` follows."""


Event = (
    Tick
    | PacketReceived
    | StreamProbeResult
    | PushPullResult
    | SyncReceived
    | LoopLag
    | UpdateMeta
    | PublishState
    | Leave
)


class SendPacket(msgspec.Struct, frozen=True):
    addr: Address
    packet: Packet


class PushPull(msgspec.Struct, frozen=True):
    """Exchange full state with whoever lives at ``addr``; answer with ``PushPullResult``."""

    addr: Address


class StreamProbe(msgspec.Struct, frozen=True):
    """Ask over TCP whether ``node`` lives at ``addr``; answer with ``StreamProbeResult``."""

    seq: int
    addr: Address
    node: NodeId


class Change(enum.Enum):
    """What happened to our belief about a member."""

    JOINED = "joined"
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"
    UPDATED = "updated"
    """Still alive, with a new boot, address or metadata."""
    REAPED = "reaped"


class MemberEvent(msgspec.Struct, frozen=True):
    change: Change
    member: Member


class Conflict(msgspec.Struct, frozen=True):
    """Two live processes use one node id. When ``node`` is our own id, this process must stop: with ``boot`` above our
    own it was superseded, with the same boot its disk was copied."""

    node: NodeId
    boot: BootId
    addr: Address | None
    is_self: bool


class StateAdvanced(msgspec.Struct, frozen=True):
    """A member told of a newer cluster state; fetch it from ``source`` or from the bucket."""

    state: ClusterState
    source: NodeId


class LeaveComplete(msgspec.Struct, frozen=True):
    """Our leave was told often enough, or for long enough."""


Effect = SendPacket | PushPull | StreamProbe | MemberEvent | Conflict | StateAdvanced | LeaveComplete
