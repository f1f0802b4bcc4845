"""Nodes that share a Redis share limits and events; when it dies in the middle every request still passes."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tests.support import redis_server
from tests.support.cluster_process import ClusterProcess
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.slow

RPS, BURST = 10, 20


@pytest.fixture
def server() -> Iterator[RedisServer]:
    if not redis_server.installed():
        pytest.skip("redis-server is not installed")
    with RedisServer() as running:
        yield running


def started(directory: Path, server: RedisServer, **env: str) -> ClusterProcess:
    return ClusterProcess(directory, 2, {"DAKERA_REDIS_URL": server.url, **env}).start()


class Listener:
    """Collects the events of one stream of one node, in a thread."""

    def __init__(self, cluster: ClusterProcess, number: int, path: str = "/v1/events/stream") -> None:
        node = cluster.nodes[number]
        self.events: list[dict[str, Any]] = []
        self._answer = urllib.request.urlopen(f"{node.url}{path}?api_key={node.key}", timeout=60)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._answer:
            if line.startswith(b"data: "):
                self.events.append(json.loads(line[6:]))

    @property
    def contents(self) -> list[str]:
        return [event["content"] for event in self.events if event.get("event_type") == "stored"]


def test_events_of_every_node_are_heard_on_every_node_and_locally_without_redis(
    tmp_path: Path, server: RedisServer
) -> None:
    cluster = started(tmp_path, server)
    try:
        cluster.wait("Redis is reached", lambda: all(cluster.status(n)["redis_healthy"] for n in range(2)))
        listeners = [Listener(cluster, number) for number in range(2)]
        cluster.wait("both are connected", lambda: all(each.events for each in listeners))
        cluster.store(0, "ann", "from node 0")
        cluster.store(1, "ann", "from node 1")
        for each in listeners:
            cluster.wait(
                "both stores are heard", lambda each=each: sorted(each.contents) == ["from node 0", "from node 1"]
            )

        server.stop()
        cluster.wait("its loss is seen", lambda: not any(cluster.status(n)["redis_healthy"] for n in range(2)))
        for number in range(2):
            code, ready = cluster.call(number, "GET", "/health/ready")
            assert code == HTTPStatus.OK and "Redis is not reached" in ready["checks"]["redis"]["message"]
            cluster.store(number, "ann", f"alone {number}")
            own = listeners[number]
            cluster.wait(
                "own events are heard", lambda own=own, number=number: own.contents[-1:] == [f"alone {number}"]
            )
            code, answer = cluster.call(1 - number, "POST", "/v1/memory/recall", {"agent_id": "ann", "query": "alone"})
            assert code == HTTPStatus.OK and answer["memories"]

        server.start()
        cluster.wait("its return is seen", lambda: all(cluster.status(n)["redis_healthy"] for n in range(2)))
        counter = iter(range(1_000))

        def heard_again() -> bool:
            text = f"again {next(counter)}"
            cluster.store(0, "ann", text)
            time.sleep(0.1)
            return text in listeners[1].contents

        cluster.wait("events pass again", heard_again)
        lag = [event for event in listeners[1].events if event.get("type") == "stream_lagged"]
        assert lag and lag[0]["dropped"] >= 1, "the listener is told of what it missed"
    finally:
        cluster.stop()


def test_two_nodes_give_one_callers_tokens_and_each_its_own_without_redis(tmp_path: Path, server: RedisServer) -> None:
    cluster = started(tmp_path, server, RATE_LIMIT_RPS=str(RPS), RATE_LIMIT_BURST=str(BURST))
    try:
        code, made = cluster.call(0, "POST", "/admin/keys", {"name": "k", "scope": "read"})
        assert code == HTTPStatus.OK
        headers = {"Authorization": f"Bearer {made['key']}"}

        def knows(number: int) -> bool:
            return cluster.call(number, "GET", "/v1/agents", headers=headers)[0] == HTTPStatus.OK

        cluster.wait("both know the key", lambda: knows(0) and knows(1))
        time.sleep((BURST + RPS) / RPS)

        def storm(number: int, seconds: float) -> list[int]:
            ends, codes = time.monotonic() + seconds, []
            while time.monotonic() < ends:
                codes.append(cluster.call(number, "GET", "/v1/agents", headers=headers)[0])
            return codes

        def passed(seconds: float) -> int:
            with ThreadPoolExecutor(2) as pool:
                codes = [code for found in pool.map(storm, range(2), [seconds] * 2) for code in found]
            assert set(codes) <= {HTTPStatus.OK, HTTPStatus.TOO_MANY_REQUESTS}
            return codes.count(HTTPStatus.OK)

        seconds = 3.0
        fair = BURST + RPS * seconds
        shared = passed(seconds)
        assert 0.7 * fair <= shared <= fair + BURST / 2

        server.stop()
        time.sleep((BURST + RPS) / RPS)
        alone = passed(seconds)
        assert alone >= 1.5 * fair, "each node limits by itself, and no request fails for want of Redis"
    finally:
        cluster.stop()
