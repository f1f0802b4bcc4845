"""Peers as the rest of the cluster sees them: a transport for requests to replicas, and the names of the services.

A request to this node goes to its host directly, any other over a peer connection; both raise the same errors. Called by
`cluster.router` and `cluster.replicator` through `Transport`, and by the node's wiring, which registers the services::

    server.register(SHARD, shard_service(host))
    server.register(PUSH_PULL, push_pull_service(gossip.answer_push_pull), priority=Priority.CONTROL)
    GossipNode(..., push_pull=push_pull_call(client), stream_probe=client.probe)
    gossip.subscribe(client.on_member)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from dakera_cluster.cluster.peer_client import PeerClient
from dakera_cluster.cluster.peer_errors import PeerTimeoutError
from dakera_cluster.cluster.peer_services import Context, Handler
from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.members import Address
from dakera_cluster.shard import ops

SHARD = "shard"
"""ops.Request -> ops.Answer"""
PUSH_PULL = "gossip.push_pull"
"""our membership -> the peer's"""


class RequestHandler(Protocol):
    """`shard.host.Host`, as seen from here."""

    async def handle(self, request: ops.Request) -> ops.Answer: ...


class PeerTransport:
    """Requests to replicas, wherever they are; `cluster.router.Transport`."""

    def __init__(self, node: NodeId, host: RequestHandler, client: PeerClient) -> None:
        self._node = node
        self._host = host
        self._client = client

    async def call(self, node: NodeId, request: ops.Request, *, timeout_ms: float | None = None) -> ops.Answer:
        """The node's answer within ``timeout_ms`` (default: the client's for peers, no bound for this node).

        Raises what the host raised, PeerUnavailableError and PeerTimeoutError (``ambiguous`` says whether the request may
        have been carried out), OverloadedError, PayloadTooLargeError.
        """
        if node != self._node:
            answer = await self._client.call(node, SHARD, ops.encode(request), timeout_ms=timeout_ms)
            return ops.decode_answer(answer)
        if timeout_ms is None:
            return await self._host.handle(request)
        try:
            async with asyncio.timeout(timeout_ms / 1000.0) as limit:
                return await self._host.handle(request)
        except TimeoutError:
            if not limit.expired():
                raise
            raise PeerTimeoutError(f"{SHARD} took too long", ambiguous=True) from None


def shard_service(host: RequestHandler) -> Handler:
    """Answers requests of peers to this node's replicas."""

    async def handle(payload: bytes, context: Context) -> bytes:
        return ops.encode(await host.handle(ops.decode_request(payload)))

    return handle


def push_pull_service(answer: Callable[[bytes], bytes]) -> Handler:
    """The other side of an exchange of membership; ``answer`` is `GossipNode.answer_push_pull`."""

    async def handle(payload: bytes, context: Context) -> bytes:
        return answer(payload)

    return handle


def push_pull_call(client: PeerClient) -> Callable[[Address, bytes], Awaitable[bytes]]:
    """Carries an exchange of membership to whoever listens at an address."""

    async def call(address: Address, state: bytes) -> bytes:
        return await client.call_address(address, PUSH_PULL, state)

    return call
