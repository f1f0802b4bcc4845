"""What `make up` starts, as a user meets it: three real nodes behind the real Traefik, seen through the balancer only.

One stack serves the whole module; every test leaves it whole. The load is `ops.local.load`: open loop, no retries of its own,
so each request that a user would see fail is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from ops.local import balancer, failover
from ops.local.bucket import BucketKind
from ops.local.load import Load, Stores
from ops.local.stack import Options, Stack, StackError
from ops.local.web import get
from ops.local.welcome import welcome
from tests.support.ports import SPAN, free_range
from tests.support.redis_server import installed as redis_installed

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SETTLE_WAIT_S = 60.0
ROLLING_RATE = 50.0
KILL_RATE = 20.0
GIVEN = {
    "DAKERA_ROOT_API_KEY": "a-root-key-of-the-test",
    "DAKERA_LOG_LEVEL": "warn",
    "RATE_LIMIT_RPS": "0",
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("stack")
    options = Options(port=free_range(), nodes=3, redis=redis_installed(), given=GIVEN)
    stack = Stack(options, home / "run", home / "data")
    stack.start(print)
    yield stack
    stack.stop()


def wait_until(condition: Callable[[], bool], wait_s: float = SETTLE_WAIT_S) -> None:
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)


def wait_until_whole(stack: Stack) -> None:
    """Until every node sees every node, and the balancer uses all of them."""
    deadline = time.monotonic() + SETTLE_WAIT_S
    while problems := troubles(stack):
        assert time.monotonic() < deadline, problems
        time.sleep(0.1)


def troubles(stack: Stack) -> list[str]:
    found: list[str] = []
    routed = balancer.in_rotation(stack.layout)
    for name in stack.node_names:
        process = stack.process(name)
        if process.pid is None:
            found.append(f"{name} does not run: {process.last_lines(5)}")
        elif (problem := stack.unready(name) or stack.unsettled(name)) is not None:
            found.append(f"{name}: {problem}")
        elif not routed.get(stack.node_url(name), False):
            found.append(f"{name} gets no requests")
    return found


@contextlib.asynccontextmanager
async def under_load(stack: Stack, rate: float) -> AsyncIterator[Load]:
    load = Load(stack.layout.url, stack.key, rate, Stores.PLAIN)
    sending = asyncio.create_task(load.run())
    try:
        yield load
    finally:
        load.stop.set()
        await sending


async def nothing_is_missing(load: Load) -> None:
    """Every acknowledged memory is recalled; replicas that were away may need a repair first."""
    assert load.acknowledged
    missing = list(load.acknowledged)
    deadline = time.monotonic() + failover.REPAIR_WAIT_S
    while missing := await load.missing(missing):
        assert time.monotonic() < deadline, f"{len(missing)} of {len(load.acknowledged)} acknowledged memories are lost"
        await asyncio.sleep(0.5)


def status_command(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node", "cluster", "status", "--url", stack.layout.url, "--key", stack.key or ""]
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_printed_commands_store_and_recall_through_the_balancer(stack: Stack) -> None:
    said = welcome(stack, 1.0)
    assert stack.layout.url in said
    assert f"{stack.layout.dashboard_url}/dashboard/" in said
    blocks = re.findall(r"^  (curl .*?\n)(?:\n|$)", said, re.M | re.S)
    assert len(blocks) == 2
    answers = [
        subprocess.run(["bash", "-c", block], capture_output=True, text=True, timeout=60).stdout for block in blocks
    ]
    stored, recalled = (json.loads(answer) for answer in answers)
    assert recalled["memories"][0]["id"] == stored["id"]
    assert get(f"{stack.layout.dashboard_url}/dashboard/").ok


def test_every_node_answers_through_the_balancer_and_sees_all_of_the_cluster(stack: Stack) -> None:
    answered: set[str] = set()
    for _ in range(9):
        seen = get(f"{stack.layout.url}/admin/cluster/status", stack.key).json()
        answered.add(seen["answered_by"])
        assert seen["node_count"] == seen["alive_nodes"] == 3
    assert answered == {"node-1", "node-2", "node-3"}


def test_the_stack_listens_on_loopback_only(stack: Stack) -> None:
    """The kernel's own table: every listening socket of this stack's range of ports is bound to 127.0.0.1."""
    first = stack.layout.port
    ours = {
        (bytes.fromhex(address)[::-1], int(port, 16))
        for family in ("tcp", "udp")
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]
        for address, port in [line.split()[1].split(":")]
        if first <= int(port, 16) < first + SPAN and line.split()[3] in ("0A", "07")
    }
    assert {port for _, port in ours} >= {first, first + 1, first + 2, first + 3, stack.layout.dashboard_port}
    assert {socket.inet_ntoa(address) for address, _ in ours} == {"127.0.0.1"}
    wide = Path("/proc/net/tcp6").read_text().splitlines()[1:] if Path("/proc/net/tcp6").exists() else []
    assert not [line for line in wide if first <= int(line.split()[1].split(":")[1], 16) < first + SPAN]


def test_secrets_are_readable_by_their_owner_alone(stack: Stack) -> None:
    for file in (stack.layout.secret_file, stack.layout.state_file):
        assert file.stat().st_mode & 0o077 == 0
    assert len(stack.layout.secret_file.read_text()) == 64


def test_starting_again_what_runs_starts_nothing(stack: Stack) -> None:
    before = {name: stack.process(name).pid for name in stack.names}
    stack.start(print)
    assert {name: stack.process(name).pid for name in stack.names} == before


def test_the_status_command_shows_every_node_as_plain_text_in_a_pipe(stack: Stack) -> None:
    shown = status_command(stack)
    assert shown.returncode == 0, shown.stderr
    assert "\x1b" not in shown.stdout
    for name in stack.node_names:
        assert re.search(rf"^{name} +(leader|follower) +alive ", shown.stdout, re.M), shown.stdout
    assert "3 of 3 nodes alive" in shown.stdout
    assert "64 shards: 64 sound" in shown.stdout


def test_a_node_that_hangs_is_left_out_and_comes_back(stack: Stack) -> None:
    """Its port still accepts connections; only its readiness gives it away."""
    pid = stack.process("node-2").pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: not balancer.in_rotation(stack.layout).get(stack.node_url("node-2"), True))
        for _ in range(10):
            assert get(f"{stack.layout.url}/health/ready", timeout_s=5.0).ok
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until_whole(stack)


async def test_a_killed_leader_costs_no_request_and_no_memory(stack: Stack) -> None:
    """The demo itself: SIGKILL under load, election, return, and everything acknowledged is recalled."""
    scene = await failover.perform(stack, KILL_RATE, lambda _: None)
    assert scene.load.problems == {}
    assert scene.lost == []
    assert scene.passed, [event.text for event in scene.events]
    assert scene.retries > 0, "the balancer cannot have known at once: some request must have met the dead node"
    await asyncio.to_thread(wait_until_whole, stack)


async def test_the_status_command_tells_a_dead_node_and_that_its_figures_are_old(stack: Stack) -> None:
    stack.process("node-3").kill()
    try:
        seen = ""
        async with asyncio.timeout(SETTLE_WAIT_S):
            while not re.search(r"^node-3 +\w+ +dead .*ago .*\(64\)", seen, re.M):
                shown = await asyncio.to_thread(status_command, stack)
                seen = shown.stdout
        assert shown.returncode == 1
        assert "2 of 3 nodes alive" in seen
        assert "64 with a replica missing" in seen
    finally:
        stack.start_node("node-3")
        await asyncio.to_thread(wait_until_whole, stack)


async def test_a_rolling_restart_under_load_fails_no_request(stack: Stack) -> None:
    """As seen by clients that send no Idempotency-Key: draining must do the work, not repetition."""
    async with under_load(stack, ROLLING_RATE) as load:
        for name in stack.node_names:
            before = stack.process(name).pid
            stack.process(name).terminate()
            await asyncio.to_thread(wait_until, lambda name=name: stack.process(name).pid is None)
            await asyncio.to_thread(stack.start_node, name)
            await asyncio.to_thread(wait_until_whole, stack)
            assert stack.process(name).pid != before
    assert load.problems == {}
    await nothing_is_missing(load)


def test_stopping_leaves_no_process_and_no_open_port(tmp_path: Path) -> None:
    options = Options(port=free_range(), nodes=3, redis=redis_installed(), given=GIVEN)
    stack = Stack(options, tmp_path / "run", tmp_path / "data")
    stack.start(print)
    pids = [stack.process(name).pid for name in stack.names]
    assert all(pids)
    again = Stack.running(tmp_path / "run", tmp_path / "data")
    assert again is not None
    assert again.stop() == [], "something had to be killed"
    assert [stack.process(name).pid for name in stack.names] == [None] * len(pids)
    assert Stack.running(tmp_path / "run", tmp_path / "data") is None
    for port in range(options.port, options.port + SPAN):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} is still open"


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    port = free_range()
    with socket.create_server(("127.0.0.1", port + 2)):
        stack = Stack(Options(port=port, nodes=3, given=GIVEN), tmp_path / "run", tmp_path / "data")
        with pytest.raises(
            StackError, match=f"listens on port {port + 2}; choose other ports: make up PORT={port + 100}"
        ):
            stack.start(print)
    assert all(stack.process(name).pid is None for name in stack.names)


def test_a_node_that_cannot_start_is_named_with_its_log_and_the_rest_is_stopped(tmp_path: Path) -> None:
    options = Options(port=free_range(), nodes=3, given={**GIVEN, "DAKERA_LEASE_TTL_MS": "never"})
    stack = Stack(options, tmp_path / "run", tmp_path / "data")
    with pytest.raises(StackError, match=r"node-1 ended while starting(?s:.)*DAKERA_LEASE_TTL_MS"):
        stack.start(print)
    assert all(stack.process(name).pid is None for name in stack.names)


@pytest.mark.parametrize("kind", [BucketKind.MINIO, BucketKind.MOTO])
def test_the_stack_runs_on_an_s3_server(tmp_path: Path, kind: BucketKind) -> None:
    if balancer.find_program("minio" if kind is BucketKind.MINIO else "moto_server") is None:
        pytest.skip(f"{kind} is not installed")
    options = Options(port=free_range(), nodes=3, bucket=kind, given=GIVEN)
    stack = Stack(options, tmp_path / "run", tmp_path / "data")
    stack.start(print)
    try:
        seen = stack.status("node-1").json()
        assert seen["leadership"]["bucket_proved"] is True
        assert seen["healthy"] is True
    finally:
        assert stack.stop() == []
