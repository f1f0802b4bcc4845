"""A cluster of real processes keeps its promises: one leader, no lost write, no resurrection, equal replicas."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster_process import ClusterProcess

pytestmark = pytest.mark.slow

WRITE_TIMEOUT_S = 6.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterProcess]:
    made = ClusterProcess(tmp_path)
    yield made
    made.stop()


def test_three_nodes_elect_one_leader_and_every_node_recalls_what_any_stored(cluster: ClusterProcess) -> None:
    cluster.start()
    cluster.wait(
        "all nodes name the same leader",
        lambda: (
            len({cluster.status(number)["leader"] for number in range(3)} - {None}) == 1
            and cluster.status(0)["leader"] == cluster.status(1)["leader"] == cluster.status(2)["leader"]
        ),
    )
    for number in range(9):
        cluster.store(number % 3, "ann", f"fact number {number} about herons")
    for number in range(3):
        code, answer = cluster.call(
            number, "POST", "/v1/memory/recall", {"agent_id": "ann", "query": "herons", "top_k": 20}
        )
        assert code == 200
        assert len(answer["memories"]) == 9
    cluster.wait_equal([0, 1, 2])
    code, answer = cluster.call(1, "GET", "/v1/agents/ann/memories", headers={"X-Read-Consistency": "strong"})
    assert code == 200
    assert len(answer) == 9


def test_writes_go_on_without_a_node_and_it_has_them_when_it_is_back(cluster: ClusterProcess) -> None:
    cluster.start()
    kept = cluster.store(0, "ann", "written by all three")
    gone = cluster.store(0, "ann", "to be forgotten")
    cluster.nodes[2].kill()
    for number in range(20):
        cluster.store(number % 2, f"agent-{number}", f"written by two, {number}")
    code, _ = cluster.call(0, "POST", "/v1/memory/forget", {"agent_id": "ann", "memory_ids": [gone]})
    assert code == 200
    cluster.nodes[2].start()
    cluster.wait_equal([0, 1, 2])
    code, answer = cluster.call(2, "GET", "/v1/agents/ann/memories")
    assert [memory["id"] for memory in answer] == [kept]


def test_a_new_leader_takes_over_when_the_leader_dies(cluster: ClusterProcess) -> None:
    cluster.start()
    cluster.wait("a leader", lambda: cluster.status(0)["leader"] is not None)
    before = cluster.status(0)
    dead = int(before["leader"].removeprefix("node-"))
    cluster.nodes[dead].kill()
    alive = (dead + 1) % 3
    cluster.wait(
        "a new leader",
        lambda: (
            cluster.status(alive)["leader"] not in (None, before["leader"])
            and cluster.status(alive)["map"]["epoch"] > before["map"]["epoch"]
        ),
    )


def test_a_minority_refuses_quorum_writes_and_still_reads(cluster: ClusterProcess) -> None:
    cluster.start()
    cluster.store(0, "ann", "written by all three")
    for number in (1, 2):
        cluster.nodes[number].kill()
    code, answer = cluster.call(0, "POST", "/v1/memory/store", {"agent_id": "ann", "content": "refused"})
    assert (code, answer["code"]) == (503, "QUORUM_UNAVAILABLE")
    code, answer = cluster.call(0, "POST", "/v1/memory/recall", {"agent_id": "ann", "query": "written"})
    assert code == 200, answer
    assert "written by all three" in {memory["content"] for memory in answer["memories"]}
    code, answer = cluster.call(0, "GET", "/v1/agents/ann/memories", headers={"X-Read-Consistency": "strong"})
    assert code == 200, "a list is an eventual read"
    code, answer = cluster.call(
        0, "POST", "/v1/memory/recall", {"agent_id": "ann", "query": "x"}, {"X-Read-Consistency": "strong"}
    )
    assert (code, answer["code"]) == (503, "QUORUM_UNAVAILABLE")
    code, _ = cluster.call(
        0, "POST", "/v1/memory/store", {"agent_id": "ann", "content": "alone"}, {"X-Write-Level": "one"}
    )
    assert code == 200
    for number in (1, 2):
        cluster.nodes[number].start()
    cluster.wait_equal([0, 1, 2])


def test_killing_all_nodes_at_once_loses_nothing(cluster: ClusterProcess) -> None:
    cluster.start()
    ids = [cluster.store(number % 3, "ann", f"fact {number}") for number in range(30)]
    for node in cluster.nodes:
        os.kill(node.pid, signal.SIGKILL)
    for node in cluster.nodes:
        node.kill()
    cluster.start()
    _, answer = cluster.call(0, "GET", "/v1/agents/ann/memories?limit=100")
    assert {memory["id"] for memory in answer} == set(ids)


def test_a_cluster_without_any_disk_comes_back_from_the_bucket(cluster: ClusterProcess) -> None:
    cluster.start()
    ids = {f"agent-{number}": cluster.store(number % 3, f"agent-{number}", f"fact {number}") for number in range(20)}
    filled = sum(copy["documents"] > 0 for copy in cluster.digests(0).values())
    bucket = cluster.directory / "bucket"
    cluster.wait(
        "segments of all shards with rows", lambda: len({path.parent for path in bucket.rglob("*.seg*")}) == filled
    )
    for node in cluster.nodes:
        node.stop()
    for number in range(3):
        cluster.lose_disk(number)
    cluster.start()
    cluster.wait_equal([0, 1, 2])
    for agent, memory_id in ids.items():
        code, answer = cluster.call(1, "GET", f"/v1/agents/{agent}/memories")
        assert code == 200
        assert [memory["id"] for memory in answer] == [memory_id]


def test_a_fourth_node_takes_its_share_and_a_drained_one_gives_its_own_away(cluster: ClusterProcess) -> None:
    cluster.start()
    ids = {f"agent-{number}": cluster.store(number % 3, f"agent-{number}", f"fact {number}") for number in range(40)}
    cluster.join()

    def shares() -> dict[str, int]:
        _, answer = cluster.call(0, "GET", "/admin/cluster/nodes")
        return {row["id"]: row["shards"] for row in answer["nodes"]}

    cluster.wait("64 x 3 replicas on four nodes, 48 each", lambda: set(shares().values()) == {48})
    cluster.wait_equal([0, 1, 2, 3])
    for number in range(4):
        for agent, memory_id in ids.items():
            _, answer = cluster.call(number, "GET", f"/v1/agents/{agent}/memories")
            assert [memory["id"] for memory in answer] == [memory_id]
    code, _ = cluster.call(1, "POST", "/admin/cluster/nodes/node-0", {"action": "drain"})
    assert code == 200
    cluster.wait("the drained node holds nothing", lambda: shares()["node-0"] == 0)
    cluster.wait_equal([1, 2, 3])
    for agent, memory_id in ids.items():
        _, answer = cluster.call(0, "GET", f"/v1/agents/{agent}/memories")
        assert [memory["id"] for memory in answer] == [memory_id]


def test_a_node_of_another_cluster_or_without_the_secret_is_not_let_in(cluster: ClusterProcess, tmp_path: Path) -> None:
    cluster.start()
    stranger = ClusterProcess(tmp_path / "stranger", 1, {"DAKERA_CLUSTER_SECRET": "another secret"})
    (tmp_path / "stranger").mkdir()
    stranger.nodes[0]._env["DAKERA_CLUSTER_SEEDS"] = cluster.nodes[0]._env["DAKERA_GOSSIP_BIND"]
    stranger.nodes[0]._env["DAKERA_NODE_ID"] = "stranger"
    stranger.start()
    try:
        assert cluster.status(0)["node_count"] == 3
        assert stranger.status(0)["node_count"] == 1
    finally:
        stranger.stop()


def test_a_node_that_was_frozen_gets_what_it_missed_and_shows_it(cluster: ClusterProcess) -> None:
    cluster.start()
    agents = [f"agent-{number}" for number in range(6)]
    for agent in agents:
        cluster.store(0, agent, "before the freeze")
        assert cluster.call(2, "GET", f"/v1/agents/{agent}/memories")[0] == 200
    doomed = {agent: cluster.store(0, agent, "to be forgotten") for agent in agents}
    os.kill(cluster.nodes[2].pid, signal.SIGSTOP)
    for number in range(30):
        cluster.store(number % 2, agents[number % 6], f"written while one is frozen, {number}")
    for agent, memory_id in doomed.items():
        assert cluster.call(0, "POST", "/v1/memory/forget", {"agent_id": agent, "memory_ids": [memory_id]})[0] == 200
    cluster.wait("the others notice", lambda: cluster.status(0)["alive_nodes"] == 2)
    for number in range(30, 60):
        cluster.store(number % 2, agents[number % 6], f"written without it, {number}")
    time.sleep(WRITE_TIMEOUT_S)  # what the frozen node was sent must have been given up
    os.kill(cluster.nodes[2].pid, signal.SIGCONT)
    cluster.wait("it is back", lambda: cluster.status(0)["alive_nodes"] == 3)
    cluster.wait_equal([0, 1, 2])
    for agent in agents:
        shown = [
            {memory["content"] for memory in cluster.call(number, "GET", f"/v1/agents/{agent}/memories?limit=100")[1]}
            for number in range(3)
        ]
        assert shown[0] == shown[1] == shown[2]
        assert len(shown[0]) == 11


def test_a_node_that_lost_its_disk_comes_back_under_its_name_and_gets_everything(cluster: ClusterProcess) -> None:
    cluster.start()
    for _ in range(2):
        cluster.nodes[2].kill()
        cluster.nodes[2].start()
    for number in range(10):
        cluster.store(number % 3, f"agent-{number}", f"fact {number}")
    cluster.nodes[2].kill()
    cluster.lose_disk(2)
    cluster.nodes[2].start()
    cluster.wait_equal([0, 1, 2])
    assert cluster.nodes[2].running
    assert cluster.status(0)["alive_nodes"] == 3
