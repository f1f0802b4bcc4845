"""The real Traefik with the shipped files, in front of servers that misbehave on purpose: who gets a request, and which
requests are repeated. A memory must not be stored twice because a balancer was helpful."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from dakera_cluster.api.routes import ROUTES
from dakera_cluster.model.keys import Scope
from ops.local import balancer
from ops.local.layout import Layout
from ops.local.processes import Background
from tests.support.ports import free_range

ROTATION_WAIT_S = 15.0
NODES = (1, 2, 3)


class Backend:
    """Answers readiness and requests as told, and remembers what it received."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ready = True
        self.status = 200
        self.cuts_off = False
        self.received: list[str] = []
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/health/ready", self._readiness)
        app.router.add_route("*", "/{path:.*}", self._any)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _readiness(self, _: web.Request) -> web.Response:
        return web.json_response({}, status=200 if self.ready else 503)

    async def _any(self, request: web.Request) -> web.Response:
        body = await request.text()
        self.received.append(body)
        if self.cuts_off:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"by": self.port, "host": request.headers["Host"]}, status=self.status)


class Balanced:
    """Traefik, three backends behind it, and a client before it."""

    def __init__(self, layout: Layout, backends: list[Backend], client: aiohttp.ClientSession) -> None:
        self.layout = layout
        self.backends = backends
        self._client = client

    async def post(self, path: str, body: str = "x", headers: dict[str, str] | None = None) -> tuple[int, Any]:
        async with self._client.post(self.layout.url + path, data=body, headers=headers) as response:
            return response.status, await response.json(content_type=None) if response.status == 200 else None

    async def rotation(self, *numbers: int) -> None:
        """Wait until exactly these nodes get requests."""
        wanted = {self.layout.node_url(number) for number in numbers}
        async with asyncio.timeout(ROTATION_WAIT_S):
            while True:
                seen = await asyncio.to_thread(balancer.in_rotation, self.layout)
                if len(seen) == len(NODES) and {url for url, used in seen.items() if used} == wanted:
                    return
                await asyncio.sleep(0.05)

    def received(self) -> list[str]:
        return [body for backend in self.backends for body in backend.received]


@pytest.fixture
async def balanced(tmp_path: Path) -> AsyncIterator[Balanced]:
    program = balancer.find_program("traefik")
    assert program is not None, "the test extra brings Traefik"
    layout = Layout(port=free_range(), run_dir=tmp_path)
    backends = [Backend(layout.node_port(number)) for number in NODES]
    traefik = Background("traefik", tmp_path)
    async with contextlib.AsyncExitStack() as stack:
        for backend in backends:
            await backend.start()
            stack.push_async_callback(backend.stop)
        env = os.environ | dict(balancer.environment(layout, NODES))
        traefik.start(balancer.command(program, layout), env)
        stack.callback(traefik.stop, 5.0)
        client = await stack.enter_async_context(aiohttp.ClientSession())
        together = Balanced(layout, backends, client)
        try:
            await together.rotation(*NODES)
        except TimeoutError:
            raise AssertionError(traefik.last_lines(20)) from None
        yield together


async def test_every_node_gets_its_share_and_the_clients_host_header(balanced: Balanced) -> None:
    answers = [await balanced.post("/v1/memory/store") for _ in range(30)]
    assert [len(backend.received) for backend in balanced.backends] == [10, 10, 10]
    assert {answer["host"] for _, answer in answers} == {f"127.0.0.1:{balanced.layout.port}"}


async def test_a_node_that_is_not_ready_gets_nothing_until_it_is(balanced: Balanced) -> None:
    shy = balanced.backends[1]
    shy.ready = False
    await balanced.rotation(1, 3)
    assert [status for status, _ in [await balanced.post("/v1/memory/store") for _ in range(12)]] == [200] * 12
    assert shy.received == []
    shy.ready = True
    await balanced.rotation(*NODES)
    for _ in range(12):
        await balanced.post("/v1/memory/store")
    # A third of them, give or take one: a node that comes back takes its old place in the round, wherever the round stands.
    assert len(shy.received) in (3, 4, 5)


async def test_without_a_ready_node_the_balancer_says_503(balanced: Balanced) -> None:
    for backend in balanced.backends:
        backend.ready = False
    await balanced.rotation()
    assert (await balanced.post("/v1/memory/recall"))[0] == 503


