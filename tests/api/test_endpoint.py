"""The way of a request, on a real server with routes of the test's own: what the middleware promises whatever a handler
does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pytest
import zstandard

from dakera_cluster.api.route import Call, Raw, Route
from dakera_cluster.api.server import ApiServer
from dakera_cluster.api.settings import ApiSettings
from dakera_cluster.memory.events import EventBus
from dakera_cluster.memory.keys import Keys
from dakera_cluster.model.errors import QuorumUnavailableError
from dakera_cluster.model.keys import Scope
from dakera_cluster.storage.memory_objects import MemoryObjectStore

SECRET = "a detail no client may see"


class Echo(msgspec.Struct):
    size: int = 0
    text: str = ""


class Gate:
    """Lets handlers wait until the test opens it, and tests wait until handlers do."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self._arrived = asyncio.Semaphore(0)

    async def wait(self) -> None:
        self._arrived.release()
        await self.opened.wait()

    async def arrivals(self, count: int) -> None:
        for _ in range(count):
            await asyncio.wait_for(self._arrived.acquire(), 10)


def table(gate: Gate) -> list[Route]:
    async def echo(call: Call, body: Echo) -> dict[str, Any]:
        return {"text": body.text, "filler": "x" * body.size}

    async def broken(call: Call, _: None) -> None:
        raise ValueError(SECRET)

    async def ambiguous(call: Call, _: None) -> None:
        raise QuorumUnavailableError("1 of 2 answered", ambiguous=True, retry_after_s=3)

    async def timed_out_inside(call: Call, _: None) -> None:
        raise TimeoutError(SECRET)

    async def wait(call: Call, _: None) -> dict[str, Any]:
        await gate.wait()
        return {"waited": True}

    async def raw(call: Call, _: None) -> Raw:
        return Raw(b"plain", "text/plain")

    def row(method: str, path: str, handler: Callable[..., Awaitable[Any]], **more: Any) -> Route:
        return Route(
            method=method, path=path, scope=more.pop("scope", Scope.READ), handler=handler, summary="-", tag="-", **more
        )

    return [
        row("POST", "/echo", echo, body=Echo),
        row("GET", "/broken", broken),
        row("GET", "/ambiguous", ambiguous),
        row("GET", "/inner-timeout", timed_out_inside),
        row("GET", "/wait", wait),
        row("GET", "/things/{thing_id}", raw),
        row("DELETE", "/things/{thing_id}", raw),
        row("GET", "/things/special", raw),
        row("GET", "/open", raw, scope=Scope.NONE, exempt=True),
    ]


class Served:
    def __init__(self, port: int, gate: Gate, session: aiohttp.ClientSession, server: ApiServer) -> None:
        self.port = port
        self.gate = gate
        self.session = session
        self.runtime = server.runtime

    async def ask(self, method: str, path: str, **kwargs: Any) -> tuple[aiohttp.ClientResponse, Any]:
        async with self.session.request(method, f"http://127.0.0.1:{self.port}{path}", **kwargs) as answer:
            data = await answer.read()
            return answer, json.loads(data) if answer.content_type == "application/json" else data


@contextlib.asynccontextmanager
async def serve(**settings: Any) -> AsyncIterator[Served]:
    gate = Gate()
    services = SimpleNamespace(
        keys=Keys(MemoryObjectStore(), node="n", clock=time.time),
        status=SimpleNamespace(totals=lambda: (0, 0)),
        events=EventBus(lambda: 0),
    )
    server = ApiServer(
        services,  # type: ignore[arg-type]
        ApiSettings(host="127.0.0.1", port=0, **{"rate_limit_rps": 0, **settings}),
        routes=table(gate),
    )
    port = await server.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Served(port, gate, session, server)
    finally:
        gate.opened.set()
        await server.stop()


