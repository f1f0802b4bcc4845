"""Events of this node to the other nodes, and theirs to the listeners here, through Redis.

Sent in batches, each with the number of its first event, so that who hears knows how many it has missed: a batch that
Redis did not take, a time without connection, a queue that overflowed. Nothing is sent again, and no publisher waits; an
event costs its node 2 us. A node without listeners does not listen itself. Without Redis every node tells its own
listeners, as it does with it. Started and closed by the composition root.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque

import msgspec

from dakera_cluster.memory.events import Event, EventBus
from dakera_cluster.storage.redis_cache import RedisCache
from dakera_cluster.storage.redis_feed import FeedSettings, RedisFeed

log = logging.getLogger(__name__)

CHANNEL = "events"
BATCH_INTERVAL_S = 0.01
BATCH_EVENTS = 512
BATCH_BYTES = 256 << 10
"""A batch ends with the event that reaches this."""
QUEUED_EVENTS = 4_096
QUEUED_BYTES = 8 << 20
"""Waiting to be sent, before the oldest are dropped."""
MAX_SENDERS = 4_096
READY_TIMEOUT_S = 0.5
CLOSE_TIMEOUT_S = 1.0
"""A cancellation can get lost in the client library (asyncio.wait_for on Python 3.11): closing goes on then."""


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive events of one process. ``sender`` is drawn at its start; ``first`` numbers ``events[0]``."""

    sender: str
    first: int
    events: list[Event]


class FanoutStats(msgspec.Struct, frozen=True):
    """Events since the start. ``unsent`` were published here and reached no other node; ``missed`` is the reverse."""

    sent: int
    unsent: int
    received: int
    missed: int


class Fanout:
    """Implements `events.Relay` over Redis."""

    def __init__(
        self, bus: EventBus, redis: RedisCache, url: str, prefix: str, settings: FeedSettings | None = None
    ) -> None:
        self._bus = bus
        self._redis = redis
        self.feed = RedisFeed(url, prefix, CHANNEL, self._hear, settings)
        self._sender = secrets.token_hex(8)
        self._next = 0
        self._queue: deque[Event] = deque()
        self._queued_bytes = 0
        self._something = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None
        self._expected: dict[str, int] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Batch).decode
        self._sent = self._unsent = self._received = self._missed = 0

    def start(self) -> None:
        self._bus.relay_to(self)
        self._flusher = asyncio.create_task(self._keep_flushing(), name="event-fanout")

    async def close(self) -> None:
        """Send what waits, and stop. Never raises."""
        self._bus.relay_to(None)
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.wait([self._flusher], timeout=CLOSE_TIMEOUT_S)
            await self.flush()
        await self.feed.close()

    def stats(self) -> FanoutStats:
        return FanoutStats(self._sent, self._unsent, self._received, self._missed)

    def send(self, event: Event) -> None:
        """Queue an event for the other nodes."""
        self._queue.append(event)
        self._queued_bytes += len(event.data)
        while len(self._queue) > QUEUED_EVENTS or (self._queued_bytes > QUEUED_BYTES and len(self._queue) > 1):
            self._drop()
        self._something.set()

    def _drop(self) -> None:
        self._queued_bytes -= len(self._queue.popleft().data)
        self._next += 1
        self._unsent += 1

    def listeners_changed(self, count: int) -> None:
        if count:
            self.feed.listen()
        else:
            self.feed.silence()
            # What was not listened to was not missed.
            self._expected.clear()

    async def ready(self) -> None:
        """Wait until other nodes are heard: not at all without Redis, and at most READY_TIMEOUT_S."""
        if self._redis.healthy:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READY_TIMEOUT_S):
                    await self.feed.until_connected()

    async def _keep_flushing(self) -> None:
        while True:
            await self._something.wait()
            await asyncio.sleep(BATCH_INTERVAL_S)
            self._something.clear()
            await self.flush()

    async def flush(self) -> None:
        """Send all that waits, batch by batch."""
        while self._queue:
            first, events, size = self._next, list[Event](), 0
            while self._queue and len(events) < BATCH_EVENTS and size < BATCH_BYTES:
                event = self._queue.popleft()
                events.append(event)
                size += len(event.data)
            self._queued_bytes -= size
            self._next += len(events)
            if await self._redis.publish(CHANNEL, self._encode(Batch(self._sender, first, events))):
                self._sent += len(events)
            else:
                self._unsent += len(events)

    def _hear(self, message: bytes) -> None:
        try:
            batch = self._decode(message)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            log.warning("a batch of events is not understood: %s", error)
            return
        if batch.sender == self._sender:
            return
        expected = self._expected.get(batch.sender, batch.first)
        if batch.first > expected:
            self._missed += batch.first - expected
            self._bus.missed(batch.first - expected)
        if batch.sender not in self._expected and len(self._expected) >= MAX_SENDERS:
            self._expected.clear()
        self._expected[batch.sender] = batch.first + len(batch.events)
        self._received += len(batch.events)
        for event in batch.events:
            self._bus.deliver(event)
