"""The UDP socket of the gossip driver: bounded both ways, counted, and handed over in turns.

Invariant: at most ``RECEIVE_BATCH`` datagrams are handled per turn of the event loop, so that a flood of gossip cannot
starve requests; queues are bounded, and what exceeds them is dropped and counted, as a network may do anyway. Names are
never looked up: that would block the loop. Called by ``gossip``.
"""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

from dakera_cluster.protocols.members import Address

RECEIVE_BATCH = 64
INBOX_MAX = 4096
"""Datagrams waiting for a turn; more are dropped and counted."""
OUTBOX_MAX_BYTES = 1 << 20
"""Unsent bytes above which datagrams are dropped: the network is not taking them, and stale gossip has no value."""
SOCKET_BUFFER_BYTES = 1 << 20
"""A loop that pauses must find in the kernel what arrived meanwhile."""


class _Transport(Protocol):
    """A datagram transport as asyncio and uvloop have it; the typed base class lacks the buffer's size."""

    def sendto(self, data: Any, addr: tuple[Any, ...]) -> None: ...

    def close(self) -> None: ...

    def get_write_buffer_size(self) -> int: ...


class DatagramSocket(asyncio.DatagramProtocol):
    """One bound UDP socket. ``turn_begins`` is called before each batch, ``received`` for each datagram in it."""

    def __init__(self, turn_begins: Callable[[], object], received: Callable[[bytes, Address], None]) -> None:
        self.drops = {"inbox_full": 0, "outbox_full": 0, "unroutable": 0, "send_error": 0}
        self.bytes_sent = self.bytes_received = 0
        self.addr = Address("", 0)
        self._turn_begins = turn_begins
        self._received = received
        self._inbox: collections.deque[tuple[bytes, Address]] = collections.deque()
        self._draining = False
        self._routable: dict[str, bool] = {}
        self._transport: _Transport | None = None
        self._closed = asyncio.Event()

    async def bind(self, addr: Address) -> None:
        """Raises OSError when the address cannot be bound. ``addr`` is the bound one afterwards."""
        self._loop = asyncio.get_running_loop()
        transport, _ = await self._loop.create_datagram_endpoint(lambda: self, local_addr=addr)
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        bound = transport.get_extra_info("sockname")
        self.addr = Address(bound[0], bound[1])
        self._transport = cast(_Transport, transport)

    async def close(self) -> None:
        """The port is free afterwards; nothing is handed over any more."""
        transport, self._transport = self._transport, None
        self._inbox.clear()
        if transport is not None:
            transport.close()
            await self._closed.wait()

    @property
    def waiting(self) -> int:
        """Datagrams received and not handled yet."""
        return len(self._inbox)

    def send(self, data: bytes, addr: Address) -> None:
        """Hand one datagram to the kernel, or drop and count it."""
        transport = self._transport
        if transport is None:
            return
        if not self._is_routable(addr.host):
            self.drops["unroutable"] += 1
            return
        if transport.get_write_buffer_size() > OUTBOX_MAX_BYTES:
            self.drops["outbox_full"] += 1
            return
        self.bytes_sent += len(data)
        try:
            transport.sendto(data, addr)
        except (OSError, ValueError):
            self.drops["send_error"] += 1

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.bytes_received += len(data)
        if len(self._inbox) >= INBOX_MAX:
            self.drops["inbox_full"] += 1
            return
        self._inbox.append((data, Address(addr[0], addr[1])))
        if not self._draining:
            self._draining = True
            self._loop.call_soon(self._drain)

    def error_received(self, exc: Exception) -> None:
        self.drops["send_error"] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()

    def _drain(self) -> None:
        self._turn_begins()
        for _ in range(min(RECEIVE_BATCH, len(self._inbox))):
            if self._transport is None:  # closed by whoever handled the last one
                break
            self._received(*self._inbox.popleft())
        self._draining = bool(self._inbox) and self._transport is not None
        if self._draining:
            self._loop.call_soon(self._drain)

    def _is_routable(self, host: str) -> bool:
        known = self._routable.get(host)
        if known is None:
            if len(self._routable) >= INBOX_MAX:
                self._routable.clear()
            known = self._routable[host] = is_ip(host)
        return known


def is_ip(host: str) -> bool:
    """Whether ``host`` is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
