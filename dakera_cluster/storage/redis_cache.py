"""L1.5: a cache, and small atomic scripts, in Redis, shared by the nodes and never needed.

Redis may be slow, full, empty, restarted or gone at any moment, and the caller does not notice more than a miss: every
command has a deadline, nothing it raises passes through, and after a few failures in a row a circuit breaker stops asking
for a while::

    CLOSED --failures in a row--> OPEN --pause over--> HALF_OPEN --one command succeeds--> CLOSED
                                    ^--------------------'  it fails: the pause doubles

Keys carry a prefix of the cluster, so that two clusters on one Redis do not read each other's bytes.
Called by the cache of embeddings, by the API's rate limits and by the fan-out of events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import TypeVar, cast

import msgspec
import redis.asyncio
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

T = TypeVar("T")

CLOSE_TIMEOUT_S = 1.0
"""A cancellation can get lost in the client library (asyncio.wait_for on Python 3.11): closing goes on then."""


class Circuit(Enum):
    """State of the breaker; see the module docstring."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class RedisSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait for Redis, and when to stop asking."""

    timeout_ms: int = 50
    connections: int = 8
    failures: int = 3
    """In a row, before the circuit opens."""
    pause_ms: int = 1_000
    longest_pause_ms: int = 30_000
    probe_interval_ms: int = 1_000
    ttl_s: int = 3_600
    """Of an entry that is put without one."""
    largest_value_bytes: int = 1 << 20
    """A larger value is not put: it would hold up the connection that others wait for."""


class RedisStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the start, and the circuit's state."""

    circuit: Circuit
    hits: int
    misses: int
    failures: int
    skipped: int
    last_failure: str | None


