"""What happens to memories and namespaces, told to whoever listens now.

An event is encoded once, when it is published, and the same bytes go to every listener of this node and, through a relay,
to the other nodes. Publishing never waits and never fails: each listener has a bounded queue, and one that does not keep up
loses its oldest events and is told how many, at the place where they are missing. Nothing is kept for later listeners.
While nobody listens, an event is not even built.

Published by the memory services after the write is durable; heard by the event streams of the API.
"""

from __future__ import annotations

import asyncio
import enum
import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from dakera_cluster.model.ids import agent_namespace
from dakera_cluster.model.memories import Memory, Session

QUEUED_EVENTS = 1_024
QUEUED_BYTES = 4 << 20
"""Of one listener, before it loses its oldest events."""
LAG_HINT = "this stream did not keep up and lost events; read what you need again, or reconnect"
EVERY_NAMESPACE = "*"
UPSERTED = "upserted"
DELETED = "deleted"
VECTORS_WORTH_TELLING = 100
"""A change of at most so many vectors is not told."""


class Stream(enum.IntEnum):
    """The two kinds of event, which clients parse differently."""

    MEMORY = 0
    SYSTEM = 1


class MemoryEventType(enum.StrEnum):
    STORED = "stored"
    RECALLED = "recalled"
    FORGOTTEN = "forgotten"
    CONSOLIDATED = "consolidated"
    IMPORTANCE_UPDATED = "importance_updated"
    SESSION_STARTED = "session_started"
    SESSION_ENDED = "session_ended"


class Event(msgspec.Struct, frozen=True, array_like=True):
    """``namespace`` decides who may see it; ``data`` is the JSON object that clients get, in ASCII."""

    stream: Stream
    namespace: str
    data: bytes


class MemoryEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The wire's object; ``timestamp`` in milliseconds."""

    event_type: MemoryEventType
    agent_id: str
    timestamp: int
    memory_id: str | None = None
    content: str | None = None
    importance: float | None = None
    tags: Sequence[str] | None = None
    session_id: str | None = None


class Relay(Protocol):
    """Carries events to the listeners of other nodes, and tells them of this node's listeners."""

    def send(self, event: Event) -> None: ...
    def listeners_changed(self, count: int) -> None: ...
    async def ready(self) -> None: ...


class BusStats(msgspec.Struct, frozen=True):
    """Counters since the start; ``listeners`` is now."""

    published: int
    dropped: int
    listeners: int


