"""What the measurements of clusters make of what they saw, and that a cluster under measurement comes up and goes down."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.bench.cluster import Cluster, metrics
from ops.bench.join import JoinPlan, JoinResults, Moved, Phase
from ops.bench.replication import store_parts

REQUESTS = "dakera_http_request_duration_seconds"
PATH = "{path=/v1/memory/store}"


def test_the_parts_of_a_store_are_means_of_what_was_added_between_two_looks() -> None:
    before = {f"{REQUESTS}_count{PATH}": 10.0, f"{REQUESTS}_sum{PATH}": 1.0}
    after = {
        f"{REQUESTS}_count{PATH}": 110.0,
        f"{REQUESTS}_sum{PATH}": 2.0,
        "dakera_embedding_seconds_sum": 0.3,
        "dakera_write_seconds_count{part=whole}": 100.0,
        "dakera_write_seconds_sum{part=whole}": 0.4,
        "dakera_write_seconds_count{part=own_replica}": 100.0,
        "dakera_write_seconds_sum{part=own_replica}": 0.35,
        "dakera_disk_sync_seconds_count": 50.0,
        "dakera_disk_sync_seconds_sum": 0.1,
    }
    parts = store_parts(before, after)
    assert parts == pytest.approx(
        {
            "request, as the node sees it": 10.0,
            "embedding": 3.0,
            "write until the quorum": 4.0,
            "  own replica": 3.5,
            "  one fsync": 2.0,
            "HTTP, JSON, waiting for the model and the event loop": 3.0,
            "fsyncs a store, all nodes": 0.5,
        }
    )


def phase(name: str, relative: float) -> Phase:
    return Phase(
        name=name, seconds=5, operations=9, rate=9, relative=relative, p50_ms=1, p99_ms=2, failed=0, cores=1, others=0
    )


def results(**more: object) -> JoinResults:
    good = {
        "phases": [phase("before", 1.0), phase("the fourth node starts", 0.5), phase("shards move to it", 0.7)],
        "moves": [Moved(event="joined", held=52, ideal=48.0, replicas_moved=52, took_s=9)],
        "found": {"three nodes": 0.9, "three nodes again": 0.9},
    }
    return JoinResults(plan=JoinPlan(), machine={}, **{**good, **more})  # type: ignore[arg-type]


def test_a_join_that_keeps_its_promises_breaks_none() -> None:
    assert results().broken() == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"problems": {"RuntimeError: 503": 2}}, "2 requests failed"),
        ({"phases": [phase("before", 1.0), phase("shards move from it", 0.69)]}, "throughput fell to 69%"),
        ({"moves": [Moved(event="joined", held=42, ideal=48.0, replicas_moved=42, took_s=9)]}, "42 shards"),
        ({"found": {"three nodes": 1.0, "three nodes again": 0.99}}, "not every memory"),
    ],
)
def test_each_promise_that_a_join_breaks_is_told(wrong: dict[str, object], told: str) -> None:
    (said,) = results(**wrong).broken()
    assert told in said


@pytest.mark.slow
def test_a_cluster_comes_up_takes_another_node_in_and_goes_down(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "cluster", tmp_path, 2)
    try:
        cluster.start()
        assert {node for held in cluster.holders().values() for node in held} == {"node-1", "node-2"}
        cluster.join()
        cluster.until(
            "the third node has its replicas", lambda: cluster.is_balanced() and len(cluster.holders()[0]) == 3
        )
        assert metrics(cluster)["dakera_disk_sync_seconds_count"] > 0
    finally:
        cluster.discard()
    assert cluster.cpu_s() == 0
