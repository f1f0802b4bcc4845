"""Redis never costs its caller more than a miss."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from dakera_cluster.storage.redis_cache import Circuit, RedisCache, RedisSettings
from tests.support import redis_server
from tests.support.redis_server import RedisServer

QUICK = RedisSettings(pause_ms=40, longest_pause_ms=80, timeout_ms=500, failures=2)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    if not redis_server.installed():
        pytest.skip("redis-server is not installed")
    with RedisServer() as running:
        yield running


@pytest.fixture
async def cache(server: RedisServer) -> AsyncIterator[RedisCache]:
    made = RedisCache(server.url, "cluster-1", QUICK)
    yield made
    await made.close()


async def test_values_are_shared_between_clients_of_one_cluster_only(server: RedisServer, cache: RedisCache) -> None:
    mate, stranger = RedisCache(server.url, "cluster-1", QUICK), RedisCache(server.url, "cluster-2", QUICK)
    assert await cache.put(b"k\x00\xff", b"v\x00")
    assert await cache.multi_put({b"a": b"1", b"b": b"2"})
    assert await mate.multi_get([b"a", b"none", b"b", b"k\x00\xff"]) == [b"1", None, b"2", b"v\x00"]
    assert await stranger.get(b"a") is None
    assert await mate.delete([b"a", b"none"])
    assert await cache.get(b"a") is None
    assert await cache.multi_get([]) == [] and await cache.delete([]) and await cache.multi_put({})
    stats = mate.stats()
    assert (stats.hits, stats.misses, stats.failures) == (3, 1, 0)
    await mate.close()
    await stranger.close()


async def test_entries_end(cache: RedisCache) -> None:
    await cache.put(b"k", b"v", ttl_s=7)
    await cache.put(b"default", b"v")
    assert 0 < await cache._client.ttl(b"cluster-1:k") <= 7
    assert 7 < await cache._client.ttl(b"cluster-1:default") <= QUICK.ttl_s


ADD = "local n = redis.call('INCRBY', KEYS[1], ARGV[1]) return {n}"


async def test_scripts_are_one_step_for_all_clients_and_survive_a_restart(
    server: RedisServer, cache: RedisCache
) -> None:
    mate = RedisCache(server.url, "cluster-1", QUICK)
    totals = await asyncio.gather(*(one.run(ADD, [b"n"], [2]) for one in [cache, mate] * 5))
    assert sorted(total[0] for total in totals if total) == list(range(2, 21, 2))
    server.stop()
    server.start()
    await until(lambda: mate.probe())
    assert await mate.run(ADD, [b"n"], [2]) == [2], "a Redis that has forgotten the script is sent it again"
    await mate.close()


async def test_a_prober_notices_without_traffic_that_redis_went_and_came_back(server: RedisServer) -> None:
    cache = RedisCache(server.url, "c", msgspec.structs.replace(QUICK, probe_interval_ms=10))
    cache.start()

    async def well() -> bool:
        return cache.healthy

    async def ill() -> bool:
        return not cache.healthy

    await until(well)
    server.stop()
    await until(ill)
    server.start()
    await until(well)
    await cache.close()


async def test_too_large_a_value_is_not_put(server: RedisServer) -> None:
    cache = RedisCache(server.url, "c", RedisSettings(largest_value_bytes=10))
    assert not await cache.multi_put({b"large": b"x" * 11, b"small": b"x"})
    assert await cache.multi_get([b"large", b"small"]) == [None, b"x"]
    await cache.close()


async def until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 10
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_server_that_goes_and_comes_back_is_used_again(server: RedisServer, cache: RedisCache) -> None:
    await cache.put(b"k", b"v")
    server.stop()
    for _ in range(QUICK.failures):
        assert await cache.get(b"k") is None
    assert cache.stats().circuit is Circuit.OPEN and cache.stats().last_failure
    failures = cache.stats().failures
    assert not await cache.put(b"k", b"v") and await cache.run(ADD, [b"n"], [1]) is None
    assert not await cache.delete([b"k"]) and not await cache.publish("c", b"m")
    assert cache.stats().failures == failures and cache.stats().skipped == 4, "an open circuit asks nobody"
    server.start()
    await until(lambda: cache.put(b"k", b"v"))
    assert cache.stats().circuit is Circuit.CLOSED
    assert await cache.get(b"k") == b"v"


async def test_a_frozen_server_costs_a_deadline_and_then_nothing(server: RedisServer) -> None:
    cache = RedisCache(server.url, "c", RedisSettings(timeout_ms=30, failures=2, pause_ms=60_000))
    assert await cache.put(b"k", b"v")
    server.freeze()
    try:
        for _ in range(50):
            assert await cache.get(b"k") is None
    finally:
        server.thaw()
    assert cache.stats().failures == 2 and cache.stats().skipped == 48
    await cache.close()


async def test_a_burst_waits_for_connections(server: RedisServer) -> None:
    cache = RedisCache(server.url, "c", RedisSettings(timeout_ms=5000, connections=2))
    await cache.put(b"k", b"v")
    assert await asyncio.gather(*(cache.get(b"k") for _ in range(200))) == [b"v"] * 200
    await cache.close()


async def test_one_command_at_a_time_tries_a_half_open_circuit(server: RedisServer, cache: RedisCache) -> None:
    server.stop()
    for _ in range(QUICK.failures):
        await cache.get(b"k")
    await asyncio.sleep(QUICK.pause_ms / 1e3)
    failures = cache.stats().failures
    await asyncio.gather(*(cache.get(b"k") for _ in range(10)))
    assert cache.stats().failures == failures + 1


async def test_a_cancelled_caller_leaves_no_half_open_circuit(server: RedisServer, cache: RedisCache) -> None:
    server.stop()
    for _ in range(QUICK.failures):
        await cache.get(b"k")
    server.start()
    server.freeze()
    await asyncio.sleep(QUICK.pause_ms / 1e3)
    asking = asyncio.create_task(cache.get(b"k"))
    await asyncio.sleep(0)
    assert cache.stats().circuit is Circuit.HALF_OPEN
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    server.thaw()
    await until(lambda: cache.put(b"k", b"v"))


async def test_no_server_at_all_is_a_miss() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        cache = RedisCache(f"redis://127.0.0.1:{unused.getsockname()[1]}", "c")
        assert await cache.get(b"k") is None
        assert not await cache.put(b"k", b"v")
        await cache.close()


async def test_a_server_that_speaks_nonsense_is_a_miss() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    cache = RedisCache(f"redis://127.0.0.1:{port}", "c", QUICK)
    assert await cache.get(b"k") is None
    assert cache.stats().failures == 1
    await cache.close()
    listening.close()


async def test_a_wrong_type_at_the_key_is_a_miss(cache: RedisCache) -> None:
    await cache._client.rpush(b"cluster-1:n", b"a list")
    assert await cache.run(ADD, [b"n"], [1]) is None
    assert cache.stats().failures == 1
