"""A live node for the tests of the HTTP surface, one for the session, and one with small limits."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.node_process import NodeProcess

SMALL_BODY_BYTES = 262_144


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    process = NodeProcess(
        tmp_path_factory.mktemp("node") / "node.log", {"DAKERA_MAX_BODY_SIZE": str(SMALL_BODY_BYTES)}
    ).start()
    yield process
    process.stop()


@pytest.fixture(scope="session")
def http(node: NodeProcess) -> Iterator[httpx.Client]:
    """Root's client; it is no official client."""
    headers = {"Authorization": f"Bearer {node.key}", "User-Agent": "test"}
    with httpx.Client(base_url=node.url, headers=headers, timeout=30) as client:
        yield client
