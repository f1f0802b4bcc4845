"""The relay that stands for the network: it carries both ways, cuts one way, and holds what a connection sends until it heals."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from chaos.live.network import Cut, RelayNetwork, both_ways

ONE, TWO = "node-1", "node-2"
SOON_S = 5.0
NEVER_S = 0.3


class Ear(asyncio.DatagramProtocol):
    """A node's gossip socket: what it heard, and from where."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[bytes, int]] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.heard.put_nowait((data, addr[1]))

    async def nothing(self) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.heard.get(), NEVER_S)
            return False
        return True


def port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[RelayNetwork]:
    made = RelayNetwork([ONE, TWO], tmp_path)
    await made.start()
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def ears(network: RelayNetwork) -> AsyncIterator[dict[str, Ear]]:
    loop = asyncio.get_running_loop()
    found: dict[str, Ear] = {}
    for node, place in network.places.items():
        _, found[node] = await loop.create_datagram_endpoint(Ear, local_addr=("127.0.0.1", port(place.gossip_bind)))
    try:
        yield found
    finally:
        for ear in found.values():
            ear.transport.close()


async def test_datagrams_arrive_from_the_address_that_the_speaker_tells(network: RelayNetwork) -> None:
    fronts = {node: port(place.gossip_advertise) for node, place in network.places.items()}
    async with ears(network) as ear:
        ear[ONE].transport.sendto(b"hello", ("127.0.0.1", fronts[TWO]))
        assert await asyncio.wait_for(ear[TWO].heard.get(), SOON_S) == (b"hello", fronts[ONE])
        ear[TWO].transport.sendto(b"answer", ("127.0.0.1", fronts[ONE]))
        assert await asyncio.wait_for(ear[ONE].heard.get(), SOON_S) == (b"answer", fronts[TWO])


async def test_a_cut_is_one_way_until_it_is_healed(network: RelayNetwork) -> None:
    fronts = {node: port(place.gossip_advertise) for node, place in network.places.items()}
    async with ears(network) as ear:
        await network.cut([Cut(ONE, TWO)])
        ear[ONE].transport.sendto(b"lost", ("127.0.0.1", fronts[TWO]))
        ear[TWO].transport.sendto(b"heard", ("127.0.0.1", fronts[ONE]))
        assert (await asyncio.wait_for(ear[ONE].heard.get(), SOON_S))[0] == b"heard"
        assert await ear[TWO].nothing()
        await network.cut([])
        ear[ONE].transport.sendto(b"again", ("127.0.0.1", fronts[TWO]))
        assert (await asyncio.wait_for(ear[TWO].heard.get(), SOON_S))[0] == b"again"


async def test_loss_takes_a_part(network: RelayNetwork) -> None:
    fronts = {node: port(place.gossip_advertise) for node, place in network.places.items()}
    async with ears(network) as ear:
        await network.cut([Cut(ONE, TWO, 40)])
        for _ in range(400):
            ear[ONE].transport.sendto(b"x", ("127.0.0.1", fronts[TWO]))
            await asyncio.sleep(0.0005)
        await network.cut([])
        ear[ONE].transport.sendto(b"end", ("127.0.0.1", fronts[TWO]))
        count = 0
        while (await asyncio.wait_for(ear[TWO].heard.get(), SOON_S))[0] != b"end":
            count += 1
    assert 160 < count < 320


async def test_a_connection_is_known_by_its_process_and_waits_while_it_is_cut(network: RelayNetwork) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            heard.put_nowait(data)
        writer.close()

    there = network.places[TWO]
    server = await asyncio.start_server(serve, "127.0.0.1", port(there.gossip_bind))
    await network.entered({ONE: os.getpid()})
    _, writer = await asyncio.open_connection("127.0.0.1", port(there.gossip_advertise))
    writer.write(b"before")
    assert await asyncio.wait_for(heard.get(), SOON_S) == b"before"
    await network.cut(both_ways([ONE], [TWO]))
    writer.write(b"during")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(heard.get(), NEVER_S)
    await network.cut([])
    assert await asyncio.wait_for(heard.get(), SOON_S) == b"during"
    writer.close()
    server.close()
