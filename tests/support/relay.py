"""A TCP relay on loopback that an on-path attacker would use: it records, alters, repeats, holds back and cuts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

Change = Callable[[bytes], bytes]


class Relay:
    """``to_server`` and ``to_client`` see every chunk and return what is passed on."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self.sent: list[bytes] = []
        """Chunks from the client, over all connections."""
        self.to_server: Change = lambda data: data
        self.to_client: Change = lambda data: data
        self.accepted = 0
        self.flowing = asyncio.Event()
        """Cleared: whatever arrives is held, in both directions, and connections stay open."""
        self.flowing.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.server_side: asyncio.StreamWriter | None = None
        """Towards the server, of the newest connection: what is written here the server takes for the client's."""

    async def start(self) -> tuple[str, int]:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.append(writer)
        try:
            back_reader, back_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        self._writers.append(back_writer)
        self.server_side = back_writer
        self._tasks += [
            asyncio.create_task(self._pump(reader, back_writer, self._out)),
            asyncio.create_task(self._pump(back_reader, writer, self._back)),
        ]

    def _out(self, data: bytes) -> bytes:
        self.sent.append(data)
        return self.to_server(data)

    def _back(self, data: bytes) -> bytes:
        return self.to_client(data)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Change) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                await self.flowing.wait()
                writer.write(change(data))
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Break all connections at once."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
