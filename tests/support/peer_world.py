"""Nodes on loopback for tests of peer connections: servers, clients, and an attacker in between where one is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from dakera_cluster.cluster.peer_client import PeerClient
from dakera_cluster.cluster.peer_server import PeerServer
from dakera_cluster.cluster.peer_services import Context
from dakera_cluster.cluster.peer_settings import PeerSettings
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.members import Address
from dakera_cluster.protocols.peer_handshake import Endpoint
from tests.support.relay import Relay

KEY = bytes(range(32))
A, B = NodeId("a"), NodeId("b")
PATIENCE_S = 10.0
SETTINGS = PeerSettings(message_bytes=1 << 20, backoff_min_ms=5, backoff_max_ms=20)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


class World:
    """Nodes on loopback; closes everything it made."""

    def __init__(self) -> None:
        self.addresses: dict[NodeId, Address] = {}
        self._closing: list[Any] = []

    async def server(
        self, node: NodeId = B, *, boot: int = 1, port: int = 0, settings: PeerSettings = SETTINGS, **extra: Any
    ) -> PeerServer:
        tls = extra.pop("tls", None)
        secrets = extra.pop("secrets", (KEY,))
        me = Endpoint(extra.pop("cluster", "blue"), node, BootId(boot), secrets, **extra)
        server = PeerServer(me, settings, tls)
        self.addresses[node] = await server.start(Address("127.0.0.1", port))
        self._closing.append(server)
        server.register("echo", echo)
        return server

    def client(self, node: NodeId = A, *, boot: int = 1, settings: PeerSettings = SETTINGS, **extra: Any) -> PeerClient:
        tls, is_dead = extra.pop("tls", None), extra.pop("is_dead", lambda node: False)
        me = Endpoint(extra.pop("cluster", "blue"), node, BootId(boot), extra.pop("secrets", (KEY,)), **extra)
        client = PeerClient(me, self.addresses.get, settings=settings, tls=tls, is_dead=is_dead)
        self._closing.append(client)
        return client

    async def relay(self, node: NodeId = B) -> Relay:
        """Put an attacker in front of a node."""
        relay = Relay(self.addresses[node])
        self.addresses[node] = Address(*await relay.start())
        self._closing.append(relay)
        return relay

    async def close(self) -> None:
        for thing in reversed(self._closing):
            await thing.close()


async def echo(payload: bytes, context: Context) -> bytes:
    return payload


class Gate:
    """A service that waits until it is let through, and keeps book."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.started = 0
        self.cancelled = 0

    async def __call__(self, payload: bytes, context: Context) -> bytes:
        self.started += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return payload
