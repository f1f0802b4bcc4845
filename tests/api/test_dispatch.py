"""Which endpoint answers a path, and what an answer looks like on the wire, on a real server spoken to byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from dakera_cluster.api.reply import header_lines
from dakera_cluster.api.route import Call, Raw, Route
from dakera_cluster.api.server import ApiServer
from dakera_cluster.api.settings import ApiSettings
from dakera_cluster.cluster import levels
from dakera_cluster.memory.events import EventBus
from dakera_cluster.memory.keys import Keys
from dakera_cluster.model.keys import Scope
from dakera_cluster.protocols.quorum import ReadLevel, WriteLevel
from dakera_cluster.storage.memory_objects import MemoryObjectStore


def told(name: str) -> Any:
    async def handler(call: Call, _: Any) -> Raw:
        parts = [name, *(f"{key}={value}" for key, value in call.path.items())]
        return Raw(" ".join(parts).encode(), "text/plain", {"X-More": "more"})

    return handler


async def told_levels(_: Call, __: None) -> dict[str, Any]:
    return {"write": levels.write_level.get(), "read": levels.read_level.get()}


def row(method: str, path: str, handler: Any, **more: Any) -> Route:
    return Route(method=method, path=path, scope=Scope.READ, handler=handler, summary="-", tag="-", **more)


TABLE = [
    row("GET", "/a/{x}", told("one")),
    row("GET", "/a/{x}/b", told("two")),
    row("GET", "/a/{x}/{y}", told("three")),
    row("GET", "/a/literal/{y}", told("four")),
    row("POST", "/a/fixed", told("five")),
    row("GET", "/levels", told_levels),
    row("GET", "/{x}", told("any")),
]


class Line:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, text: str) -> None:
        self.writer.write(text.replace("\n", "\r\n").encode())
        await self.writer.drain()

    async def hear(self, *, empty: bool = False) -> tuple[str, dict[str, str], bytes]:
        """Status line, headers and body; ``empty``: there must be no body whatever the length says."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head[:-4].split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            length = 0 if empty else int(headers.get("Content-Length", 0))
            return status, headers, await self.reader.readexactly(length)

    async def ask(self, method: str, path: str, headers: str = "") -> tuple[str, dict[str, str], bytes]:
        await self.send(f"{method} {path} HTTP/1.1\nHost: x\n{headers}\n")
        return await self.hear(empty=method == "HEAD")

    async def is_closed(self) -> bool:
        async with asyncio.timeout(10):
            return await self.reader.read(1) == b""


@contextlib.asynccontextmanager
async def line() -> AsyncIterator[Line]:
    services = SimpleNamespace(
        keys=Keys(MemoryObjectStore(), node="n", clock=time.time),
        status=SimpleNamespace(totals=lambda: (0, 0)),
        events=EventBus(lambda: 0),
    )
    settings = ApiSettings(host="127.0.0.1", port=0, rate_limit_rps=0)
    server = ApiServer(services, settings, routes=TABLE)  # type: ignore[arg-type]
    reader, writer = await asyncio.open_connection("127.0.0.1", await server.start())
    try:
        yield Line(reader, writer)
    finally:
        writer.close()
        await server.stop()


async def test_the_longest_literal_beginning_answers_and_a_literal_before_a_parameter() -> None:
    expected = {
        "/a/1": b"one x=1",
        "/a/1/b": b"two x=1",
        "/a/1/c": b"three x=1 y=c",
        "/a/literal/c": b"four y=c",
        "/a/fixed": b"one x=fixed",  # the literal row answers another method
        "/other": b"any x=other",
        "/a/two%20words": b"one x=two words",
        "/a/1%2F2": b"one x=1/2",
        "/a/50%25": b"one x=50%",
        "/a/%252F": b"one x=%2F",
    }
    async with line() as server:
        found = {path: (await server.ask("GET", path))[2] for path in expected}
    assert found == expected


@pytest.mark.parametrize("path", ["/", "/a/", "/a//b", "/a/1/b/", "/a/1/b/c"])
async def test_an_empty_segment_and_one_too_many_are_no_parameters(path: str) -> None:
    async with line() as server:
        status, _, _ = await server.ask("GET", path)
    assert status == "HTTP/1.1 404 Not Found"


async def test_a_path_of_several_rows_allows_the_methods_of_all() -> None:
    async with line() as server:
        status, headers, _ = await server.ask("DELETE", "/a/fixed")
    assert (status, headers["Allow"]) == ("HTTP/1.1 405 Method Not Allowed", "GET, HEAD, POST")


