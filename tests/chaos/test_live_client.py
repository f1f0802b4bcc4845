"""What a client makes of answers, silences and broken connections: a write may count as failed only when it certainly was."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from chaos.live.client import Client, Request
from chaos.live.history import (
    Attempt,
    Kind,
    Operation,
    Outcome,
    Seen,
    content_of,
    encode,
    importance_of,
    overall,
    read_history,
    seen_in,
)
from chaos.live.workload import perform

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
WRITE = Request("POST", "/anything", {}, is_write=True)
READ = Request("GET", "/anything")


@contextlib.asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def answering(status: int, **body: object) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status)

    return handle


async def breaking(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def silent(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def ask(handler: Handler, request: Request, timeout_s: float = 5.0) -> Outcome:
    async with server(handler) as url:
        client = Client({"node-1": url}, timeout_s)
        try:
            return (await client.ask(request, attempts=1)).outcome
        finally:
            await client.close()


@pytest.mark.parametrize(
    ("handler", "outcome"),
    [
        (answering(200), Outcome.OK),
        (answering(404, code="VECTOR_NOT_FOUND"), Outcome.FAILED),
        (answering(503, code="QUORUM_UNAVAILABLE"), Outcome.FAILED),
        (answering(503, code="QUORUM_UNAVAILABLE", ambiguous=True), Outcome.AMBIGUOUS),
        (answering(500), Outcome.AMBIGUOUS),
        (answering(504), Outcome.AMBIGUOUS),
        (breaking, Outcome.AMBIGUOUS),
    ],
)
async def test_a_write_is_failed_only_when_it_certainly_was(handler: Handler, outcome: Outcome) -> None:
    assert await ask(handler, WRITE) is outcome


async def test_a_write_without_an_answer_is_a_timeout() -> None:
    assert await ask(silent, WRITE, timeout_s=0.2) is Outcome.TIMEOUT


@pytest.mark.parametrize("handler", [answering(503), breaking])
async def test_a_read_that_was_not_answered_failed(handler: Handler) -> None:
    assert await ask(handler, READ) is Outcome.FAILED


async def test_a_memory_that_is_not_there_is_an_answer() -> None:
    assert await ask(answering(404), READ) is Outcome.OK


async def test_a_refused_connection_is_certain_and_the_next_node_is_tried() -> None:
    async with server(answering(200)) as url:
        client = Client({"node-1": "http://127.0.0.1:9", "node-2": url})
        answer = await client.ask(WRITE, node="node-1")
        await client.close()
    assert [attempt.outcome for attempt in answer.attempts] == [Outcome.FAILED, Outcome.OK]
    assert answer.outcome is Outcome.OK


async def test_a_node_that_hangs_leaves_the_turn_and_a_node_that_refuses_stays() -> None:
    async with server(answering(200)) as url, server(silent) as deaf:
        client = Client({"node-1": url, "node-2": deaf, "node-3": "http://127.0.0.1:9"}, timeout_s=3.0)
        client.watch_for_hangs()
        async with asyncio.timeout(10):
            while "node-2" not in client.hanging:
                await asyncio.sleep(0.02)
        first = [(await client.ask(READ)).attempts[0].node for _ in range(6)]
        await client.close()
    assert "node-2" not in first
    assert "node-3" in first


def test_the_outcome_of_attempts() -> None:
    def made(*outcomes: Outcome) -> list[Attempt]:
        return [Attempt("node-1", 0, 1, outcome) for outcome in outcomes]

    assert overall(made(Outcome.TIMEOUT, Outcome.OK)) is Outcome.OK
    assert overall(made(Outcome.AMBIGUOUS, Outcome.FAILED)) is Outcome.AMBIGUOUS
    assert overall(made(Outcome.FAILED, Outcome.FAILED)) is Outcome.FAILED


def test_what_is_written_names_its_writer() -> None:
    for number in (1, 77, 123_456):
        memory = {
            "content": content_of(number, "a #5 b"),
            "importance": importance_of(number),
            "metadata": {"op": number},
        }
        assert seen_in(memory) == Seen(number, number, number)
    assert seen_in({"content": "of somebody else", "importance": 0.5}) is None


async def test_a_get_records_what_it_saw_and_a_stranger_as_nobody() -> None:
    for body, seen in (
        ({"content": "x #3", "importance": importance_of(4), "metadata": {"op": 2}}, Seen(2, 3, 4)),
        ({"content": "of somebody else", "importance": 0.5}, Seen(-1, -1, -1)),
    ):
        async with server(answering(200, **body)) as url:
            client = Client({"node-1": url})
            done = await perform(client, Kind.STRONG_GET, "agent-0/m", 9, 0, random.Random(0))
            await client.close()
        assert done.seen == seen


def test_a_history_is_read_as_it_was_written_but_for_a_torn_line(tmp_path: Path) -> None:
    operations = [
        Operation(number, Kind.STORE, "agent-0/m", 0, [Attempt("node-1", 10.0 - number, 20.0, Outcome.OK)], Outcome.OK)
        for number in range(3)
    ]
    path = tmp_path / "history.jsonl"
    path.write_bytes(b"".join(map(encode, operations)) + b'{"number": 7, "ki')
    assert [op.number for op in read_history(path)] == [2, 1, 0]
