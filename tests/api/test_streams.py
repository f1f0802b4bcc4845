"""Event streams: framing, who may hear what, and how streams end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import aiohttp

from dakera_cluster.api.routes import EVENTS
from dakera_cluster.api.server import ApiServer
from dakera_cluster.api.settings import ApiSettings
from dakera_cluster.memory.events import EventBus
from dakera_cluster.memory.keys import Keys
from dakera_cluster.model.keys import Scope
from dakera_cluster.storage.memory_objects import MemoryObjectStore

ROOT = "root-key"


class Served:
    def __init__(self, server: ApiServer, bus: EventBus, keys: Keys, session: aiohttp.ClientSession) -> None:
        self.runtime = server.runtime
        self.server = server
        self.bus = bus
        self.keys = keys
        self.session = session
        self.url = f"http://127.0.0.1:{server.port}"

    @contextlib.asynccontextmanager
    async def stream(self, path: str, key: str | None = ROOT, **more: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with self.session.get(self.url + path, headers=headers, **more) as answer:
            yield answer

    async def hear(self, answer: aiohttp.ClientResponse) -> dict[str, Any]:
        """The next event; comments are passed over."""
        while True:
            block = await self.block(answer)
            if not block.startswith(b":"):
                assert block.startswith(b"data: ") and block.count(b"\n") == 2 and b"\r" not in block
                found: dict[str, Any] = json.loads(block[6:])
                return found

    @staticmethod
    async def block(answer: aiohttp.ClientResponse) -> bytes:
        async with asyncio.timeout(10):
            return await answer.content.readuntil(b"\n\n")


@contextlib.asynccontextmanager
async def serve(**settings: Any) -> AsyncIterator[Served]:
    bus = EventBus(lambda: 1_700_000_000_123)
    keys = Keys(MemoryObjectStore(), node="n", clock=time.time)
    services = SimpleNamespace(keys=keys, status=SimpleNamespace(totals=lambda: (0, 0)), events=bus)
    plain = {"host": "127.0.0.1", "port": 0, "rate_limit_rps": 0, "root_key": ROOT, "drain_timeout_s": 5.0}
    server = ApiServer(services, ApiSettings(**{**plain, **settings}), routes=EVENTS)  # type: ignore[arg-type]
    await server.start()
    async with aiohttp.ClientSession() as session:
        try:
            yield Served(server, bus, keys, session)
        finally:
            await server.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_stream_begins_with_connected_and_has_the_headers_of_every_answer() -> None:
    async with serve() as served, served.stream("/v1/events/stream") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-cache, no-transform"
        assert "X-RateLimit-Limit" in answer.headers and "X-Request-Id" in answer.headers
        assert await served.hear(answer) == {"type": "connected", "timestamp": 1_700_000_000_123}
        served.bus.forgotten("ann", ["m1"])
        assert (await served.hear(answer))["memory_id"] == "m1"


async def test_memory_events_are_those_of_one_agent_or_of_all_that_the_key_may_read() -> None:
    async with serve() as served:
        pinned = (await served.keys.create("p", Scope.READ, ["_dakera_agent_ann"], None)).key
        async with (
            served.stream("/v1/events/stream") as everybody,
            served.stream("/v1/events/stream?agent_id=bob") as bob,
            served.stream(f"/v1/events/stream?api_key={pinned}", key=None) as ann,
        ):
            for answer in (everybody, bob, ann):
                assert (await served.hear(answer))["type"] == "connected"
            served.bus.namespace_created("docs", 3)
            for agent in ("carl", "bob", "ann"):
                served.bus.forgotten(agent, [f"of {agent}"])
            assert [(await served.hear(everybody))["agent_id"] for _ in range(3)] == ["carl", "bob", "ann"]
            assert (await served.hear(bob))["memory_id"] == "of bob"
            assert (await served.hear(ann))["memory_id"] == "of ann"
        async with served.stream("/v1/events/stream?agent_id=bob", key=pinned) as refused:
            assert (refused.status, (await refused.json())["code"]) == (403, "NAMESPACE_ACCESS_DENIED")
        async with served.stream("/ops/events", key=pinned) as refused:
            assert refused.status == 403


async def test_system_events_are_those_of_one_namespace_or_of_all() -> None:
    async with (
        serve() as served,
        served.stream("/ops/events") as everything,
        served.stream("/v1/namespaces/docs/events") as docs,
    ):
        for answer in (everything, docs):
            await served.hear(answer)
        served.bus.forgotten("ann", ["m1"])
        served.bus.namespace_created("other", 3)
        served.bus.system("job_progress", "*", job_id="j", job_type="compaction", progress=0, status="pending")
        served.bus.namespace_created("docs", 4)
        told = [await served.hear(everything) for _ in range(3)]
        assert [event["type"] for event in told] == ["namespace_created", "job_progress", "namespace_created"]
        assert "namespace" not in told[1] and told[1]["status"] == "pending"
        assert (await served.hear(docs))["dimension"] == 4


async def test_a_stream_takes_no_place_among_requests_and_outlives_their_time_limit() -> None:
    async with serve(max_in_flight=1, request_timeout_s=0.05) as served:
        async with served.stream("/ops/events") as first, served.stream("/ops/events") as second:
            await served.hear(first)
            await served.hear(second)
            await asyncio.sleep(0.1)
            served.bus.namespace_deleted("docs")
            assert (await served.hear(first))["type"] == "namespace_deleted"
            assert served.runtime.admission.requests == 0 and served.runtime.streams == 2
        await until(lambda: served.runtime.streams == 0 or bool(served.bus.namespace_deleted("docs")))
        assert served.bus.stats().listeners == 0, "a client that went leaves no queue behind"


async def test_silence_is_filled_with_comments_and_a_key_that_ends_ends_its_streams() -> None:
    async with serve(stream_heartbeat_s=0.05) as served:
        made = await served.keys.create("k", Scope.READ, None, None)
        async with served.stream("/v1/events/stream", key=made.key) as answer:
            await served.hear(answer)
            assert (await served.block(answer)).startswith(b":")
            await served.keys.deactivate(made.info.key_id)
            while block := await served.block(answer):
                assert block.startswith(b":")
            assert served.runtime.streams == 0


async def test_there_are_only_so_many_streams() -> None:
    async with serve(max_streams=1) as served, served.stream("/ops/events") as first:
        await served.hear(first)
        async with served.stream("/ops/events") as second:
            assert second.status == 503 and second.headers["Retry-After"] == "5"


async def test_a_head_request_ends_at_once() -> None:
    async with serve() as served:
        headers = {"Authorization": f"Bearer {ROOT}"}
        async with served.session.head(served.url + "/ops/events", headers=headers) as answer:
            assert answer.status == 200 and answer.headers["Content-Type"] == "text/event-stream"
        assert served.runtime.streams == 0


async def test_draining_ends_every_stream_at_once() -> None:
    async with serve() as served, served.stream("/ops/events") as answer:
        await served.hear(answer)
        assert await served.server.drain()
        async with asyncio.timeout(2):
            assert await answer.content.read() == b""
