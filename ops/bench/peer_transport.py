"""`python -m ops.bench.peer_transport [--seconds 1] [--json FILE]`: a call between two nodes over the peer transport, sealed
and not, beside HTTP with keep-alive (aiohttp, the server and client the REST API is made of).

Each server is a process of its own and echoes; the contenders take turns, so that a busy moment of the machine hits all of
them. Both sides run on uvloop, as nodes do. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import msgspec
import uvloop
from aiohttp import web
from rich.console import Console
from rich.table import Table

from dakera_cluster.cluster.peer_client import PeerClient
from dakera_cluster.cluster.peer_server import PeerServer
from dakera_cluster.cluster.peer_services import Context
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.members import Address
from dakera_cluster.protocols.peer_handshake import Endpoint

HOST = "127.0.0.1"
SERVER = NodeId("server")
START_TIMEOUT_S = 30.0
SIZES = (200, 16_384)
CONCURRENT = 64
CONTENDERS = ("peer, sealed", "peer, no secret", "HTTP keep-alive")

Call = Callable[[str, bytes], Awaitable[bytes]]
"""(service, payload) -> answer"""


class Figures(msgspec.Struct, frozen=True):
    """``one_*``: one call after the other, us. ``rate``: calls per second with 64 under way. ``*_cpu_us``: processor time per
    call of that pass."""

    contender: str
    payload_bytes: int
    one_p50_us: float
    one_p99_us: float
    rate: float
    client_cpu_us: float
    server_cpu_us: float


# -- servers, each in its own process


async def _serve_peers(port: int, secret: bytes) -> None:
    server = PeerServer(Endpoint("bench", SERVER, BootId(1), (secret,) if secret else ()))

    async def echo(payload: bytes, context: Context) -> bytes:
        return payload

    async def cpu(payload: bytes, context: Context) -> bytes:
        return str(time.process_time()).encode()

    server.register("echo", echo)
    server.register("cpu", cpu)
    await server.start(Address(HOST, port))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _serve_http(port: int) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def cpu(request: web.Request) -> web.Response:
        return web.Response(body=str(time.process_time()).encode())

    app = web.Application()
    app.router.add_post("/echo", echo)
    app.router.add_post("/cpu", cpu)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, port).start()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


# -- the client


async def _measure(call: Call, payload: bytes, seconds: float) -> tuple[list[float], float, float, float]:
    """(latencies in s, calls per second, client's and server's processor seconds per call)."""
    latencies = []
    until = time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        await call("echo", payload)
        latencies.append(time.perf_counter() - started)
    done = 0
    server_cpu, client_cpu, started = float(await call("cpu", b"")), time.process_time(), time.perf_counter()
    until = started + seconds

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await call("echo", payload)
            done += 1

    await asyncio.gather(*(worker() for _ in range(CONCURRENT)))
    rate = done / (time.perf_counter() - started)
    client_cpu = (time.process_time() - client_cpu) / done
    return latencies, rate, client_cpu, (float(await call("cpu", b"")) - server_cpu) / done


async def _ready(call: Call) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            try:
                await call("echo", b"")
            except Exception:
                await asyncio.sleep(0.05)
            else:
                return


async def _run(ports: dict[str, int], secret: bytes, seconds: float, rounds: int) -> list[Figures]:
    def over_peers(contender: str, keys: tuple[bytes, ...]) -> Call:
        address = Address(HOST, ports[contender])
        client = PeerClient(Endpoint("bench", NodeId("client"), BootId(1), keys), lambda node: address)
        return lambda service, payload: client.call(SERVER, service, payload)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        base = f"http://{HOST}:{ports[CONTENDERS[2]]}/"

        async def over_http(service: str, payload: bytes) -> bytes:
            async with http.post(base + service, data=payload) as response:
                return await response.read()

        calls = dict(
            zip(
                CONTENDERS,
                (over_peers(CONTENDERS[0], (secret,)), over_peers(CONTENDERS[1], ()), over_http),
                strict=True,
            )
        )
        for call in calls.values():
            await _ready(call)
        figures = []
        for size in SIZES:
            payload = secrets.token_bytes(size)
            passes: dict[str, list[tuple[list[float], float, float, float]]] = {name: [] for name in CONTENDERS}
            for _ in range(rounds):
                for name in CONTENDERS:
                    passes[name].append(await _measure(calls[name], payload, seconds))
            figures += [_figures(name, size, passes[name]) for name in CONTENDERS]
        return figures


def _figures(name: str, size: int, passes: list[tuple[list[float], float, float, float]]) -> Figures:
    def middle(values: list[float]) -> float:
        return statistics.median(values)

    ordered = [sorted(one[0]) for one in passes]
    return Figures(
        contender=name,
        payload_bytes=size,
        one_p50_us=middle([one[len(one) // 2] * 1e6 for one in ordered]),
        one_p99_us=middle([one[len(one) * 99 // 100] * 1e6 for one in ordered]),
        rate=middle([one[1] for one in passes]),
        client_cpu_us=middle([one[2] * 1e6 for one in passes]),
        server_cpu_us=middle([one[3] * 1e6 for one in passes]),
    )


def measure(seconds: float = 1.0, rounds: int = 3) -> list[Figures]:
    """Start the servers, measure, stop them. Takes about ``12 * seconds * rounds``."""
    secret = secrets.token_bytes(32)
    servers = []
    ports = {}
    try:
        for name in CONTENDERS:
            ports[name] = _free_port()
            command = [sys.executable, "-m", "ops.bench.peer_transport", "--serve", name, "--port", str(ports[name])]
            servers.append(subprocess.Popen(command, stdin=subprocess.PIPE))
            pipe = servers[-1].stdin
            assert pipe is not None
            pipe.write(secret.hex().encode() + b"\n")
            pipe.flush()
        return uvloop.run(_run(ports, secret, seconds, rounds))
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def print_figures(figures: list[Figures], console: Console) -> None:
    table = Table(title=f"One call between two nodes (us), and with {CONCURRENT} under way")
    for heading in ("payload", "transport", "p50", "p99", "rate /s", "client cpu", "server cpu", "against HTTP"):
        table.add_column(heading, justify="left" if heading == "transport" else "right")
    for size in SIZES:
        rows = [one for one in figures if one.payload_bytes == size]
        http = next(one for one in rows if one.contender == CONTENDERS[2])
        for one in rows:
            table.add_row(
                f"{size:,} B",
                one.contender,
                f"{one.one_p50_us:.0f}",
                f"{one.one_p99_us:.0f}",
                f"{one.rate:,.0f}",
                f"{one.client_cpu_us:.1f}",
                f"{one.server_cpu_us:.1f}",
                f"{http.one_p50_us / one.one_p50_us:.1f}x faster, {one.rate / http.rate:.1f}x rate"
                if one is not http
                else "",
            )
        table.add_section()
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.peer_transport", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one timed pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        secret = bytes.fromhex(sys.stdin.readline())
        serve_peers = arguments.serve != CONTENDERS[2]
        is_sealed = arguments.serve == CONTENDERS[0]
        uvloop.run(
            _serve_peers(arguments.port, secret if is_sealed else b"") if serve_peers else _serve_http(arguments.port)
        )
        return 0
    figures = measure(arguments.seconds, arguments.rounds)
    print_figures(figures, Console(width=None if sys.stdout.isatty() else 140))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
