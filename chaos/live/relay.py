"""The network without root: a process before every node's gossip port that passes packets and connections on, or does not.

Every node tells the others its front port, so all they say to each other comes by. A datagram that reaches a node's front
from another node's back leaves from that other's front: both ends see the addresses they know. A connection is told by the
process that owns its other end, which the kernel lists under /proc. What is cut is silent: datagrams vanish, bytes of
connections wait, as they would for a retransmission, and go on when the cut is healed.

Started with one JSON argument, node -> [front port, back port]. Every line on standard input is a JSON object with ``cuts``
(lists of speaker, listener, percent: these and no others) or ``pids`` (node -> process id); each is answered with a line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HOST = "127.0.0.1"
CHUNK_BYTES = 1 << 16
RETRANSMISSION_S = 0.2
"""What a lost segment costs a connection, about."""


class Relay:
    """All fronts of one cluster."""

    def __init__(self, ports: dict[str, tuple[int, int]]) -> None:
        self._fronts = {node: front for node, (front, _) in ports.items()}
        self._backs = {node: back for node, (_, back) in ports.items()}
        self._by_back = {back: node for node, back in self._backs.items()}
        self._datagrams: dict[str, asyncio.DatagramTransport] = {}
        self._servers: list[asyncio.Server] = []
        self._cuts: dict[tuple[str, str], int] = {}
        self._pids: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._rng = random.Random(0)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for node, front in self._fronts.items():
            transport, _ = await loop.create_datagram_endpoint(_front(self, node), local_addr=(HOST, front))
            self._datagrams[node] = transport
            self._servers.append(await asyncio.start_server(self._acceptor(node), HOST, front))

    def obey(self, line: bytes) -> None:
        """One line of control."""
        order = json.loads(line)
        if "pids" in order:
            self._pids = order["pids"]
        if "cuts" in order:
            self._cuts = {(speaker, listener): percent for speaker, listener, percent in order["cuts"]}
            self._changed.set()
            self._changed = asyncio.Event()

    def heard(self, listener: str, data: bytes, port: int) -> None:
        """A datagram at a front."""
        speaker = self._by_back.get(port)
        if speaker is not None and not self._loses(speaker, listener):
            self._datagrams[speaker].sendto(data, (HOST, self._backs[listener]))

    def _loses(self, speaker: str, listener: str) -> bool:
        percent = self._cuts.get((speaker, listener), 0)
        return percent >= 100 or (percent > 0 and self._rng.randrange(100) < percent)

    def _acceptor(self, listener: str) -> Accept:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            port = writer.get_extra_info("peername")[1]
            speaker = self._owner(port, self._fronts[listener])
            try:
                back_reader, back_writer = await asyncio.open_connection(HOST, self._backs[listener])
            except OSError:
                writer.transport.abort()
                return
            there = asyncio.create_task(self._pump(reader, back_writer, speaker, listener))
            back = asyncio.create_task(self._pump(back_reader, writer, listener, speaker))
            for task in (there, back):
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        return accept

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, speaker: str, listener: str
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                while self._cuts.get((speaker, listener), 0) >= 100:
                    await self._changed.wait()
                if self._loses(speaker, listener):
                    await asyncio.sleep(RETRANSMISSION_S)
                writer.write(data)
                await writer.drain()
        writer.close()

    def _owner(self, port: int, front: int) -> str:
        """The node whose process made the connection from ``port``; empty when it is none of ours."""
        inode = _inode(port, front)
        for node, pid in self._pids.items():
            with contextlib.suppress(OSError):
                for entry in os.scandir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        if os.readlink(entry.path) == f"socket:[{inode}]":
                            return node
        return ""


def _inode(local: int, remote: int) -> str:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].split(":")[1], 16) == local and int(fields[2].split(":")[1], 16) == remote:
            return fields[9]
    return ""


def _front(relay: Relay, node: str) -> type[asyncio.DatagramProtocol]:
    class Front(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            relay.heard(node, data, addr[1])

    return Front


async def _serve(ports: dict[str, tuple[int, int]]) -> None:
    relay = Relay(ports)
    await relay.start()
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("ready", flush=True)
    # The harness is gone when its end of the pipe is closed: then this process ends too.
    while line := await lines.readline():
        relay.obey(line)
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(_serve({node: (front, back) for node, (front, back) in json.loads(sys.argv[1]).items()}))