async def test_an_unexpected_error_is_a_500_without_details_and_is_logged_with_its_request_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve() as served:
        for path in ("/broken", "/inner-timeout"):
            answer, body = await served.ask("GET", path, headers={"X-Request-Id": "find-me"})
            assert (answer.status, body["code"]) == (500, "INTERNAL_ERROR")
            assert SECRET not in json.dumps(body)
            assert body["details"] == {"request_id": "find-me"}
            assert answer.headers["X-Request-Id"] == "find-me"
    assert any("find-me" in record.getMessage() and record.exc_info for record in caplog.records)


async def test_an_error_of_the_tree_carries_its_attributes() -> None:
    async with serve() as served:
        answer, body = await served.ask("GET", "/ambiguous")
    assert (answer.status, body["code"], body["ambiguous"]) == (503, "QUORUM_UNAVAILABLE", True)
    assert answer.headers["Retry-After"] == "3"


async def test_a_slow_handler_is_a_504() -> None:
    async with serve(request_timeout_s=0.05) as served:
        answer, body = await served.ask("GET", "/wait")
    assert (answer.status, body["code"]) == (504, "QUERY_TIMEOUT")


async def test_a_body_that_does_not_arrive_is_a_408() -> None:
    async with serve(request_timeout_s=0.1) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")


async def test_over_the_bound_on_requests_the_answer_is_503_and_open_rows_still_answer() -> None:
    async with serve(max_in_flight=2) as served:
        first = [asyncio.create_task(served.ask("GET", "/wait")) for _ in range(2)]
        await served.gate.arrivals(2)
        answer, body = await served.ask("GET", "/wait")
        assert (answer.status, body["code"], answer.headers["Retry-After"]) == (503, "SERVICE_UNAVAILABLE", "1")
        assert (await served.ask("GET", "/open"))[0].status == 200
        served.gate.opened.set()
        assert [answer.status for answer, _ in await asyncio.gather(*first)] == [200, 200]
        assert (await served.ask("GET", "/wait"))[0].status == 200


async def test_bodies_held_are_bounded_and_released() -> None:
    async with serve(max_in_flight_body_bytes=1_000) as served:
        for _ in range(3):
            assert (await served.ask("POST", "/echo", json={"text": "x" * 500}))[0].status == 200
        assert (await served.ask("POST", "/echo", json={"text": "x" * 2_000}))[0].status == 503
        assert served.runtime.admission.body_bytes == 0
        assert served.runtime.admission.requests == 0


async def test_the_body_limit_holds_for_plain_chunked_and_packed_bodies() -> None:
    limit = 10_000
    fits = json.dumps({"text": "x" * 5_000}).encode()
    big = json.dumps({"text": "x" * 50_000}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(big), 1_000):
            yield big[at : at + 1_000]

    json_type = {"Content-Type": "application/json"}
    async with serve(max_body_bytes=limit) as served:
        for data, headers in (
            (big, {}),
            (chunks(), {}),
            (gzip.compress(big), {"Content-Encoding": "gzip"}),
            (zstandard.compress(big), {"Content-Encoding": "zstd"}),
        ):
            answer, body = await served.ask("POST", "/echo", data=data, headers={**json_type, **headers})
            assert (answer.status, body["code"]) == (413, "PAYLOAD_TOO_LARGE")
        for data, headers in (
            (gzip.compress(fits), {"Content-Encoding": "gzip"}),
            (zstandard.compress(fits), {"Content-Encoding": "zstd"}),
            (fits, {"Content-Encoding": "identity"}),
        ):
            answer, body = await served.ask("POST", "/echo", data=data, headers={**json_type, **headers})
            assert (answer.status, len(body["text"])) == (200, 5_000)
        for data, encoding, status in ((b"x", "gzip", 400), (b"x", "zstd", 400), (b"x", "br", 415)):
            answer, _ = await served.ask(
                "POST", "/echo", data=data, headers={**json_type, "Content-Encoding": encoding}
            )
            assert answer.status == status


