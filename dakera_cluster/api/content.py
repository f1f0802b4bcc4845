"""Bytes in and out: bounded reading and unpacking of request bodies, packing of answers.

Invariant: no body, packed or not, chunked or not, ever takes more memory than the limit: reading stops at the first byte
over it, and unpacking asks the decoder for at most the limit. Big bodies are (un)packed in a thread. Called by `endpoint`.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from functools import lru_cache

import zstandard
from aiohttp import ClientPayloadError, StreamReader
from aiohttp.web import BaseRequest as HttpRequest
from multidict import istr

from dakera_cluster.api.limits import Admission
from dakera_cluster.model.errors import InvalidRequestError, PayloadTooLargeError, UnsupportedMediaTypeError

_CONTENT_ENCODING = istr("Content-Encoding")
GZIP = "gzip"
ZSTD = "zstd"
GZIP_LEVEL = 1
ZSTD_LEVEL = 1
ZSTD_MAX_WINDOW_BYTES = 8 * 1024 * 1024
_STEP_BYTES = 256 * 1024
_GZIP_WBITS = 16 + zlib.MAX_WBITS
_ACCEPTED = re.compile(r"\s*([\w*-]+)\s*(?:;\s*q\s*=\s*([0-9.]+))?")


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"body: must be at most {limit} bytes", details={"field": "body", "limit_bytes": limit})


class BodyReader:
    """Reads one request's body; `held` bytes stay accounted for until `close`."""

    __slots__ = ("_admission", "_limit", "_off_loop", "held")

    def __init__(self, admission: Admission, *, limit_bytes: int, off_loop_bytes: int) -> None:
        self._admission = admission
        self._limit = limit_bytes
        self._off_loop = off_loop_bytes
        self.held = 0

    def close(self) -> None:
        if self.held:
            self._admission.release(self.held)
            self.held = 0

    def _hold(self, count: int) -> None:
        self._admission.reserve(count)
        self.held += count

    async def read(self, http: HttpRequest) -> bytes:
        """The body, unpacked. Raises PayloadTooLargeError, UnsupportedMediaTypeError, InvalidRequestError."""
        content = http.content
        if content.is_eof():
            # Most bodies came together with their headers.
            body = content.read_nowait()
            if len(body) > self._limit:
                raise _too_large(self._limit)
            self._hold(len(body))
        else:
            length = http.content_length
            if length is not None and length > self._limit:
                raise _too_large(self._limit)
            body = await self._receive(content)
        encoding = http.headers.get(_CONTENT_ENCODING)
        if encoding is None or not body or encoding.lower() == "identity":
            return body
        if encoding.lower() not in (GZIP, ZSTD):
            raise UnsupportedMediaTypeError(f"Content-Encoding: {encoding!r} is not supported; send gzip, zstd or none")
        unpack = gunzip if encoding.lower() == GZIP else unzstd
        if len(body) >= self._off_loop:
            unpacked = await asyncio.to_thread(unpack, body, self._limit)
        else:
            unpacked = unpack(body, self._limit)
        self._hold(len(unpacked))
        return unpacked

    async def _receive(self, content: StreamReader) -> bytes:
        chunks: list[bytes] = []
        try:
            while True:
                chunk = await content.readany()
                if chunk:
                    self._hold(len(chunk))
                    if self.held > self._limit:
                        raise _too_large(self._limit)
                    chunks.append(chunk)
                if not chunk or content.at_eof():
                    break
        except ClientPayloadError as error:
            raise InvalidRequestError("the body ended before it was complete", field="body") from error
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def gunzip(data: bytes, limit: int) -> bytes:
    """Unpack gzip members into at most ``limit`` bytes."""
    out = bytearray()
    rest = data
    while rest:
        decoder = zlib.decompressobj(_GZIP_WBITS)
        try:
            while not decoder.eof:
                piece = decoder.decompress(rest, min(_STEP_BYTES, limit + 1 - len(out)))
                out += piece
                if len(out) > limit:
                    raise _too_large(limit)
                rest = decoder.unconsumed_tail
                if not piece and not rest and not decoder.eof:
                    raise InvalidRequestError("the gzip stream is cut short", field="body")
        except zlib.error as error:
            raise InvalidRequestError(f"is not gzip: {error}", field="body") from error
        rest = decoder.unused_data
    return bytes(out)


def unzstd(data: bytes, limit: int) -> bytes:
    """Unpack a zstd frame into at most ``limit`` bytes."""
    out = bytearray()
    decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW_BYTES)
    try:
        promised = zstandard.frame_content_size(data)
        with decoder.stream_reader(data, read_across_frames=True) as reader:
            while piece := reader.read(min(_STEP_BYTES, limit + 1 - len(out))):
                out += piece
                if len(out) > limit:
                    raise _too_large(limit)
    except zstandard.ZstdError as error:
        raise InvalidRequestError(f"is not zstd: {error}", field="body") from error
    if len(out) < promised:
        raise InvalidRequestError("the zstd stream is cut short", field="body")
    return bytes(out)


@lru_cache(maxsize=256)
def accepted_encoding(header: str) -> str | None:
    """The packing to use for this Accept-Encoding: zstd before gzip, None when neither is wanted (RFC 9110, 12.5.3)."""
    weights: dict[str, float] = {}
    for part in header.lower().split(","):
        if match := _ACCEPTED.match(part):
            try:
                weights[match[1]] = float(match[2]) if match[2] else 1.0
            except ValueError:
                continue
    return next((name for name in (ZSTD, GZIP) if weights.get(name, 0.0) > 0.0), None)


def pack(data: bytes, encoding: str) -> bytes:
    if encoding == ZSTD:
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data)
    encoder = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WBITS)
    return encoder.compress(data) + encoder.flush()
