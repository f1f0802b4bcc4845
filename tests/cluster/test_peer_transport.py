"""Replicas and membership over peer connections: a real host, a real row store, real gossip."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dakera_cluster.cluster.gossip import GossipNode
from dakera_cluster.cluster.peer_errors import PeerTimeoutError, PeerUnavailableError
from dakera_cluster.cluster.peer_services import Priority
from dakera_cluster.cluster.peers import (
    PUSH_PULL,
    SHARD,
    PeerTransport,
    push_pull_call,
    push_pull_service,
    shard_service,
)
from dakera_cluster.model.errors import InvalidRequestError
from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.model.rows import Kind, Row, put_document
from dakera_cluster.protocols.members import Address, NodeState
from dakera_cluster.protocols.swim_config import SwimConfig
from dakera_cluster.shard import keys, ops
from dakera_cluster.shard.host import Host, HostSettings
from dakera_cluster.shard.view import ViewSettings
from dakera_cluster.storage.rows import RowStore
from tests.support.peer_world import PATIENCE_S, A, B, World, until


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with asyncio.timeout(4 * PATIENCE_S):
        yield world
        await world.close()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    store = RowStore.open(tmp_path / "rows", keys.FAMILIES)
    host = Host(store, lambda _: ViewSettings(), HostSettings(), lambda: int(time.time() * 1000))
    yield host
    await host.close()
    store.close()


class NoHost:
    """A node that holds nothing and must not be asked."""

    async def handle(self, request: ops.Request) -> ops.Answer:
        raise AssertionError("asked the wrong node")


class SlowHost:
    async def handle(self, request: ops.Request) -> ops.Answer:
        await asyncio.sleep(PATIENCE_S)
        raise AssertionError("nobody waited that long")


def row(number: int) -> Row:
    return Row(
        "ns", Kind.DOCUMENT, f"id{number}", put_document(Stamp((1_000 + number) << 16, 1), {"text": f"row {number}"})
    )


READ = ops.Read(0, 0, "ns", Kind.DOCUMENT, ["id1", "id2", "absent"])


async def test_a_replica_answers_a_peer_as_it_answers_its_own_node(world: World, host: Host) -> None:
    server = await world.server()
    server.register(SHARD, shard_service(host))
    far = PeerTransport(A, NoHost(), world.client())
    near = PeerTransport(B, host, world.client(B))
    rows = [row(1), row(2)]
    assert await far.call(B, ops.Apply(0, 0, rows)) == ops.Applied(2)
    assert await far.call(B, READ) == await near.call(B, READ) == ops.Bodies([rows[0].body, rows[1].body, None])


async def test_bytes_that_are_no_request_are_refused(world: World, host: Host) -> None:
    server = await world.server()
    server.register(SHARD, shard_service(host))
    with pytest.raises(InvalidRequestError):
        await world.client().call(B, SHARD, b"\xc1")


async def test_deadlines_hold_near_and_far(world: World) -> None:
    server = await world.server()
    server.register(SHARD, shard_service(SlowHost()))
    for transport in (PeerTransport(A, NoHost(), world.client()), PeerTransport(B, SlowHost(), world.client(B))):
        with pytest.raises(PeerTimeoutError) as caught:
            await transport.call(B, READ, timeout_ms=40.5)
        assert caught.value.ambiguous


async def test_a_node_without_an_address_is_unavailable(world: World) -> None:
    with pytest.raises(PeerUnavailableError):
        await PeerTransport(A, NoHost(), world.client()).call(NodeId("unknown"), READ)


async def test_membership_spreads_over_peer_connections_and_its_news_reaches_them(world: World) -> None:
    """Two gossip endpoints whose streams are peer connections on the same port number, one UDP and one TCP."""
    config = SwimConfig(probe_interval_ms=60.0, probe_timeout_ms=30.0, gossip_interval_ms=20.0, redial_min_ms=30.0)
    nodes: dict[NodeId, GossipNode] = {}
    clients = {}
    for name in (A, B):
        client = clients[name] = world.client(name)
        server = await world.server(name)
        node = nodes[name] = GossipNode(
            config,
            cluster_id="blue",
            node=name,
            boot=BootId(1),
            bind=world.addresses[name],
            advertise=None,
            meta={"zone": "z"},
            seeds=[] if name == A else [Address(*world.addresses[A])],
            push_pull=push_pull_call(client),
            stream_probe=client.probe,
        )
        server.register(PUSH_PULL, push_pull_service(node.answer_push_pull), priority=Priority.CONTROL)
        node.subscribe(client.on_member)
        await node.start()
    await until(lambda: all(len(node.members()) == 2 for node in nodes.values()))
    assert clients[B].stats().methods[PUSH_PULL].calls >= 1
    await clients[A].call(B, "echo", b"")
    assert clients[A].stats().connections == 1
    await nodes[B].leave()
    await until(lambda: nodes[A].members()[1].state is NodeState.LEFT)
    await until(lambda: clients[A].stats().connections == 0)
    await nodes[A].close()