@pytest.mark.parametrize("accept", ["gzip", "zstd", "identity", "gzip;q=0"])
@pytest.mark.parametrize("size", [10, 5_000, 200_000])
async def test_answers_over_a_size_are_packed_as_the_client_accepts(accept: str, size: int) -> None:
    async with serve(compress_min_bytes=1_000) as served:
        url = f"http://127.0.0.1:{served.port}/echo"
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.post(url, json={"size": size}, headers={"Accept-Encoding": accept}) as answer,
        ):
            data = await answer.read()
        packed = size > 1_000 and accept in ("gzip", "zstd")
        assert answer.headers.get("Content-Encoding") == (accept if packed else None)
        if packed:
            assert answer.headers["Vary"] == "Accept-Encoding"
            assert len(data) < size / 5
            unpacked = gzip.decompress(data) if accept == "gzip" else zstandard.decompress(data, size + 1_000)
        else:
            unpacked = data
        assert len(json.loads(unpacked)["filler"]) == size


async def test_rate_limit_headers_stand_on_every_answer_spelled_exactly() -> None:
    async with serve(rate_limit_rps=100, rate_limit_burst=10) as served:
        for path, status in (("/things/1", 200), ("/open", 200), ("/nowhere", 404), ("/broken", 500)):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            raw = (await reader.read()).split(b"\r\n\r\n")[0].decode()
            writer.close()
            assert raw.startswith(f"HTTP/1.1 {status} ")
            headers = dict(line.split(": ", 1) for line in raw.split("\r\n")[1:])
            assert headers["X-RateLimit-Limit"] == "100"
            assert 0 <= int(headers["X-RateLimit-Remaining"]) <= 10
            assert abs(int(headers["X-RateLimit-Reset"]) - time.time()) < 5


async def test_a_caller_over_its_rate_gets_429_with_retry_after() -> None:
    async with serve(rate_limit_rps=1, rate_limit_burst=2) as served:
        statuses = [(await served.ask("GET", "/things/1"))[0].status for _ in range(3)]
        assert statuses == [200, 200, 429]
        answer, body = await served.ask("GET", "/things/1")
        assert (body["code"], answer.headers["X-RateLimit-Remaining"]) == ("RATE_LIMIT_EXCEEDED", "0")
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await served.ask("GET", "/open"))[0].status == 200


async def test_guessing_keys_is_rate_limited() -> None:
    async with serve(rate_limit_rps=1, rate_limit_burst=2, root_key="root") as served:
        wrong = {"Authorization": "Bearer wrong"}
        statuses = [(await served.ask("GET", "/things/1", headers=wrong))[0].status for _ in range(4)]
        assert statuses == [401, 401, 429, 429]
        right = {"Authorization": "Bearer root"}
        assert (await served.ask("GET", "/things/1", headers=right))[0].status == 200


async def test_unknown_routes_and_methods() -> None:
    async with serve() as served:
        answer, body = await served.ask("GET", "/nowhere")
        assert (answer.status, body["code"]) == (404, "ROUTE_NOT_FOUND")
        answer, body = await served.ask("POST", "/things/1")
        assert (answer.status, body["code"]) == (405, "METHOD_NOT_ALLOWED")
        assert answer.headers["Allow"] == "DELETE, GET, HEAD"
        answer, body = await served.ask("PUT", "/echo")
        assert answer.headers["Allow"] == "POST"
        assert (await served.ask("GET", "/things/special/"))[0].status == 404
        assert (await served.ask("DELETE", "/things/special"))[0].status == 200


async def test_head_answers_like_get_without_a_body() -> None:
    async with serve() as served:
        answer, data = await served.ask("HEAD", "/things/1")
        assert (answer.status, data, answer.headers["Content-Length"]) == (200, b"", "5")


async def test_security_headers_stand_on_answers_and_errors() -> None:
    async with serve() as served:
        for path in ("/things/1", "/nowhere", "/broken"):
            headers = (await served.ask("GET", path))[0].headers
            assert headers["X-Frame-Options"] == "DENY"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Strict-Transport-Security"].startswith("max-age=")
            assert "default-src 'none'" in headers["Content-Security-Policy"]


