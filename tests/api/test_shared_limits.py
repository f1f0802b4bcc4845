"""One bucket a caller for several nodes: over a time no more pass than one bucket allows, and Redis is never needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest

from dakera_cluster.api.limits import RateLimiter
from dakera_cluster.api.shared_limits import KEY_PREFIX, SharedLimits
from dakera_cluster.model.errors import RateLimitedError
from dakera_cluster.storage.redis_cache import RedisCache, RedisSettings
from tests.support import redis_server
from tests.support.redis_server import RedisServer

PATIENT = RedisSettings(timeout_ms=2_000, pause_ms=20, longest_pause_ms=40, failures=1, probe_interval_ms=20)
RPS, BURST = 10, 40


@pytest.fixture
def server() -> Iterator[RedisServer]:
    if not redis_server.installed():
        pytest.skip("redis-server is not installed")
    with RedisServer() as running:
        yield running


class Clock:
    """Stands still unless moved: what a bucket gains is then no matter of the machine's speed."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Node:
    def __init__(self, url: str, clock: Clock, *, rps: int = RPS, burst: int = BURST) -> None:
        self.clock = clock
        self.limiter = RateLimiter(rps=rps, burst=burst)
        self.redis = RedisCache(url, "cluster", PATIENT)
        self.shared = SharedLimits(self.limiter, self.redis, clock)
        self.limiter.share(lambda urgent: None)

    def take(self, count: int, caller: str = "key") -> int:
        """How many of ``count`` requests pass."""
        passed = 0
        for _ in range(count):
            try:
                self.limiter.take(caller, self.clock())
            except RateLimitedError:
                continue
            passed += 1
        return passed

    def remaining(self, caller: str = "key") -> int:
        return self.limiter.peek(caller, self.clock()).remaining


@pytest.fixture
async def nodes(server: RedisServer) -> AsyncIterator[list[Node]]:
    clock = Clock()
    made = [Node(server.url, clock) for _ in range(3)]
    yield made
    for node in made:
        await node.shared.close()
        await node.redis.close()


async def test_what_one_node_gave_another_refuses(nodes: list[Node]) -> None:
    first, second, _ = nodes
    assert first.take(30) == 30
    await first.shared.flush()
    assert second.take(1) == 1
    await second.shared.flush()
    # Redis' own clock moves on between the flushes: a few tokens have come back.
    assert 9 <= second.remaining() <= 12
    assert second.take(100) <= 12
    with pytest.raises(RateLimitedError) as refused:
        second.limiter.take("key", second.clock())
    assert refused.value.retry_after_s == 1


async def test_tokens_given_twice_at_one_moment_are_paid_before_more_are_given(nodes: list[Node]) -> None:
    assert [node.take(BURST) for node in nodes] == [BURST] * 3
    for node in [*nodes, *nodes]:
        node.take(0)
        await node.shared.flush()
    last = nodes[2]
    assert last.remaining() == 0
    # It heard of 120 tokens: 80 too many are owed, which 10 a second pay in 8 s.
    last.clock.now += 7.0
    assert last.take(1) == 0
    last.clock.now += 1.5
    assert last.take(1) == 1


async def test_callers_have_buckets_of_their_own_and_a_full_one_leaves_nothing_behind(nodes: list[Node]) -> None:
    first, second, _ = nodes
    first.take(30, "a")
    first.take(1, "b")
    await first.shared.flush()
    second.take(1, "b")
    await second.shared.flush()
    assert second.remaining("b") >= BURST - 2
    left_ms = await first.redis._client.pttl(b"cluster:" + KEY_PREFIX + b"a")
    assert 0 < left_ms <= 1000 * 30 / RPS + 1


async def test_a_lost_flush_counts_nothing_twice_and_a_redis_without_memory_gives_no_burst(
    server: RedisServer, nodes: list[Node]
) -> None:
    first, second, _ = nodes
    first.take(30)
    await first.shared.flush()
    server.stop()
    first.take(5)
    await first.shared.flush()
    assert first.shared.stats().lost == 1
    assert first.remaining() == BURST - 35, "alone, it goes on from what it knows"
    server.start()
    await until(first.redis.probe)
    first.take(1)
    await first.shared.flush()
    assert first.remaining() == BURST - 36, "the new Redis knows of one token, this node of more"
    second.take(1)
    await until(second.redis.probe)
    await second.shared.flush()
    assert BURST - 2 <= second.remaining() <= BURST - 1


async def test_over_time_all_nodes_together_give_what_one_bucket_gives(server: RedisServer) -> None:
    """Real clocks and the flusher itself: three nodes under more load than the limit for more than a second."""
    rate, burst = 200, 40
    fleet = [Running(server.url, rate, burst) for _ in range(3)]
    started = time.monotonic()
    passed = sum(await asyncio.gather(*(node.storm(1.2) for node in fleet)))
    spent = time.monotonic() - started
    for node in fleet:
        await node.close()
    alone = 3 * (rate * spent + burst)
    fair = rate * spent + burst
    assert passed <= fair + 2 * burst, "more than one bucket and the excess of one flush"
    assert passed >= 0.7 * fair and passed < 0.75 * alone
    assert all(node.shared.stats().told for node in fleet)


async def test_tokens_are_given_while_redis_is_frozen_or_gone_and_sharing_resumes(server: RedisServer) -> None:
    node = Running(server.url, 1_000, 1_000)
    mate = Running(server.url, 1_000, 1_000)
    await until_true(lambda: node.give() and node.shared.stats().told > 0)
    server.freeze()
    try:
        lost = node.shared.stats().lost
        await until_true(lambda: node.give() and node.shared.stats().lost > lost)
    finally:
        server.thaw()
    server.stop()
    assert node.give() and mate.give()
    server.start()
    told = mate.shared.stats().told
    await until_true(lambda: mate.give() and mate.shared.stats().told > told)
    await node.close()
    await mate.close()


async def test_an_unlimited_node_tells_nothing() -> None:
    class Untouchable:
        async def run(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes | int]) -> list[int] | None:
            raise AssertionError

    limiter = RateLimiter(rps=0, burst=0)
    shared = SharedLimits(limiter, Untouchable(), time.monotonic)
    shared.start()
    limiter.take("a", 0.0)
    await shared.flush()
    await shared.close()


class Running:
    """A node whose flusher runs."""

    def __init__(self, url: str, rps: int, burst: int) -> None:
        self.limiter = RateLimiter(rps=rps, burst=burst)
        self.redis = RedisCache(url, "cluster", PATIENT)
        self.redis.start()
        self.shared = SharedLimits(self.limiter, self.redis, time.monotonic)
        self.shared.start()

    def give(self) -> bool:
        try:
            self.limiter.take("key", time.monotonic())
        except RateLimitedError:
            return False
        return True

    async def storm(self, seconds: float) -> int:
        passed = 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            passed += self.give()
            await asyncio.sleep(0.002)
        return passed

    async def close(self) -> None:
        await self.shared.close()
        await self.redis.close()


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not await condition():  # type: ignore[misc]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def until_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
