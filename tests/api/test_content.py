"""Packing and unpacking: right, bounded, and deaf to bombs."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
import zstandard

from dakera_cluster.api.content import accepted_encoding, gunzip, pack, unzstd
from dakera_cluster.model.errors import InvalidRequestError, PayloadTooLargeError

TEXT = b"memory " * 10_000
LIMIT = 1_000_000


@pytest.mark.parametrize(("encoding", "unpack"), [("gzip", gunzip), ("zstd", unzstd)])
def test_what_is_packed_unpacks(encoding: str, unpack: object) -> None:
    packed = pack(TEXT, encoding)
    assert len(packed) < len(TEXT) / 10
    assert unpack(packed, LIMIT) == TEXT  # type: ignore[operator]


def test_joined_members_and_frames_unpack_whole() -> None:
    assert gunzip(gzip.compress(b"one ") + gzip.compress(b"two"), LIMIT) == b"one two"
    frames = zstandard.compress(b"one ") + zstandard.compress(b"two")
    assert unzstd(frames, LIMIT) == b"one two"


def test_the_limit_is_exact() -> None:
    for packed, unpack in ((gzip.compress(TEXT), gunzip), (zstandard.compress(TEXT), unzstd)):
        assert unpack(packed, len(TEXT)) == TEXT
        with pytest.raises(PayloadTooLargeError):
            unpack(packed, len(TEXT) - 1)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_bomb_is_refused_without_unpacking_it(kind: str) -> None:
    size = 256 * 1024 * 1024
    if kind == "gzip":
        encoder = zlib.compressobj(9, zlib.DEFLATED, 31)
        bomb = b"".join(encoder.compress(bytes(1 << 20)) for _ in range(size >> 20)) + encoder.flush()
    else:
        compressor = zstandard.ZstdCompressor().compressobj()
        bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(size >> 20)) + compressor.flush()
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLargeError):
            (gunzip if kind == "gzip" else unzstd)(bomb, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 8 * LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("damaged", [b"no", b"\x1f\x8b\x08", gzip.compress(TEXT)[:-9], gzip.compress(TEXT)[:50]])
def test_damaged_gzip_is_the_clients_fault(damaged: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="body"):
        gunzip(damaged, LIMIT)


@pytest.mark.parametrize("damaged", [b"no", zstandard.compress(TEXT)[:20], zstandard.compress(TEXT)[:-3]])
def test_damaged_zstd_is_the_clients_fault(damaged: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="body"):
        unzstd(damaged, LIMIT)


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("", None),
        ("gzip, deflate", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("zstd;q=0, gzip;q=0.5", "gzip"),
        ("gzip;q=0", None),
        ("GZIP", "gzip"),
        ("br", None),
        ("*", None),
        ("gzip;q=oops", "gzip"),
        (";;;,,,", None),
    ],
)
def test_accept_encoding_is_read(header: str, encoding: str | None) -> None:
    assert accepted_encoding(header) == encoding
