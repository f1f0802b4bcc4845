"""The UDP driver on loopback: real sockets, the real clock, timing thirty times faster than the default.

Streams are not under test here; they are carried by a hub that knows which endpoint listens where.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest

from dakera_cluster.cluster.gossip import GossipNode
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.members import Address, NodeState
from dakera_cluster.protocols.packets import ClusterState, Gossip, Packet
from dakera_cluster.protocols.swim_config import SwimConfig
from dakera_cluster.protocols.swim_events import Change, Conflict, MemberEvent, StateAdvanced

FAST = SwimConfig(
    probe_interval_ms=60.0,
    probe_timeout_ms=30.0,
    gossip_interval_ms=20.0,
    push_pull_interval_ms=2_000.0,
    redial_min_ms=30.0,
    redial_max_ms=150.0,
    leave_timeout_ms=1_000.0,
    stranger_interval_ms=50.0,
)
KEY_A, KEY_B = bytes(range(32)), bytes(range(100, 132))
DEADLINE_S = 15.0


class Hub:
    """Endpoints by address, and the TCP between them."""

    def __init__(self) -> None:
        self.listening: dict[Address, GossipNode] = {}
        self.heard: dict[str, list[object]] = {}

    async def push_pull(self, addr: Address, payload: bytes) -> bytes:
        await asyncio.sleep(0)
        node = self.listening.get(addr)
        if node is None:
            raise ConnectionRefusedError(addr)
        return node.answer_push_pull(payload)

    async def probe(self, addr: Address, node_id: NodeId) -> bool:
        await asyncio.sleep(0)
        node = self.listening.get(addr)
        return node is not None and node.members()[0].node == node_id

    async def start(
        self,
        name: str,
        *,
        seeds: list[Address] | None = None,
        boot: int = 1,
        port: int = 0,
        keys: tuple[bytes, ...] = (),
        cluster: str = "test",
        meta: dict[str, str | int] | None = None,
    ) -> GossipNode:
        node = GossipNode(
            FAST,
            cluster_id=cluster,
            node=NodeId(name),
            boot=BootId(boot),
            bind=Address("127.0.0.1", port),
            advertise=None,
            meta=meta or {"zone": "z1"},
            seeds=list(self.listening) if seeds is None else seeds,
            push_pull=self.push_pull,
            stream_probe=self.probe,
            keys=keys,
        )
        heard = self.heard.setdefault(name, [])
        node.subscribe(heard.append)
        await node.start()
        self.listening[node.addr] = node
        return node

    async def stop(self, node: GossipNode) -> None:
        """As a crash: no word to anybody."""
        self.listening.pop(node.addr, None)
        await node.close()

    def changes(self, observer: str, about: str) -> list[Change]:
        return [
            event.change
            for event in self.heard[observer]
            if isinstance(event, MemberEvent) and event.member.node == about
        ]


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub()
    yield hub
    for node in list(hub.listening.values()):
        await node.close()


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"never happened: {what}")
        await asyncio.sleep(0.005)


def state_of(observer: GossipNode, name: str) -> NodeState | None:
    return next((view.state for view in observer.members() if view.node == name), None)


def all_see(nodes: list[GossipNode], names: list[str], state: NodeState = NodeState.ALIVE) -> bool:
    return all(state_of(node, name) is state for node in nodes for name in names)


async def settled(hub: Hub, count: int, **options: object) -> list[GossipNode]:
    nodes = [await hub.start(f"n{i}", **options) for i in range(count)]  # type: ignore[arg-type]
    names = [f"n{i}" for i in range(count)]
    await until(lambda: all_see(nodes, names), "everybody sees everybody")
    return nodes


async def test_nodes_with_one_seed_all_meet_and_read_each_others_metadata(hub: Hub) -> None:
    first = await hub.start("n0", meta={"api": "http://10.0.0.1:3000"})
    nodes = [first] + [await hub.start(f"n{i}", seeds=[first.addr]) for i in range(1, 5)]
    await until(lambda: all_see(nodes, [f"n{i}" for i in range(5)]), "five nodes see each other")
    view = next(view for view in nodes[4].members() if view.node == "n0")
    assert view.meta == {"api": "http://10.0.0.1:3000"}
    assert view.addr == first.addr
    assert Change.JOINED in hub.changes("n1", "n4")


async def test_a_killed_node_is_suspected_then_dead_for_everybody_and_nobody_else_is(hub: Hub) -> None:
    nodes = await settled(hub, 3)
    await hub.stop(nodes[2])
    await until(lambda: all_see(nodes[:2], ["n2"], NodeState.DEAD), "n2 is dead for both")
    for observer, other in (("n0", "n1"), ("n1", "n0")):
        assert hub.changes(observer, "n2")[-2:] == [Change.SUSPECT, Change.DEAD]
        assert Change.DEAD not in hub.changes(observer, other)


async def test_a_graceful_leave_is_told_to_all_and_is_not_a_death(hub: Hub) -> None:
    nodes = await settled(hub, 4)
    del hub.listening[nodes[3].addr]
    await nodes[3].leave()
    await until(lambda: all_see(nodes[:3], ["n3"], NodeState.LEFT), "n3 left for all")
    for observer in ("n0", "n1", "n2"):
        assert Change.DEAD not in hub.changes(observer, "n3")


async def test_leaving_an_empty_cluster_does_not_wait(hub: Hub) -> None:
    node = await hub.start("n0")
    hub.listening.clear()
    await asyncio.wait_for(node.leave(), DEADLINE_S)


async def test_a_node_that_was_deaf_for_a_while_refutes_its_death_with_a_higher_incarnation(hub: Hub) -> None:
    nodes = await settled(hub, 3)
    deaf = nodes[2]
    # Its socket is read no more, as under SIGSTOP; the others must first believe it dead.
    deaf._open = False
    address = deaf.addr
    del hub.listening[address]
    await until(lambda: all_see(nodes[:2], ["n2"], NodeState.DEAD), "n2 is believed dead")
    deaf._open = True
    hub.listening[address] = deaf
    deaf._on_timer()
    await until(lambda: all_see(nodes[:2], ["n2"]), "n2 is alive again for both")
    view = next(view for view in nodes[0].members() if view.node == "n2")
    assert view.incarnation >= 1
    assert view.boot == 1
    assert deaf.metrics()["refutations"] >= 1


async def test_a_restarted_node_at_another_port_is_the_same_member(hub: Hub) -> None:
    nodes = await settled(hub, 3)
    old_addr = nodes[2].addr
    await hub.stop(nodes[2])
    again = await hub.start("n2", boot=2)
    assert again.addr != old_addr
    await until(
        lambda: all(
            view.boot == 2 and view.addr == again.addr and view.state is NodeState.ALIVE
            for node in nodes[:2]
            for view in node.members()
            if view.node == "n2"
        ),
        "both know the second life of n2",
    )
    assert [view.node for view in nodes[0].members()].count(NodeId("n2")) == 1


async def test_a_stranger_on_the_address_of_a_dead_node_is_not_taken_for_it(hub: Hub) -> None:
    nodes = await settled(hub, 3)
    port = nodes[2].addr.port
    await hub.stop(nodes[2])
    await hub.start("foreign", port=port)
    await until(lambda: all_see(nodes[:2], ["n2"], NodeState.DEAD), "n2 is dead although its port answers")
    await until(lambda: all_see(nodes[:2], ["foreign"]), "the newcomer is a member of its own")


async def test_two_processes_with_one_identity_are_reported(hub: Hub) -> None:
    nodes = await settled(hub, 2)
    await hub.start("n1", boot=1)
    await until(
        lambda: any(isinstance(event, Conflict) and event.node == "n1" for event in hub.heard["n0"] + hub.heard["n1"]),
        "the conflict over n1 is reported",
    )
    del nodes


async def test_the_earlier_process_of_an_identity_learns_that_it_is_superseded(hub: Hub) -> None:
    await settled(hub, 2)
    await hub.start("n1", boot=2)
    await until(
        lambda: any(isinstance(event, Conflict) and event.is_self and event.boot == 2 for event in hub.heard["n1"]),
        "the first n1 hears of the second",
    )


async def test_metadata_and_cluster_state_reach_everybody(hub: Hub) -> None:
    nodes = await settled(hub, 4)
    nodes[0].update_meta({"zone": "z2", "peer_port": 7947})
    nodes[1].publish_state(ClusterState(3, 9))
    nodes[2].publish_state(ClusterState(2, 100))
    await until(lambda: all(node.cluster_state == ClusterState(3, 9) for node in nodes), "the newest state wins")
    await until(
        lambda: all(
            view.meta == {"zone": "z2", "peer_port": 7947}
            for node in nodes
            for view in node.members()
            if view.node == "n0"
        ),
        "all read the new metadata",
    )
    assert any(isinstance(event, StateAdvanced) for event in hub.heard["n3"])
    assert Change.UPDATED in hub.changes("n3", "n0")


async def test_sealed_gossip_works_through_a_rotation_of_keys(hub: Hub) -> None:
    nodes = await settled(hub, 3, keys=(KEY_A,))
    for step in ((KEY_A, KEY_B), (KEY_B, KEY_A), (KEY_B,)):
        for node in nodes:
            node.rotate_keys(step)
    # Packets sealed with the retired key may still be in flight; afterwards none is refused.
    await asyncio.sleep(0.2)
    refused = [node.metrics()["dropped_unknown_key"] for node in nodes]
    acked = [node.metrics()["probes_acked"] for node in nodes]
    await until(
        lambda: all(node.metrics()["probes_acked"] >= before + 5 for node, before in zip(nodes, acked, strict=True)),
        "probes are answered under the new key",
    )
    assert [node.metrics()["dropped_unknown_key"] for node in nodes] == refused
    assert all_see(nodes, ["n0", "n1", "n2"])


async def test_datagrams_that_are_not_ours_are_counted_by_reason_and_change_nothing(hub: Hub) -> None:
    nodes = await settled(hub, 2, keys=(KEY_A,))
    target = nodes[0]
    foreign = await hub.start("elsewhere", seeds=[], cluster="other", keys=(KEY_A,))
    captured: list[bytes] = []
    receive = target._socket._received

    def tap(data: bytes, source: Address) -> None:
        captured.append(data)
        receive(data, source)

    target._socket._received = tap
    await until(lambda: bool(captured), "a sealed packet to replay")
    strange = foreign._codec.encode(_ping(foreign))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for datagram in (b"hello", b"", bytes(1300), captured[0], strange):
            sock.sendto(datagram, target.addr)
    for reason in ("garbage", "oversize", "replay", "foreign_cluster"):
        await until(lambda reason=reason: target.metrics()[f"dropped_{reason}"] >= 1, f"{reason} is counted")  # type: ignore[misc]
    assert {view.node for view in target.members()} == {"n0", "n1"}


def _ping(node: GossipNode) -> Packet:
    return Packet(node.members()[0].node, BootId(1), Gossip(), ClusterState())


async def test_a_blocked_loop_does_not_take_its_own_deafness_for_the_death_of_others(hub: Hub) -> None:
    nodes = await settled(hub, 3)
    for _ in range(3):
        # Everything on this loop stops for far longer than a suspicion lasts (240 ms).
        time.sleep(0.6)  # noqa: ASYNC251
        await asyncio.sleep(0.1)
    assert all(node.metrics()["loop_lags"] >= 1 for node in nodes)
    assert all(node.metrics()["members_died"] == 0 for node in nodes)
    assert all_see(nodes, ["n0", "n1", "n2"])


async def test_a_name_cannot_be_advertised(hub: Hub) -> None:
    node = GossipNode(
        FAST,
        cluster_id="test",
        node=NodeId("n0"),
        boot=BootId(1),
        bind=Address("127.0.0.1", 0),
        advertise=Address("node-0.internal", 0),
        meta={},
        seeds=[],
        push_pull=hub.push_pull,
        stream_probe=hub.probe,
    )
    with pytest.raises(ValueError, match="IP address"):
        await node.start()


async def test_views_tell_the_age_of_a_belief(hub: Hub) -> None:
    nodes = await settled(hub, 2)
    await until(lambda: nodes[0].members()[1].heard_age_ms is not None, "n1 spoke to n0")
    own, other = nodes[0].members()
    assert own.is_self and own.heard_age_ms == 0
    assert not other.is_self and other.heard_age_ms is not None
    await hub.stop(nodes[1])
    await until(lambda: state_of(nodes[0], "n1") is NodeState.DEAD, "n1 is dead")
    first = nodes[0].members()[1]
    await asyncio.sleep(0.05)
    second = nodes[0].members()[1]
    assert first.heard_age_ms is not None and second.heard_age_ms is not None
    assert second.state_age_ms > first.state_age_ms
    assert second.heard_age_ms > first.heard_age_ms