def test_two_rows_for_one_method_and_path_are_refused() -> None:
    services = SimpleNamespace(keys=None, status=SimpleNamespace(totals=lambda: (0, 0)), events=EventBus(lambda: 0))
    twice = [row("GET", "/a", told("one")), row("GET", "/b", told("two"), aliases=("/a",))]
    with pytest.raises(ValueError, match="GET /a"):
        ApiServer(services, ApiSettings(host="127.0.0.1", port=0), routes=twice)  # type: ignore[arg-type]


async def test_an_answer_has_its_length_its_date_and_the_handlers_headers() -> None:
    async with line() as server:
        status, headers, body = await server.ask("GET", "/a/1")
    assert (status, body) == ("HTTP/1.1 200 OK", b"one x=1")
    assert (headers["Content-Type"], headers["X-More"]) == ("text/plain", "more")
    assert (
        abs(time.mktime(time.strptime(headers["Date"], "%a, %d %b %Y %H:%M:%S GMT")) - time.timezone - time.time()) < 5
    )
    assert "Connection" not in headers


async def test_head_says_the_length_and_sends_nothing_and_the_connection_goes_on() -> None:
    async with line() as server:
        _, headers, _ = await server.ask("HEAD", "/a/1")
        assert headers["Content-Length"] == "7"
        assert (await server.ask("GET", "/a/2"))[2] == b"one x=2"


async def test_a_preflight_has_neither_length_nor_body_and_the_connection_goes_on() -> None:
    async with line() as server:
        status, headers, _ = await server.ask(
            "OPTIONS", "/a/1", "Origin: http://o\nAccess-Control-Request-Method: GET\n"
        )
        assert (status, "Content-Length" in headers) == ("HTTP/1.1 204 No Content", False)
        assert (await server.ask("GET", "/a/2"))[2] == b"one x=2"


async def test_a_client_that_wants_the_connection_closed_is_told_so() -> None:
    async with line() as server:
        _, headers, _ = await server.ask("GET", "/a/1", "Connection: close\n")
        assert headers["Connection"] == "close"
        assert await server.is_closed()


@pytest.mark.parametrize(("asked", "answered"), [("", None), ("Connection: keep-alive\n", "keep-alive")])
async def test_http_1_0_keeps_the_connection_only_when_asked_to(asked: str, answered: str | None) -> None:
    async with line() as server:
        await server.send(f"GET /a/1 HTTP/1.0\nHost: x\n{asked}\n")
        status, headers, _ = await server.hear()
        assert (status, headers.get("Connection")) == ("HTTP/1.0 200 OK", answered)
        if answered is None:
            assert await server.is_closed()
        else:
            assert (await server.ask("GET", "/a/2"))[2] == b"one x=2"


async def test_two_requests_in_one_packet_are_answered_in_order() -> None:
    async with line() as server:
        await server.send("GET /a/1 HTTP/1.1\nHost: x\n\nGET /a/2 HTTP/1.1\nHost: x\n\n")
        assert [(await server.hear())[2] for _ in range(2)] == [b"one x=1", b"one x=2"]


async def test_a_client_that_waits_to_send_its_body_is_told_to_go_on() -> None:
    async with line() as server:
        await server.send("POST /a/fixed HTTP/1.1\nHost: x\nContent-Length: 4\nExpect: 100-continue\n\n")
        assert (await server.hear(empty=True))[0] == "HTTP/1.1 100 Continue"
        await server.send("body")
        assert (await server.hear())[2] == b"five"


async def test_an_expectation_that_cannot_be_met_is_refused() -> None:
    async with line() as server:
        status, _, _ = await server.ask("GET", "/a/1", "Expect: miracles\n")
    assert status.startswith("HTTP/1.1 417 ")


async def test_levels_hold_for_their_request_and_not_for_the_next_of_the_connection() -> None:
    asked = f"X-Write-Level: {WriteLevel.ALL.upper()}\nX-Read-Consistency: {ReadLevel.STRONG}\n"
    async with line() as server:
        assert (await server.ask("GET", "/levels", asked))[2] == b'{"write":"all","read":"strong"}'
        assert (await server.ask("GET", "/levels"))[2] == b'{"write":null,"read":null}'


@pytest.mark.parametrize("header", ["X-Write-Level", "X-Read-Consistency"])
async def test_a_level_that_is_none_is_a_bad_request_that_names_the_header(header: str) -> None:
    async with line() as server:
        status, _, body = await server.ask("GET", "/levels", f"{header}: some\n")
    assert status == "HTTP/1.1 400 Bad Request"
    assert header.encode() in body


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\x00"])
def test_a_header_that_would_end_early_is_not_sent(value: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        header_lines({"X-More": value})