async def test_a_store_that_reached_nobody_is_given_to_another_node(balanced: Balanced) -> None:
    """The node is gone and the balancer does not know yet: nothing was sent, so any method may be repeated."""
    before = await asyncio.to_thread(balancer.retries, balanced.layout)
    await balanced.backends[0].stop()
    answers = await asyncio.gather(*(balanced.post("/v1/memory/store", f"s{number}") for number in range(30)))
    assert [status for status, _ in answers] == [200] * 30
    assert sorted(balanced.received()) == sorted(f"s{number}" for number in range(30))
    assert await asyncio.to_thread(balancer.retries, balanced.layout) > before


async def test_a_store_that_was_cut_off_is_not_repeated(balanced: Balanced) -> None:
    for backend in balanced.backends:
        backend.cuts_off = True
    status, _ = await balanced.post("/v1/memory/store", "only once")
    assert status == 502
    assert balanced.received() == ["only once"]


@pytest.mark.parametrize("failure", ["cut off", "503"])
async def test_a_store_whose_sender_says_it_may_be_repeated_is_repeated(balanced: Balanced, failure: str) -> None:
    for backend in balanced.backends[:2]:
        backend.cuts_off, backend.status = failure == "cut off", 503
    for number in range(6):
        status, answer = await balanced.post("/v1/memory/store", f"m{number}", {"Idempotency-Key": f"m{number}"})
        assert (status, answer["by"]) == (200, balanced.backends[2].port)
    assert sorted(balanced.backends[2].received) == [f"m{number}" for number in range(6)]


@pytest.mark.parametrize("failure", ["cut off", "503"])
async def test_a_recall_that_a_node_did_not_answer_is_repeated_elsewhere(balanced: Balanced, failure: str) -> None:
    for backend in balanced.backends[:2]:
        backend.cuts_off, backend.status = failure == "cut off", 503
    answers = [await balanced.post("/v1/memory/recall", '{"query": "tea"}') for _ in range(6)]
    assert {(status, answer["by"]) for status, answer in answers} == {(200, balanced.backends[2].port)}


async def test_an_error_that_another_node_would_repeat_is_passed_on(balanced: Balanced) -> None:
    for backend in balanced.backends:
        backend.status = 404
    assert (await balanced.post("/v1/memory/recall", "once"))[0] == 404
    assert balanced.received() == ["once"]


# -- the files themselves


def dynamic() -> dict[str, Any]:
    """The dynamic file without its template lines."""
    text = (balancer.DYNAMIC_DIR / "dakera.yml").read_text()
    document: dict[str, Any] = yaml.safe_load(
        "\n".join(line for line in text.splitlines() if not line.startswith("{{"))
    )
    return document


def test_exactly_the_posts_that_only_read_are_repeated_unasked() -> None:
    rule = dynamic()["http"]["routers"]["harmless-to-repeat"]["rule"]
    patterns = [re.compile(pattern) for pattern in re.findall(r"PathRegexp\(`(.+?)`\)", rule)]
    for route in ROUTES:
        if route.method != "POST":
            continue
        for path in (route.path, *route.aliases):
            # Parameters named like the last part of a reading path must not make a writing path look like one.
            for name in ("x", "recall", "query", "vectors"):
                concrete = re.sub(r"\{\w+\}", name, path)
                reads = route.scope is Scope.READ
                repeated = any(pattern.search(concrete) for pattern in patterns)
                assert repeated == reads, f"{concrete} {'reads' if reads else 'writes'}: see traefik/dynamic/dakera.yml"


def test_nothing_is_sticky_and_readiness_decides() -> None:
    services = dynamic()["http"]["services"]
    nodes = services["nodes"]["loadBalancer"]
    assert "sticky" not in nodes
    assert nodes["healthCheck"]["path"] == "/health/ready"
    assert nodes["passHostHeader"] is True
    grpc = services["grpc-nodes"]["loadBalancer"]
    assert grpc["servers"] == [{"url": "h2c://{{ . | trim }}"}]


def test_the_local_static_file_listens_on_loopback_only(tmp_path: Path) -> None:
    layout = Layout(port=23_000, run_dir=tmp_path)
    document = yaml.safe_load(balancer.local_static(balancer.STATIC_FILE.read_text(), layout))
    addresses = {name: point["address"] for name, point in document["entryPoints"].items()}
    assert addresses == {"web": "127.0.0.1:23000", "grpc": "127.0.0.1:23050", "traefik": "127.0.0.1:23080"}
    assert Path(document["providers"]["file"]["directory"]) == balancer.DYNAMIC_DIR


def test_a_static_file_that_cannot_be_made_local_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'address: \":3000\"' once, found it 0 times"):
        balancer.local_static(balancer.STATIC_FILE.read_text().replace(":3000", ":3001"), Layout())
