"""The measures tell how long writes take and what they wait for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from dakera_cluster.inference.models import resolve
from dakera_cluster.inference.service import UnavailableEmbedder
from node.measures import WriteMeasures
from tests.support.replicas import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield await made.born("a", "b", "c")
    await made.close()


async def test_a_write_is_counted_whole_and_by_replica(world: World) -> None:
    node = world["a"]
    registry = CollectorRegistry()
    registry.register(WriteMeasures(node.replicator, node.store, UnavailableEmbedder(resolve("minilm"), "")))

    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(name, labels) or 0.0

    syncs = value("dakera_disk_sync_seconds_count")
    for number in range(5):
        await node.put(f"m{number}")
    await node.replicator.close()
    for part, count in (("whole", 5), ("own_replica", 5), ("peer", 10)):
        assert value("dakera_write_seconds_count", part=part) == count
    assert value("dakera_write_seconds_sum", part="whole") > 0
    assert value("dakera_disk_sync_seconds_count") > syncs
    assert value("dakera_writes_total", result="failed") == 0
