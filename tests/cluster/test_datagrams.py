"""The bounded UDP socket, on loopback."""

from __future__ import annotations

import asyncio
import socket

import pytest

from dakera_cluster.cluster import datagrams
from dakera_cluster.cluster.datagrams import RECEIVE_BATCH, DatagramSocket
from dakera_cluster.protocols.members import Address

ANYWHERE = Address("127.0.0.1", 0)


class Reader:
    """A bound socket and what each of its turns received."""

    def __init__(self) -> None:
        self.turns: list[list[bytes]] = []
        self.progress = asyncio.Event()
        self.socket = DatagramSocket(lambda: self.turns.append([]), self._take)

    def _take(self, data: bytes, _: Address) -> None:
        self.turns[-1].append(data)
        self.progress.set()

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.received) < count:
                self.progress.clear()
                await self.progress.wait()

    @property
    def received(self) -> list[bytes]:
        return [data for turn in self.turns for data in turn]


@pytest.fixture
async def reader():  # type: ignore[no-untyped-def]
    reader = Reader()
    await reader.socket.bind(ANYWHERE)
    yield reader
    await reader.socket.close()


async def test_datagrams_are_handed_over_in_order_and_in_bounded_turns(reader: Reader) -> None:
    count = 3 * RECEIVE_BATCH
    for number in range(count):
        reader.socket.datagram_received(str(number).encode(), ("127.0.0.1", 1))
    await reader.wait_for(count)
    assert [len(turn) for turn in reader.turns] == [RECEIVE_BATCH] * 3
    assert reader.received == [str(number).encode() for number in range(count)]


async def test_a_flood_is_dropped_and_counted(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "INBOX_MAX", 10)
    for _ in range(25):
        reader.socket.datagram_received(b"x", ("127.0.0.1", 1))
    assert reader.socket.waiting == 10
    assert reader.socket.drops["inbox_full"] == 15


async def test_names_are_never_looked_up(reader: Reader) -> None:
    reader.socket.send(b"x", Address("localhost", reader.socket.addr.port))
    reader.socket.send(b"y", reader.socket.addr)
    await reader.wait_for(1)
    assert reader.received == [b"y"]
    assert reader.socket.drops["unroutable"] == 1


async def test_a_closed_socket_frees_its_port_and_hands_nothing_over() -> None:
    reader = Reader()
    await reader.socket.bind(ANYWHERE)
    reader.socket.datagram_received(b"x", ("127.0.0.1", 1))
    await reader.socket.close()
    await asyncio.sleep(0)
    reader.socket.send(b"x", reader.socket.addr)
    assert reader.received == []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(reader.socket.addr)


async def test_a_port_in_use_is_an_error(reader: Reader) -> None:
    with pytest.raises(OSError, match="in use"):
        await DatagramSocket(lambda: None, lambda *_: None).bind(reader.socket.addr)