class Subscription:
    """One listener's queue. Made by `EventBus.subscribe`, ended by `close`."""

    def __init__(self, bus: EventBus, wanted: Callable[[Event], bool]) -> None:
        self._bus = bus
        self.wanted = wanted
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._lost = 0
        self._something = asyncio.Event()
        self._closed = False

    def offer(self, data: bytes) -> int:
        """Queue an event; returns how many had to go for it."""
        self._queue.append(data)
        self._queued_bytes += len(data)
        lost = 0
        while len(self._queue) > QUEUED_EVENTS or (self._queued_bytes > QUEUED_BYTES and len(self._queue) > 1):
            self._queued_bytes -= len(self._queue.popleft())
            lost += 1
        self._lost += lost
        self._something.set()
        return lost

    def lose(self, count: int) -> None:
        """Note events that never came here."""
        self._lost += count
        self._something.set()

    async def next(self) -> list[bytes] | None:
        """All that waits, oldest first, once there is something; None when the stream is over."""
        await self._something.wait()
        self._something.clear()
        if self._closed:
            return None
        events = list(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        if self._lost:
            events.insert(0, self._bus.lagged(self._lost))
            self._lost = 0
        return events

    def close(self) -> None:
        """End the stream. May be called twice."""
        self._closed = True
        self._something.set()
        self._bus.forget(self)


class EventBus:
    """The events of one node, and those that a relay brings from others."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._subscriptions: set[Subscription] = set()
        self._relay: Relay | None = None
        self._published = self._dropped = 0

    def relay_to(self, relay: Relay | None) -> None:
        """Tell other nodes too, from now on."""
        self._relay = relay

    @property
    def heard(self) -> bool:
        """Whether an event published now could reach anybody."""
        return self._relay is not None or bool(self._subscriptions)

    def subscribe(self, wanted: Callable[[Event], bool]) -> Subscription:
        """Hear what ``wanted`` accepts, from now on."""
        subscription = Subscription(self, wanted)
        self._subscriptions.add(subscription)
        self._listeners_changed()
        return subscription

    async def ready(self) -> None:
        """Return when listeners here hear the other nodes, or when that cannot be waited for."""
        if self._relay is not None:
            await self._relay.ready()

    def forget(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._listeners_changed()

    def close(self) -> None:
        """End every stream."""
        for subscription in list(self._subscriptions):
            subscription.close()

    def _listeners_changed(self) -> None:
        if self._relay is not None:
            self._relay.listeners_changed(len(self._subscriptions))

    def stats(self) -> BusStats:
        return BusStats(self._published, self._dropped, len(self._subscriptions))

    # -- publishing ---------------------------------------------------------------------------------------------------

    def stored(self, agent_id: str, memories: Iterable[Memory]) -> None:
        if self.heard:
            for memory in memories:
                self._memory(MemoryEventType.STORED, agent_id, memory)

    def recalled(self, agent_id: str, memories: Iterable[Memory]) -> None:
        if self.heard:
            for memory in memories:
                self._tell_memory(MemoryEventType.RECALLED, agent_id, memory_id=memory.id, importance=memory.importance)

    def forgotten(self, agent_id: str, memory_ids: Iterable[str]) -> None:
        if self.heard:
            for memory_id in memory_ids:
                self._tell_memory(MemoryEventType.FORGOTTEN, agent_id, memory_id=memory_id)

    def consolidated(self, agent_id: str, summary: Memory) -> None:
        if self.heard:
            self._memory(MemoryEventType.CONSOLIDATED, agent_id, summary)

    def importance_updated(self, agent_id: str, memory_id: str, importance: float) -> None:
        if self.heard:
            self._tell_memory(MemoryEventType.IMPORTANCE_UPDATED, agent_id, memory_id=memory_id, importance=importance)

    def session_started(self, session: Session) -> None:
        if self.heard:
            self._tell_memory(MemoryEventType.SESSION_STARTED, session.agent_id, session_id=session.id)

    def session_ended(self, session: Session) -> None:
        if self.heard:
            self._tell_memory(MemoryEventType.SESSION_ENDED, session.agent_id, session_id=session.id)

    def namespace_created(self, namespace: str, dimension: int | None) -> None:
        self.system("namespace_created", namespace, dimension=dimension)

    def namespace_deleted(self, namespace: str) -> None:
        self.system("namespace_deleted", namespace)

    def vectors_mutated(self, namespace: str, op: str, count: int) -> None:
        """``op``: UPSERTED or DELETED. Only large changes are told."""
        if count > VECTORS_WORTH_TELLING:
            self.system("vectors_mutated", namespace, op=op, count=count)

    def system(self, kind: str, namespace: str, **fields: Any) -> None:
        """An event of the node or a namespace (or EVERY_NAMESPACE), in the form of the contract's `DakeraEvent`."""
        if self.heard:
            named = {"namespace": namespace} if namespace != EVERY_NAMESPACE else {}
            body = {"type": kind, **named, **{k: v for k, v in fields.items() if v is not None}}
            self.publish(Event(Stream.SYSTEM, namespace, wire({**body, "timestamp": self._now_ms()})))

    def _memory(self, kind: MemoryEventType, agent_id: str, memory: Memory) -> None:
        self._tell_memory(
            kind,
            agent_id,
            memory_id=memory.id,
            content=memory.content,
            importance=memory.importance,
            tags=memory.tags,
            session_id=memory.session_id,
        )

    def _tell_memory(self, kind: MemoryEventType, agent_id: str, **fields: Any) -> None:
        event = MemoryEvent(event_type=kind, agent_id=agent_id, timestamp=self._now_ms(), **fields)
        self.publish(Event(Stream.MEMORY, agent_namespace(agent_id), wire(event)))

    def publish(self, event: Event) -> None:
        """Tell the listeners of this node, and the relay."""
        self._published += 1
        self.deliver(event)
        if self._relay is not None:
            self._relay.send(event)

    # -- delivering ---------------------------------------------------------------------------------------------------

    def deliver(self, event: Event) -> None:
        """Tell the listeners of this node alone."""
        for subscription in self._subscriptions:
            if subscription.wanted(event):
                self._dropped += subscription.offer(event.data)

    def missed(self, count: int) -> None:
        """``count`` events of another node did not arrive: every listener is told."""
        self._dropped += count
        for subscription in self._subscriptions:
            subscription.lose(count)

    def connected(self) -> bytes:
        """The first event of every stream."""
        return wire({"type": "connected", "timestamp": self._now_ms()})

    def lagged(self, dropped: int) -> bytes:
        """In the form of both kinds of stream."""
        kind = "stream_lagged"
        return wire(
            {"type": kind, "event_type": kind, "timestamp": self._now_ms(), "dropped": dropped, "hint": LAG_HINT}
        )


def wire(value: Any) -> bytes:
    """One JSON object in one line of ASCII.

    ASCII because official clients decode the stream as Latin-1, or chunk by chunk, and split at Unicode line ends.
    """
    encoded = msgspec.json.encode(value)
    if encoded.isascii():
        return encoded
    return json.dumps(msgspec.json.decode(encoded), separators=(",", ":")).encode("ascii")
