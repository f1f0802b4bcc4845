"""A cluster of real nodes on loopback: own disks, one directory as the bucket, fast gossip."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.support.node_process import NodeProcess
from tests.support.ports import free_port

SETTLE_TIMEOUT_S = 90.0
POLL_S = 0.2
TIMEOUT_S = 15.0


class ClusterProcess:
    """``count`` nodes, numbered from 0. Settings are environment variables on top of what a cluster needs."""

    def __init__(self, directory: Path, count: int = 3, env: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.nodes: list[NodeProcess] = []
        self._gossip = [free_port() for _ in range(count)]
        self._env = env or {}
        for _ in range(count):
            self._add()

    def _add(self) -> NodeProcess:
        number = len(self.nodes)
        if number == len(self._gossip):
            self._gossip.append(free_port())
        seeds = [port for other, port in enumerate(self._gossip) if other != number]
        node = NodeProcess(
            self.directory / f"node-{number}.log",
            {
                "DAKERA_STORAGE": "filesystem",
                "DAKERA_STORAGE_PATH": str(self.directory / f"disk-{number}"),
                "DAKERA_BUCKET_PATH": str(self.directory / "bucket"),
                "DAKERA_CLUSTER_MODE": "true",
                "DAKERA_NODE_ID": f"node-{number}",
                "DAKERA_CLUSTER_SEEDS": ",".join(f"127.0.0.1:{port}" for port in seeds),
                "DAKERA_GOSSIP_BIND": f"127.0.0.1:{self._gossip[number]}",
                "DAKERA_CLUSTER_SECRET": "a secret of the test",
                "DAKERA_REBALANCE_DELAY_SECS": "5",
                "DAKERA_SEGMENT_INTERVAL_SECS": "1",
                "DAKERA_REPAIR_INTERVAL_SECS": "2",
                "DAKERA_DRAIN_SECS": "0",
                **self._env,
            },
        )
        self.nodes.append(node)
        return node

    def start(self) -> ClusterProcess:
        """Start all nodes at once and wait until every one is ready."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(NodeProcess.start, self.nodes))
        return self

    def join(self) -> NodeProcess:
        """Start one more node."""
        return self._add().start()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def lose_disk(self, number: int) -> None:
        """Delete what a stopped node had on its disk."""
        shutil.rmtree(self.directory / f"disk-{number}")

    def call(
        self, number: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """(status, decoded answer) of one request to one node."""
        node = self.nodes[number]
        request = urllib.request.Request(
            node.url + path,
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Authorization": f"Bearer {node.key}", "Content-Type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def store(self, number: int, agent: str, content: str, **more: Any) -> str:
        """Store a memory through a node; its id."""
        status, answer = self.call(number, "POST", "/v1/memory/store", {"agent_id": agent, "content": content, **more})
        assert status == 200, answer
        stored: str = answer["id"]
        return stored

    def status(self, number: int = 0) -> dict[str, Any]:
        code, answer = self.call(number, "GET", "/admin/cluster/status")
        assert code == 200, answer
        found: dict[str, Any] = answer
        return found

    def digests(self, number: int) -> dict[str, dict[str, Any]]:
        """shard -> {root, documents, complete} of a node's own copies."""
        code, answer = self.call(number, "GET", "/admin/cluster/digests")
        assert code == 200, answer
        found: dict[str, dict[str, Any]] = answer["shards"]
        return found

    def wait(self, what: str, condition: Any, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Until ``condition()`` is true; an error while asking counts as not yet."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
            except (OSError, AssertionError, KeyError):
                pass
            time.sleep(POLL_S)
        logs = "\n".join(f"--- node {i}\n{node.log()[-2000:]}" for i, node in enumerate(self.nodes))
        raise AssertionError(f"{what}: not within {timeout_s} s\n{logs}")

    def wait_equal(self, numbers: list[int]) -> None:
        """Until every shard's copies on these nodes are complete and byte-identical."""

        def equal() -> bool:
            roots: dict[str, set[str]] = {}
            for number in numbers:
                for shard, copy in self.digests(number).items():
                    if not copy["complete"]:
                        return False
                    roots.setdefault(shard, set()).add(copy["root"])
            return all(len(found) == 1 for found in roots.values())

        self.wait("replicas agree", equal)
