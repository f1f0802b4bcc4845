"""What a node shares with the others through Redis, made from the settings: limits, events, query embeddings.

Nothing here is needed: without a URL it is not made, and without Redis each part goes on alone and notices its return.
Called by the composition root, which closes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dakera_cluster.api.limits import RateLimiter
from dakera_cluster.api.shared_limits import SharedLimits
from dakera_cluster.inference.service import Embedder
from dakera_cluster.inference.shared import SharedEmbeddings
from dakera_cluster.memory.events import EventBus
from dakera_cluster.memory.fanout import Fanout
from dakera_cluster.model.config import Settings
from dakera_cluster.storage.redis_cache import RedisCache, RedisSettings

REDIS = RedisSettings(longest_pause_ms=5_000)
PREFIX = "dakera:"
NOTE = "Redis is not reached: rate limits count on each node alone, events of other nodes are not heard"
CACHE_NOTE = "the cache's Redis is not reached: each node embeds for itself"


class Shared:
    """The Redis side of a node. `add_*` start what they add."""

    def __init__(self, settings: Settings, cluster_id: str, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self._prefix = PREFIX + cluster_id
        self._url = settings.cluster.redis_url
        cache_url = settings.cluster.cache_redis_url or self._url
        self._redis = self._open(self._url) if self._url is not None else None
        self._cache = self._redis if cache_url == self._url else self._open(cache_url) if cache_url else None
        self._bus: EventBus | None = None
        self._limits: SharedLimits | None = None
        self._fanout: Fanout | None = None
        self._embeddings: SharedEmbeddings | None = None

    def _open(self, url: str) -> RedisCache:
        cache = RedisCache(url, self._prefix, REDIS)
        cache.start()
        self._stack.push_async_callback(cache.close)
        return cache

    @property
    def configured(self) -> bool:
        return self._redis is not None or self._cache is not None

    def healthy(self) -> bool | None:
        """Whether every Redis answers; None where none is set."""
        if not self.configured:
            return None
        return all(redis.healthy for redis in (self._redis, self._cache) if redis is not None)

    def check(self) -> tuple[bool, str | None]:
        """For readiness: always ready, with a note while Redis is not reached."""
        if self._redis is not None and not self._redis.healthy:
            return True, NOTE
        if self._cache is not None and not self._cache.healthy:
            return True, CACHE_NOTE
        return True, None

    def add_limits(self, limiter: RateLimiter, monotonic: Callable[[], float]) -> None:
        if self._redis is not None:
            self._limits = SharedLimits(limiter, self._redis, monotonic)
            self._limits.start()
            self._stack.push_async_callback(self._limits.close)

    def add_events(self, bus: EventBus) -> None:
        self._bus = bus
        if self._redis is not None and self._url is not None:
            self._fanout = Fanout(bus, self._redis, self._url, self._prefix)
            self._fanout.start()
            self._stack.push_async_callback(self._fanout.close)

    def add_embeddings(self, embedder: Embedder) -> None:
        if self._cache is not None:
            self._embeddings = SharedEmbeddings(self._cache, embedder.fingerprint, embedder.dimension)
            embedder.share(self._embeddings)
            self._stack.push_async_callback(self._embeddings.close)

    @property
    def metrics(self) -> Collector:
        return _SharedMetrics(self)

    def collect(self) -> Iterator[Metric]:
        """Metrics of every part that is there."""
        if (healthy := self.healthy()) is not None:
            yield GaugeMetricFamily("dakera_redis_up", "Whether Redis answers", value=float(healthy))
        if self._redis is not None:
            stats = self._redis.stats()
            yield _counter(
                "dakera_redis_failures",
                "Redis commands by what went wrong",
                failed=stats.failures,
                skipped=stats.skipped,
            )
        if self._limits is not None:
            limits = self._limits.stats()
            yield _counter(
                "dakera_rate_limit_flushes", "Tokens told to other nodes", told=limits.told, lost=limits.lost
            )
        if self._embeddings is not None:
            shared = self._embeddings.stats()
            yield _counter(
                "dakera_shared_embeddings", "Query embeddings in the shared cache",
                hit=shared.hits, miss=shared.misses, put=shared.puts,
            )  # fmt: skip
        if self._bus is not None:
            bus = self._bus.stats()
            yield GaugeMetricFamily("dakera_event_listeners", "Event streams open", value=bus.listeners)
            yield _counter("dakera_events", "Events of this node", published=bus.published, dropped=bus.dropped)
        if self._fanout is not None:
            fanout = self._fanout.stats()
            yield _counter(
                "dakera_events_between_nodes", "Events to and from other nodes",
                sent=fanout.sent, unsent=fanout.unsent, received=fanout.received, missed=fanout.missed,
            )  # fmt: skip


class _SharedMetrics(Collector):
    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def collect(self) -> Iterator[Metric]:
        return self._shared.collect()


def _counter(name: str, text: str, **values: int) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=["result"])
    for result, value in values.items():
        family.add_metric([result], value)
    return family
