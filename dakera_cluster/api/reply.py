"""A whole answer in one write: status line, headers and body, made for the one kind of answer this server gives.

What `aiohttp.web.Response` does, for a third of its cost: that one copies the headers into a dictionary, completes it and
serialises it again, and asks at every step whether the body is a file, chunked or compressed. Invariants: the status line
and the headers of RFC 9112 that depend on the request (length, date, connection) are added here and nowhere else; a body is
left out, not its length, where the method or the status says so. Made by `endpoint`, sent by aiohttp's request handler.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from email.utils import formatdate
from functools import lru_cache

from aiohttp import ClientConnectionResetError, HttpVersion, HttpVersion10, HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_HTTP_NO_CONTENT = 204


def header_lines(headers: Mapping[str, str]) -> str:
    """``Name: value`` lines, each with its line end. Raises ValueError when one would end early (response splitting)."""
    lines = [f"{name}: {value}" for name, value in headers.items()]
    if any(map(_FORBIDDEN.search, lines)):
        raise ValueError("a header holds a control character")
    return "".join(f"{line}\r\n" for line in lines)


def without(lines: str, names: Collection[str]) -> str:
    """Header ``lines`` but for those of these names, whatever their case: an answer's own header stands instead of a common one,
    not beside it."""
    if not names:
        return lines
    left_out = {name.lower() for name in names}
    kept = [line for line in lines.split("\r\n") if line.partition(":")[0].lower() not in left_out]
    return "\r\n".join(kept)


class Reply(web.StreamResponse):
    """``head``: header lines as of `header_lines`, without those that are added here."""

    def __init__(self, status: int, head: str, body: bytes) -> None:
        super().__init__(status=status)
        self._head = head
        self._whole_body = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the whole answer. Raises ClientConnectionResetError when the client is gone."""
        transport, version, keeps_alive = request.transport, request.version, request.keep_alive
        if transport is None or transport.is_closing():
            raise ClientConnectionResetError("the client is gone")
        self._keep_alive = keeps_alive
        body, status = self._whole_body, self.status
        length = f"Content-Length: {len(body)}\r\n" if status != _HTTP_NO_CONTENT else ""
        connection = ""
        if keeps_alive:
            if version == HttpVersion10:
                connection = "Connection: keep-alive\r\n"
        elif version == HttpVersion11:
            connection = "Connection: close\r\n"
        head = (
            f"{_status_line(version, status, self.reason)}{self._head}{length}Date: {_now()}\r\n{connection}\r\n"
        ).encode()
        if request.method == "HEAD" or status == _HTTP_NO_CONTENT:
            transport.write(head)
        else:
            transport.writelines((head, body))
        await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing: all was sent."""


@lru_cache(maxsize=256)
def _status_line(version: HttpVersion, status: int, reason: str) -> str:
    return f"HTTP/{version.major}.{version.minor} {status} {reason}\r\n"


class _Now:
    """The date of answers, put into words once a second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = 0
        self._text = ""

    def __call__(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._text = formatdate(second, usegmt=True)
        return self._text


_now = _Now()