class RedisCache:
    """Shared cache and scripts in Redis. No method raises because of Redis; see the module docstring."""

    def __init__(self, url: str, prefix: str, settings: RedisSettings | None = None) -> None:
        """``url`` is redis://, rediss:// or unix://; connects when first used. Raises ValueError for another URL."""
        self.settings = settings or RedisSettings()
        self._prefix = prefix.encode() + b":"
        timeout_s = self.settings.timeout_ms / 1e3
        # A pool that waits: the plain one answers a burst of callers with "too many connections".
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=self.settings.connections,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=None,
            protocol=2,
        )
        self._client = redis.asyncio.Redis.from_pool(pool)
        self._failures_in_row = 0
        self._pause_s = self.settings.pause_ms / 1e3
        self._closed_until = 0.0
        self._circuit = Circuit.CLOSED
        self._scripts: dict[str, AsyncScript] = {}
        self._prober: asyncio.Task[None] | None = None
        self._hits = self._misses = self._failures = self._skipped = 0
        self._last_failure: str | None = None

    def start(self) -> None:
        """Ask after Redis every ``probe_interval_ms``, so that health is known, and a return noticed, without traffic."""
        self._prober = asyncio.create_task(self._keep_probing(), name="redis-probe")

    async def _keep_probing(self) -> None:
        while True:
            await self.probe()
            await asyncio.sleep(self.settings.probe_interval_ms / 1e3)

    async def probe(self) -> bool:
        """Whether Redis answers now; False also while the circuit is open."""
        return await self._ask(lambda: self._client.ping()) is not None

    @property
    def healthy(self) -> bool:
        """Whether commands are sent, as the last of them went."""
        return self._circuit is Circuit.CLOSED and self._failures_in_row == 0

    async def get(self, key: bytes) -> bytes | None:
        """The value, or None: not there, too late or no Redis."""
        return (await self.multi_get([key]))[0]

    async def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of ``keys`` in their order, in one round trip."""
        if not keys:
            return []
        values = await self._ask(lambda: self._client.mget([self._prefix + key for key in keys]))
        found: list[bytes | None] = [None] * len(keys) if values is None else cast("list[bytes | None]", values)
        hits = sum(value is not None for value in found)
        self._hits += hits
        self._misses += len(keys) - hits
        return found

    async def put(self, key: bytes, value: bytes, *, ttl_s: int | None = None) -> bool:
        """Hold ``value`` for ``ttl_s`` seconds; False when that was not possible."""
        return await self.multi_put({key: value}, ttl_s=ttl_s)

    async def multi_put(self, entries: Mapping[bytes, bytes], *, ttl_s: int | None = None) -> bool:
        """Hold several values, in one round trip; False when that was not possible."""
        ttl = ttl_s or self.settings.ttl_s
        fitting = {key: value for key, value in entries.items() if len(value) <= self.settings.largest_value_bytes}
        if not fitting:
            return not entries

        async def put() -> bool:
            async with self._client.pipeline(transaction=False) as pipe:
                for key, value in fitting.items():
                    pipe.set(self._prefix + key, value, ex=ttl)
                await pipe.execute()
            return len(fitting) == len(entries)

        return bool(await self._ask(put))

    async def delete(self, keys: Sequence[bytes]) -> bool:
        """Forget ``keys``; False when Redis could not be told, in which case they live until their time is over."""
        return not keys or await self._ask(lambda: self._client.delete(*(self._prefix + k for k in keys))) is not None

    async def run(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes | int]) -> list[int] | None:
        """Run a Lua script that answers a list of integers, as one atomic step; None without Redis.

        It goes by its digest; a Redis that does not know it (restarted since) is sent the text, within the same deadline.
        """
        known = self._scripts.get(script)
        if known is None:
            known = self._scripts[script] = self._client.register_script(script)
        prefixed = [self._prefix + key for key in keys]
        return await self._ask(lambda: cast("Awaitable[list[int]]", known(keys=prefixed, args=list(arguments))))

    async def publish(self, channel: str, message: bytes) -> bool:
        """Send to whoever listens now; False without Redis."""
        return await self._ask(lambda: self._client.publish(self._prefix + channel.encode(), message)) is not None

    def stats(self) -> RedisStats:
        return RedisStats(
            circuit=self._circuit,
            hits=self._hits,
            misses=self._misses,
            failures=self._failures,
            skipped=self._skipped,
            last_failure=self._last_failure,
        )

    async def close(self) -> None:
        """Close the connections. Never raises."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.wait([self._prober], timeout=CLOSE_TIMEOUT_S)
        try:
            await asyncio.wait_for(self._client.aclose(), CLOSE_TIMEOUT_S)
        except (RedisError, OSError, TimeoutError) as error:
            self._last_failure = str(error)

    async def _ask(self, command: Callable[[], Awaitable[T]]) -> T | None:
        """Run a command under the deadline and the breaker; None when it did not succeed."""
        now = asyncio.get_running_loop().time()
        if self._circuit is Circuit.HALF_OPEN or (self._circuit is Circuit.OPEN and now < self._closed_until):
            self._skipped += 1
            return None
        if self._circuit is Circuit.OPEN:
            self._circuit = Circuit.HALF_OPEN
        try:
            async with asyncio.timeout(self.settings.timeout_ms / 1e3):
                answer = await command()
        except (RedisError, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            self._last_failure = str(error) or type(error).__name__
            self._note(succeeded=False)
            return None
        except asyncio.CancelledError:
            if self._circuit is Circuit.HALF_OPEN:
                self._circuit = Circuit.OPEN  # the next command tries again: nobody awaits the answer of this one
            raise
        self._note(succeeded=True)
        return answer

    def _note(self, *, succeeded: bool) -> None:
        if succeeded:
            self._failures_in_row = 0
            self._pause_s = self.settings.pause_ms / 1e3
            self._circuit = Circuit.CLOSED
            return
        self._failures += 1
        self._failures_in_row += 1
        again = self._circuit is Circuit.HALF_OPEN
        if again or self._failures_in_row >= self.settings.failures:
            self._pause_s = min(self._pause_s * 2, self.settings.longest_pause_ms / 1e3) if again else self._pause_s
            self._closed_until = asyncio.get_running_loop().time() + self._pause_s
            self._circuit = Circuit.OPEN
