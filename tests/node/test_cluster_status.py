"""`dakera cluster status` against servers that answer as nodes do, well or badly: what is shown, and the exit status."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console

from node.__main__ import main
from node.cluster_status import Picture, default_key, default_url, render

STATUS: dict[str, Any] = {
    "cluster_id": "c1",
    "state": "healthy",
    "healthy": True,
    "node_count": 2,
    "alive_nodes": 2,
    "total_vectors": 1234,
    "namespace_count": 3,
    "version": "9.9.9",
    "timestamp": 1_800_000_000,
    "redis_healthy": False,
    "leader": "node-2",
    "answered_by": "node-1",
    "map": {"epoch": 4, "version": 7},
    "moving_shards": 0,
    "under_replicated_shards": 0,
    "leadership": {"leader": "node-2", "epoch": 4, "age_ms": 61_000.0, "bucket_proved": True, "bucket_problem": None},
}
KEY = "an-admin-key"


def node(name: str, **changes: Any) -> dict[str, Any]:
    row = {
        "node_id": name,
        "address": f"http://{name}:3000",
        "role": "leader" if name == "node-2" else "follower",
        "status": "active",
        "version": "9.9.9",
        "uptime_seconds": 7_500,
        "vector_count": 1_234,
        "memory_bytes": 300 * 1024**2,
        "cpu_percent": 12.4,
        "last_heartbeat": STATUS["timestamp"],
        "belief_age_ms": 3_000,
        "shards": 2,
        "map_version": 7,
    }
    return row | changes


def shard(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "shard_id": str(number),
        "primary_node": "node-1",
        "replica_nodes": ["node-2"],
        "state": "active",
        "version": 1,
    }
    return row | changes


def text(status: dict[str, Any], nodes: list[dict[str, Any]], shards: list[dict[str, Any]], width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(render(Picture(status, nodes, shards), "http://x", width))
    return out.getvalue()


@pytest.fixture
def server() -> Iterator[dict[str, Any]]:
    """Answers that a test may change: path -> (status, body). Asks for KEY."""
    answers: dict[str, Any] = {
        "/admin/cluster/status": (200, STATUS),
        "/admin/cluster/nodes": (200, {"nodes": [node("node-1"), node("node-2")], "total": 2}),
        "/admin/cluster/shards": (200, {"shards": [shard(0), shard(1)], "total": 2}),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("Authorization") == f"Bearer {KEY}"
            status, body = answers.get(self.path, (404, {})) if allowed else (401, {})
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Keeps the test's output clean."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    answers["url"] = f"http://127.0.0.1:{http.server_address[1]}"
    yield answers
    http.shutdown()
    http.server_close()
    thread.join()


def run(server: dict[str, Any], *more: str) -> int:
    return main(["cluster", "status", "--url", server["url"], "--key", KEY, *more])


def test_a_healthy_cluster_is_shown_whole_and_exits_0(
    server: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(server) == 0
    out = capsys.readouterr().out
    assert "healthy  cluster c1, 2 of 2 nodes alive, 1,234 memories and vectors in 3 namespaces" in out
    assert "leader node-2, epoch 4, believed for 1 min 1 s; map 4.7; Redis not reached" in out
    assert "as node-1 believes it at" in out
    assert re.search(
        r"^node-2 +leader +alive +3 s +now +http://node-2:3000 +9\.9\.9 +2 h 5 min +2 +1,234 +300 MiB", out, re.M
    )
    assert "2 shards: 2 sound, 0 moving, 0 with a replica missing" in out


def test_a_degraded_cluster_exits_1(server: dict[str, Any]) -> None:
    server["/admin/cluster/status"] = (200, STATUS | {"state": "degraded", "healthy": False})
    assert run(server) == 1


def test_a_server_of_another_kind_exits_3(server: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    server["/admin/cluster/status"] = (200, "<html>")
    assert run(server) == 3
    assert "not with JSON" in capsys.readouterr().err
    server["/admin/cluster/status"] = (200, {"status": "ok"})
    assert run(server) == 3


def test_a_refused_key_exits_3_and_says_how_to_give_one(
    server: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cluster", "status", "--url", server["url"], "--key", "wrong"]) == 3
    assert "answers 401: give a key with --key or DAKERA_API_KEY" in capsys.readouterr().err


def test_nobody_there_exits_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "status", "--url", "http://127.0.0.1:1"]) == 3
    assert "does not answer" in capsys.readouterr().err


def test_nodes_as_a_bare_list_are_understood(server: dict[str, Any]) -> None:
    server["/admin/cluster/nodes"] = (200, [node("node-1"), node("node-2")])
    assert run(server) == 0


def test_what_a_dead_member_said_last_is_marked_as_old() -> None:
    dead = node("node-2", status="dead", last_heartbeat=STATUS["timestamp"] - 9, belief_age_ms=5_000)
    shown = text(STATUS, [node("node-1"), dead], [shard(0)])
    assert re.search(r"^node-2 +leader +dead +5 s +9 s ago .* - +\(2\) +\(1,234\) +\(300 MiB\)", shown, re.M)
    assert re.search(r"^0 +active +node-1 node-2 ", shown, re.M), "a shard with a dead replica is listed"


def test_a_moving_shard_is_listed_with_where_it_comes_from_and_goes() -> None:
    moving = shard(5, state="joining", joining_nodes=["node-3"], leaving_nodes=["node-2"])
    shown = text(STATUS | {"moving_shards": 1}, [node("node-1"), node("node-2")], [shard(0), moving])
    assert "2 shards: 1 sound, 1 moving" in shown
    assert re.search(r"^5 +joining +node-1 node-2 +node-3 +node-2", shown, re.M)


def test_of_many_shards_only_some_are_listed_and_the_rest_counted() -> None:
    shown = text(STATUS, [node("node-1")], [shard(number, state="moving") for number in range(64)])
    assert len(re.findall(r"^\d+ +moving ", shown, re.M)) == 20
    assert "and 44 more" in shown


def test_a_bucket_that_was_refused_is_said() -> None:
    refused = STATUS["leadership"] | {"bucket_proved": False, "bucket_problem": "ignores If-Match"}
    assert "the bucket is refused: ignores If-Match" in text(STATUS | {"leadership": refused}, [], [])


def test_no_leader_is_said_and_a_node_alone_has_no_leadership() -> None:
    assert "no leader known" in text(STATUS | {"leader": None}, [], [])
    alone = {key: value for key, value in STATUS.items() if key != "leadership"}
    assert "leader node-2;" in text(alone, [node("node-2")], [])


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_narrow_terminal_loses_columns_and_cuts_no_cell(width: int) -> None:
    shown = text(STATUS, [node("node-1"), node("node-2")], [], width)
    assert "…" not in shown
    assert "node-1" in shown
    assert ("http://node-1:3000" in shown) == (width >= 80)


def test_the_address_and_the_key_come_from_the_environment() -> None:
    assert default_url({}) == "http://127.0.0.1:3300"
    assert default_url({"DAKERA_PORT": "3000"}) == "http://127.0.0.1:3000"
    assert default_url({"DAKERA_PORT": "3000", "DAKERA_URL": "http://lb:3100"}) == "http://lb:3100"
    assert default_key({}) is None
    assert default_key({"DAKERA_ROOT_API_KEY": "root"}) == "root"
    assert default_key({"DAKERA_ROOT_API_KEY": "root", "DAKERA_API_KEY": "mine"}) == "mine"
