"""Events reach listeners in order, a slow one hears how many it lost, and nodes hear each other only through Redis."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from dakera_cluster.memory import events
from dakera_cluster.memory.events import Event, EventBus, Stream, Subscription
from dakera_cluster.memory.fanout import Batch, Fanout
from dakera_cluster.model.memories import Memory, Session
from dakera_cluster.storage.redis_cache import RedisCache, RedisSettings
from dakera_cluster.storage.redis_feed import FeedSettings
from tests.support import redis_server
from tests.support.redis_server import RedisServer

NOW_MS = 1_700_000_000_123
PATIENT = RedisSettings(timeout_ms=2_000, pause_ms=20, longest_pause_ms=40, failures=1, probe_interval_ms=20)
QUICK_FEED = FeedSettings(ping_interval_ms=100, pause_ms=10, longest_pause_ms=40)


def everything(_: Event) -> bool:
    return True


def memory(text: str = "tea", memory_id: str = "m1") -> Memory:
    return Memory(
        id=memory_id, content=text, agent_id="ann", namespace="_dakera_agent_ann", memory_type="episodic",
        importance=0.5, tags=["x"], created_at=1, last_accessed_at=1,
    )  # fmt: skip


async def heard(subscription: Subscription, count: int) -> list[dict[str, object]]:
    """The next ``count`` events."""
    found: list[bytes] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            found += await subscription.next() or []
    return [json.loads(data) for data in found]


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_every_kind_of_memory_event_has_the_fields_of_the_contract() -> None:
    bus = EventBus(lambda: NOW_MS)
    listener = bus.subscribe(everything)
    session = Session(id="s1", session_id="s1", agent_id="ann", started_at=1)
    bus.stored("ann", [memory()])
    bus.recalled("ann", [memory()])
    bus.forgotten("ann", ["m1"])
    bus.consolidated("ann", memory())
    bus.importance_updated("ann", "m1", 0.7)
    bus.session_started(session)
    bus.session_ended(session)
    told = await heard(listener, 7)
    assert [event.pop("event_type") for event in told] == [
        "stored", "recalled", "forgotten", "consolidated", "importance_updated", "session_started", "session_ended",
    ]  # fmt: skip
    assert all((event.pop("agent_id"), event.pop("timestamp")) == ("ann", NOW_MS) for event in told)
    full = {"memory_id": "m1", "content": "tea", "importance": 0.5, "tags": ["x"]}
    assert told == [
        full,
        {"memory_id": "m1", "importance": 0.5},
        {"memory_id": "m1"},
        full,
        {"memory_id": "m1", "importance": 0.7},
        {"session_id": "s1"},
        {"session_id": "s1"},
    ]


async def test_system_events_name_their_namespace_and_small_changes_are_not_told() -> None:
    bus = EventBus(lambda: NOW_MS)
    listener = bus.subscribe(lambda event: event.stream is Stream.SYSTEM and event.namespace == "docs")
    bus.namespace_created("docs", 3)
    bus.namespace_created("other", 3)
    bus.vectors_mutated("docs", "upserted", 100)
    bus.vectors_mutated("docs", "upserted", 101)
    bus.namespace_deleted("docs")
    told = await heard(listener, 3)
    assert [(event["type"], event["namespace"]) for event in told] == [
        ("namespace_created", "docs"), ("vectors_mutated", "docs"), ("namespace_deleted", "docs"),
    ]  # fmt: skip
    assert (told[0]["dimension"], told[1]["op"], told[1]["count"]) == (3, "upserted", 101)


def test_events_are_one_line_of_ascii_whatever_they_hold() -> None:
    text = 'a\nb\r\n\n\u2028\u0085 é 😀 "'
    data = events.wire({"content": text})
    assert data.isascii() and b"\n" not in data and b"\r" not in data
    assert json.loads(data) == {"content": text}


async def test_a_slow_listener_loses_the_oldest_is_told_how_many_and_holds_up_nobody() -> None:
    bus = EventBus(lambda: NOW_MS)
    slow, quick = bus.subscribe(everything), bus.subscribe(everything)
    total = events.QUEUED_EVENTS + 10
    for number in range(total):
        bus.forgotten("ann", [str(number)])
        assert len(await quick.next() or []) == 1
    told = await heard(slow, events.QUEUED_EVENTS + 1)
    assert (told[0]["type"], told[0]["event_type"], told[0]["dropped"]) == ("stream_lagged",) * 2 + (10,)
    assert told[0]["hint"] and told[0]["timestamp"] == NOW_MS
    assert [event["memory_id"] for event in told[1:]] == [str(number) for number in range(10, total)]
    assert bus.stats().dropped == 10


async def test_queues_are_bounded_in_bytes_too() -> None:
    bus = EventBus(lambda: NOW_MS)
    slow = bus.subscribe(everything)
    for _ in range(6):
        bus.stored("ann", [memory("x" * (events.QUEUED_BYTES // 4))])
    told = await heard(slow, 2)
    assert told[0]["dropped"] == 3 and len(told) == 4


async def test_a_closed_bus_ends_every_stream_and_then_nothing_is_built() -> None:
    bus = EventBus(lambda: NOW_MS)
    listeners = [bus.subscribe(everything) for _ in range(3)]
    assert bus.heard
    bus.close()
    assert [await listener.next() for listener in listeners] == [None] * 3
    assert not bus.heard and bus.stats().listeners == 0
    bus.stored("ann", [memory()])
    assert bus.stats().published == 0


# -- several nodes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[RedisServer]:
    if not redis_server.installed():
        pytest.skip("redis-server is not installed")
    with RedisServer() as running:
        yield running


class Node:
    def __init__(self, url: str, prefix: str = "cluster") -> None:
        self.bus = EventBus(lambda: NOW_MS)
        self.redis = RedisCache(url, prefix, PATIENT)
        self.redis.start()
        self.fanout = Fanout(self.bus, self.redis, url, prefix, QUICK_FEED)
        self.fanout.start()

    async def listener(self) -> Subscription:
        """A listener that other nodes' events reach from now on."""
        made = self.bus.subscribe(everything)
        await until(lambda: self.fanout.feed.connected)
        return made

    async def close(self) -> None:
        self.bus.close()
        await self.fanout.close()
        await self.redis.close()