async def test_cors_for_all_origins_and_for_some() -> None:
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    async with serve() as served:
        answer, _ = await served.ask("GET", "/things/1", headers={"Origin": "https://a.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "X-RateLimit-Limit" in answer.headers["Access-Control-Expose-Headers"]
        answer, _ = await served.ask("OPTIONS", "/echo", headers=preflight)
        assert answer.status == 204
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
        answer, _ = await served.ask("GET", "/things/1")
        assert "Access-Control-Allow-Origin" not in answer.headers
    async with serve(cors_origins=("https://b.example",)) as served:
        answer, _ = await served.ask("GET", "/things/1", headers={"Origin": "https://a.example"})
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers["Vary"] == "Origin"
        answer, _ = await served.ask("GET", "/things/1", headers={"Origin": "https://b.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "https://b.example"


@pytest.mark.parametrize("given", ["", "x" * 200, "a b", "a\tb", "<script>"])
async def test_a_request_id_that_is_not_a_sane_one_is_replaced(given: str) -> None:
    async with serve() as served:
        answer, _ = await served.ask("GET", "/things/1", headers={"X-Request-Id": given})
        assert answer.headers["X-Request-Id"] != given
        other, _ = await served.ask("GET", "/things/1")
        assert other.headers["X-Request-Id"] != answer.headers["X-Request-Id"]


async def test_metrics_count_by_template_and_stay_bounded() -> None:
    async with serve() as served:
        for thing in range(50):
            await served.ask("GET", f"/things/{thing}")
            await served.ask("GET", f"/nowhere/{thing}")
        text = served.runtime.metrics.exposition().decode()
    assert 'dakera_http_requests_total{method="GET",path="/things/{thing_id}",status="200"} 50.0' in text
    assert 'dakera_http_requests_total{method="GET",path="unmatched",status="404"} 50.0' in text
    assert 'dakera_http_request_duration_seconds_count{path="/things/{thing_id}"} 50.0' in text
    assert "dakera_active_requests 0.0" in text
    assert "/nowhere/" not in text


async def test_the_access_log_has_one_structured_line_a_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="dakera_cluster.api.access")
    async with serve() as served:
        await served.ask("GET", "/things/7", headers={"X-Request-Id": "line"})
    (record,) = [record for record in caplog.records if getattr(record, "request_id", None) == "line"]
    fields = vars(record)
    assert (fields["method"], fields["path"], fields["status"]) == ("GET", "/things/{thing_id}", 200)
    assert fields["sent_bytes"] == 5
    assert fields["duration_ms"] >= 0


async def test_connections_do_not_wait_to_coalesce_small_writes() -> None:
    async with serve() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await served.gate.arrivals(1)
        accepted = [
            transport.get_extra_info("socket")
            for transport in transports()
            if transport.get_extra_info("sockname", (None, None))[1] == served.port
        ]
        assert accepted
        assert all(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in accepted)
        served.gate.opened.set()
        await reader.readuntil(b"\r\n\r\n")
        writer.close()


def transports() -> list[asyncio.Transport]:
    """Open transports of this process."""
    return [found for found in gc.get_objects() if isinstance(found, asyncio.Transport) and not found.is_closing()]


async def test_draining_finishes_what_is_in_flight_and_accepts_nothing_more() -> None:
    gate = Gate()
    services = SimpleNamespace(
        keys=Keys(MemoryObjectStore(), node="n", clock=time.time),
        status=SimpleNamespace(totals=lambda: (0, 0)),
        events=EventBus(lambda: 0),
    )
    settings = ApiSettings(host="127.0.0.1", port=0, rate_limit_rps=0)
    server = ApiServer(services, settings, routes=table(gate))  # type: ignore[arg-type]
    port = await server.start()
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/wait"

        async def ask() -> int:
            async with session.get(url) as answer:
                return answer.status

        inflight = asyncio.create_task(ask())
        await gate.arrivals(1)
        draining = asyncio.create_task(server.drain())
        await asyncio.sleep(0.02)
        assert not draining.done()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
        gate.opened.set()
        assert await draining is True
        assert await inflight == 200
    await server.stop()
