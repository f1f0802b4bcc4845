"""A cluster under measurement: the nodes of a local stack (`ops.local`) without its balancer, as processes of this one.

It is a `Server` like any other, whose figures are the sums over its nodes; each client keeps to one node, in turn. A node may
join and be drained while it runs. Used by the measurements of replication and of joining.
"""

from __future__ import annotations

import http.client
import os
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ops.bench.servers import Node, Server
from ops.local.layout import HOST
from ops.local.stack import Options, Stack, listens
from ops.local.web import get

FIRST_PORT, LAST_PORT = 21_000, 30_000
"""Below the kernel's own range: no outgoing connection takes one before its server does."""
PORTS_EACH = 100
SETTLE_TIMEOUT_S = 120.0
REQUEST_TIMEOUT_S = 30.0
_POLL_S = 0.2


class Member(Node):
    """One node of it."""

    def __init__(self, home: Path, log: Path, name: str, stack: Stack) -> None:
        super().__init__(home, log)
        self.name = name
        self.node = name
        self._environment = stack.node_environment(name)
        self.port = int(self._environment["DAKERA_PORT"])

    def environment(self) -> Mapping[str, str]:
        return self._environment


class Cluster(Server):
    """``count`` nodes, replication factor three."""

    def __init__(self, home: Path, logs: Path, count: int) -> None:
        super().__init__(home, logs / f"{count}-nodes.log")
        self.name, self.engine = f"{count} nodes", Node.engine
        self._logs = logs
        self._count = count
        self._base = _free_ports()
        self.members: list[Member] = []

    @property
    def ports(self) -> list[int]:
        return [member.port for member in self.members]

    def start(self) -> float:
        began = time.perf_counter()
        self.members = [self._member(number, self._count) for number in range(1, self._count + 1)]
        for member in self.members:
            member.spawn()
        for member in self.members:
            member.wait(began)
        self.settle()
        return time.perf_counter() - began

    def join(self) -> Member:
        """Start one more node; it serves when this returns, and the others have begun to give it shards, or will."""
        number = len(self.members) + 1
        joining = self._member(number, number)
        joining.start()
        self.members.append(joining)
        return joining

    def settle(self) -> None:
        """Wait until every node sees all of them alive, a leader, every shard whole, and none of them moving."""
        for member in self.members:
            self.until(f"{member.name} sees a healthy cluster", partial(self._is_settled, member.port))

    def _is_settled(self, port: int) -> bool:
        seen = self.ask("GET", "/admin/cluster/status", port=port)
        alive = seen["alive_nodes"] == len(self.members)
        return alive and seen["healthy"] and seen["leader"] is not None and seen["moving_shards"] == 0

    def until(self, what: str, condition: Callable[[], bool], timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Wait for a condition. Raises RuntimeError when it does not come in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: not within {timeout_s:.0f} s: {what}; see {self._logs}")
            time.sleep(_POLL_S)

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, port: int | None = None
    ) -> dict[str, Any]:
        """An admin route of a node, the first by default. Raises RuntimeError for anything but 200."""
        connection = http.client.HTTPConnection(HOST, port or self.members[0].port, timeout=REQUEST_TIMEOUT_S)
        try:
            payload = msgspec.json.encode(body) if body is not None else None
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{method} {path} answered {response.status}: {text[:300]!r}")
        answer: dict[str, Any] = msgspec.json.decode(text)
        return answer

    def is_balanced(self) -> bool:
        """Nothing moves, and the leader wants nothing to."""
        if self.ask("GET", "/admin/cluster/status")["moving_shards"]:
            return False
        planned = self.ask("POST", "/admin/cluster/shards/rebalance", {"dry_run": True})["planned_moves"]
        return not planned

    def holders(self) -> dict[int, tuple[str, ...]]:
        """shard -> the nodes that hold it for good, as the first node believes."""
        rows = self.ask("GET", "/admin/cluster/shards")["shards"]
        return {int(row["shard_id"]): (row["primary_node"], *row["replica_nodes"]) for row in rows}

    def stop(self) -> None:
        for member in self.members:
            member.terminate()
        for member in self.members:
            member.stop()

    def discard(self) -> None:
        self.stop()
        self.members = []
        shutil.rmtree(self.home, ignore_errors=True)

    def _pids(self) -> list[int]:
        return [pid for member in self.members for pid in member._pids()]

    def _member(self, number: int, count: int) -> Member:
        given = {"RATE_LIMIT_RPS": "0", "RUST_LOG": "warn", "DAKERA_DRAIN_SECS": "0"}
        kept = {name: os.environ[name] for name in ("DAKERA_MODEL_CACHE",) if name in os.environ}
        options = Options(port=self._base, nodes=count, given=given | kept)
        home = self.home.resolve()
        stack = Stack(options, run_dir=home / "run", data_dir=home / "data")
        name = f"node-{number}"
        return Member(home / name, self._logs / f"{self.name.replace(' ', '-')}-{name}.log", name, stack)


def metrics(server: Server) -> dict[str, float]:
    """The samples of a server's metrics, summed over its nodes: ``name{labels}`` -> value."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, float] = {}
    for port in server.ports:
        answer = get(f"http://{HOST}:{port}/metrics")
        if not answer.ok:
            raise RuntimeError(f"{server.name}: /metrics answered {answer.status}: {answer.text[:200]}")
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                key = f"{sample.name}{{{labels}}}" if labels else sample.name
                found[key] = found.get(key, 0.0) + sample.value
    return found


def _free_ports() -> int:
    """The first of a block of ports none of which is listened on."""
    for base in range(FIRST_PORT, LAST_PORT, PORTS_EACH):
        if not any(listens(base + offset) for offset in range(PORTS_EACH)):
            return base
    raise RuntimeError(f"no free ports between {FIRST_PORT} and {LAST_PORT}")