@pytest.fixture
async def nodes(server: RedisServer) -> AsyncIterator[list[Node]]:
    made = [Node(server.url) for _ in range(2)]
    yield made
    for node in made:
        await node.close()


async def test_a_listener_hears_every_node_of_its_cluster_once_and_in_order(
    server: RedisServer, nodes: list[Node]
) -> None:
    here, there = nodes
    stranger = Node(server.url, "another-cluster")
    listener = await here.listener()
    stranger.bus.forgotten("ann", ["foreign"])
    await stranger.fanout.flush()
    here.bus.forgotten("ann", ["own"])
    for number in range(1_200):
        there.bus.forgotten("ann", [str(number)])
        if number % 300 == 299:
            await there.fanout.flush()
            assert here.bus.stats().dropped == 0
            batch = await heard(listener, 300 if number > 299 else 301)
            if number == 299:
                assert batch.pop(0)["memory_id"] == "own"
            assert [event["memory_id"] for event in batch] == [str(n) for n in range(number - 299, number + 1)]
    assert here.fanout.stats().received == 1_200 and here.fanout.stats().missed == 0
    await stranger.close()


async def test_a_node_without_listeners_does_not_listen(nodes: list[Node]) -> None:
    here, there = nodes
    listener = await here.listener()
    listener.close()
    await until(lambda: not here.fanout.feed.connected)
    there.bus.forgotten("ann", ["unheard"])
    await there.fanout.flush()
    again = await here.listener()
    there.bus.forgotten("ann", ["heard"])
    told = await heard(again, 1)
    assert [event.get("memory_id") for event in told] == ["heard"], "what nobody listened to was not missed"
    assert here.fanout.stats().missed == 0


async def test_without_redis_events_stay_local_and_its_return_tells_how_many_were_missed(
    server: RedisServer, nodes: list[Node]
) -> None:
    here, there = nodes
    listener = await here.listener()
    there.bus.forgotten("ann", ["before"])
    assert (await heard(listener, 1))[0]["memory_id"] == "before"
    server.stop()
    await until(lambda: not here.fanout.feed.connected)
    there.bus.forgotten("ann", ["lost 1", "lost 2"])
    await there.fanout.flush()
    here.bus.forgotten("ann", ["local"])
    assert (await heard(listener, 1))[0]["memory_id"] == "local"
    assert there.fanout.stats().unsent == 2
    server.start()
    await until(lambda: here.fanout.feed.connected and there.redis.healthy)
    there.bus.forgotten("ann", ["after"])
    told = await heard(listener, 2)
    assert (told[0]["type"], told[0]["dropped"]) == ("stream_lagged", 2)
    assert told[1]["memory_id"] == "after"


async def test_a_frozen_redis_is_left_and_found_again(server: RedisServer, nodes: list[Node]) -> None:
    here, there = nodes
    listener = await here.listener()
    server.freeze()
    await until(lambda: not here.fanout.feed.connected)
    server.thaw()
    await until(lambda: here.fanout.feed.connected and there.redis.healthy)
    there.bus.forgotten("ann", ["after"])
    assert (await heard(listener, 1))[-1]["memory_id"] == "after"


async def test_a_queue_for_other_nodes_that_overflows_is_told_there(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dakera_cluster.memory.fanout.QUEUED_EVENTS", 10)
    here, there = nodes
    listener = await here.listener()
    there.bus.forgotten("ann", ["first"])
    assert (await heard(listener, 1))[0]["memory_id"] == "first"
    there.bus.forgotten("ann", [str(number) for number in range(15)])
    told = await heard(listener, 11)
    assert told[0]["dropped"] == 5
    assert [event["memory_id"] for event in told[1:]] == [str(number) for number in range(5, 15)]


async def test_what_is_no_batch_is_passed_over(nodes: list[Node]) -> None:
    here, there = nodes
    listener = await here.listener()
    assert await there.redis.publish("events", b"\xc1 nonsense")
    there.bus.forgotten("ann", ["sense"])
    assert (await heard(listener, 1))[0]["memory_id"] == "sense"


def test_batches_have_room_for_more_fields_later() -> None:
    """A node of the next release may send more: an older one reads what it knows."""
    import msgspec

    plain = msgspec.msgpack.encode(["sender", 3, [[0, "ns", b"{}"]], "something new"])
    batch = msgspec.msgpack.decode(plain, type=Batch)
    assert batch == Batch("sender", 3, [Event(Stream.MEMORY, "ns", b"{}")])
