"""What others publish on one Redis channel, while somebody here wants to hear it.

The connection exists only between `listen` and `silence`. It is looked after: a Redis that is silent is pinged, one that
does not answer is left, and the feed connects again after a pause that grows and is jittered. What was published meanwhile
is gone: messages that must not be missed unnoticed carry numbers of their own. Called by the fan-out of events.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

import msgspec
import redis.asyncio
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 1.0
"""A cancellation can get lost in the client library (asyncio.wait_for on Python 3.11): closing goes on then."""


class FeedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Waits of a feed."""

    connect_timeout_ms: int = 1_000
    ping_interval_ms: int = 2_000
    """Of silence before Redis is pinged, and again before it counts as gone."""
    pause_ms: int = 100
    longest_pause_ms: int = 3_000


class RedisFeed:
    """Messages of a channel, handed to ``receive`` on the event loop. Nothing raises because of Redis."""

    def __init__(
        self,
        url: str,
        prefix: str,
        channel: str,
        receive: Callable[[bytes], None],
        settings: FeedSettings | None = None,
    ) -> None:
        """``url`` and ``prefix`` as `RedisCache`'s. Raises ValueError for another URL."""
        self._settings = settings or FeedSettings()
        self._channel = f"{prefix}:{channel}".encode()
        self._receive = receive
        timeout_s = self._settings.connect_timeout_ms / 1e3
        # No deadline on reads: silence is normal here, and pings notice a Redis that is gone.
        self._client = redis.asyncio.Redis.from_url(
            url, socket_timeout=None, socket_connect_timeout=timeout_s, retry=None, protocol=2
        )
        self._listener: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self.reconnects = 0

    @property
    def connected(self) -> bool:
        """Whether Redis has confirmed that it sends what is published from now on."""
        return self._up.is_set()

    async def until_connected(self) -> None:
        await self._up.wait()

    def listen(self) -> None:
        """Begin to listen; nothing happens when it does already."""
        if self._listener is None:
            self._listener = asyncio.create_task(self._keep_listening(), name="redis-feed")

    def silence(self) -> None:
        """Listen no more."""
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None

    async def close(self) -> None:
        """Stop and close the connection. Never raises."""
        listener = self._listener
        self.silence()
        if listener is not None:
            await asyncio.wait([listener], timeout=CLOSE_TIMEOUT_S)
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await asyncio.wait_for(self._client.aclose(), CLOSE_TIMEOUT_S)

    async def _keep_listening(self) -> None:
        pause_s = self._settings.pause_ms / 1e3
        while True:
            try:
                await self._hear()
            except (RedisError, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                if self.connected:
                    log.warning("events of other nodes are not heard, trying again: %s", error)
                    pause_s = self._settings.pause_ms / 1e3
            finally:
                self._up.clear()
            self.reconnects += 1
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, self._settings.longest_pause_ms / 1e3)

    async def _hear(self) -> None:
        """Until the connection is lost. Raises RedisError or OSError then."""
        silence_s = self._settings.ping_interval_ms / 1e3
        async with self._client.pubsub() as channel:
            await channel.subscribe(self._channel)
            pinged = False
            while True:
                message = await channel.get_message(timeout=silence_s)
                if message is None and pinged:
                    raise redis.exceptions.ConnectionError("Redis does not answer")
                pinged = message is None
                if message is None:
                    await channel.ping()
                elif message["type"] == "subscribe":
                    self._up.set()
                elif message["type"] == "message":
                    self._receive(message["data"])
