"""What still has to be told: updates piggybacked on every packet, each a bounded number of times.

Invariant: at most one update per node waits (newer news replaces older), and none is sent more than the limit of its
day. Order: fewest tellings first, then urgency (news of death and doubt before news of life), then newest. Fewest-first
is what bounds the spread in O(log N) rounds (SWIM 4.1): fresh news always travels, however long the queue is.

Called by ``beliefs`` (add) and ``swim`` (take).
"""

from __future__ import annotations

import enum

import msgspec

from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.members import Update

_encoder = msgspec.msgpack.Encoder()
_SMALLEST_UPDATE_BYTES = 10
"""No use looking for another update in less room than this."""


def update_bytes(update: Update) -> int:
    """Encoded size of one update inside a packet."""
    return len(_encoder.encode(update))


class Urgency(enum.IntEnum):
    """Order among updates told equally often."""

    SELF = 0
    """Our own refutation: every period it is late may cost us our life."""
    ACCUSATION = 1
    PRESENCE = 2
    DEATH = 3


class _Broadcast:
    __slots__ = ("rank", "size", "update")

    def __init__(self, update: Update, size: int, rank: int) -> None:
        self.update = update
        self.size = size
        self.rank = rank


_STEP = len(Urgency)


class Dissemination:
    """The queue. ``rank`` of a broadcast is tellings * 4 + urgency; broadcasts of one rank share a bucket, so taking k
    updates costs O(k + buckets) however long the queue is."""

    __slots__ = ("_buckets", "_nudges", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[NodeId, _Broadcast] = {}
        self._buckets: dict[int, dict[NodeId, _Broadcast]] = {}
        self._nudges = 0

    def add(self, update: Update, urgency: Urgency) -> None:
        """Tell this from now on, instead of whatever was told about the same node."""
        self.forget(update.node)
        broadcast = _Broadcast(update, update_bytes(update), int(urgency))
        self._waiting[update.node] = broadcast
        self._buckets.setdefault(broadcast.rank, {})[update.node] = broadcast

    def forget(self, node: NodeId) -> None:
        broadcast = self._waiting.pop(node, None)
        if broadcast is not None:
            self._unlink(broadcast)

    def nudge(self, times: int) -> None:
        """Keep bursts going for ``times`` packets although no update waits: every packet carries the cluster state."""
        self._nudges = max(self._nudges, times)

    def is_waiting(self, node: NodeId) -> bool:
        return node in self._waiting

    @property
    def is_pending(self) -> bool:
        return self._nudges > 0 or bool(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def clear(self) -> None:
        """There is nobody to tell; whoever comes later gets the full state first."""
        self._waiting.clear()
        self._buckets.clear()
        self._nudges = 0

    def take(self, budget_bytes: int, limit: int) -> list[Update]:
        """Updates for one packet, at most ``budget_bytes`` encoded, and count them as told. What was told ``limit``
        times is forgotten."""
        if self._nudges > 0:
            self._nudges -= 1
        if not self._waiting:
            return []
        taken: list[_Broadcast] = []
        updates: list[Update] = []
        for rank in sorted(self._buckets):
            if budget_bytes < _SMALLEST_UPDATE_BYTES:
                break
            for broadcast in reversed(self._buckets[rank].values()):
                if budget_bytes < _SMALLEST_UPDATE_BYTES:
                    break
                if broadcast.size <= budget_bytes:
                    budget_bytes -= broadcast.size
                    taken.append(broadcast)
                    updates.append(broadcast.update)
        for broadcast in taken:
            self._unlink(broadcast)
            broadcast.rank += _STEP
            if broadcast.rank // _STEP >= limit:
                del self._waiting[broadcast.update.node]
            else:
                self._buckets.setdefault(broadcast.rank, {})[broadcast.update.node] = broadcast
        return updates

    def _unlink(self, broadcast: _Broadcast) -> None:
        bucket = self._buckets[broadcast.rank]
        del bucket[broadcast.update.node]
        if not bucket:
            del self._buckets[broadcast.rank]
