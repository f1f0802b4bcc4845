"""Layout of a node's row store: which bytes name what.

======== ============================================ ==========================================
family   key                                          value
======== ============================================ ==========================================
rows     shard u16 | namespace | 0 | kind u8 | id      encoded body (`model.rows`)
changes  shard u16 | sequence u64                      namespace | 0 | kind u8 | id
meta     ``N`` | shard u16 | namespace                 `NamespaceCounts`
meta     ``D`` | shard u16 | bucket u16                digest u64
meta     ``R`` | shard u16                             root digest u64: the sum of the shard's bucket digests
meta     ``T`` | shard u16 | bucket u16 | local key    `digest.term` of the row, u64
meta     ``X`` | shard u16 | expiry u64 | local key    empty: the document expires then (Unix seconds)
meta     ``G`` | shard u16 | wall u64 | local key      empty: the row is a tombstone of that time (milliseconds)
meta     ``C`` | shard u16                             rounds of tombstone collection (`cluster.rounds`)
meta     anything else                                 owned by the node (identity, epochs): small letters
======== ============================================ ==========================================

Big-endian, so that byte order is numeric order: one shard, one namespace or one kind is one contiguous range, and a shard is
dropped by deleting a few ranges. What a shard owns in ``meta`` begins with a capital, so that no such range can hold a key of
the node. ``changes`` is the shard's log of what was applied, in order: views and the bucket catch up from it. ``T`` lets a
repair compare one bucket without reading the shard, ``G`` finds old tombstones without reading it.
"""

from __future__ import annotations

import struct

from dakera_cluster.storage.rocks import prefix_end

ROWS = "rows"
CHANGES = "changes"
META = "meta"
HINTS = "hints"
FAMILIES = (ROWS, CHANGES, META, HINTS)

_SHARD = struct.Struct(">H")
_CHANGE = struct.Struct(">HQ")
_BUCKET = struct.Struct(">HH")


def local_key(namespace: str, kind: int, row_id: str) -> bytes:
    """A row's key without its shard: what ``changes`` holds and digests hash."""
    return b"%s\x00%c%s" % (namespace.encode(), kind, row_id.encode())


def row_key(shard: int, local: bytes) -> bytes:
    return _SHARD.pack(shard) + local


def shard_prefix(shard: int) -> bytes:
    return _SHARD.pack(shard)


def namespace_prefix(shard: int, namespace: str) -> bytes:
    return b"%s%s\x00" % (_SHARD.pack(shard), namespace.encode())


def kind_prefix(shard: int, namespace: str, kind: int) -> bytes:
    return b"%s%c" % (namespace_prefix(shard, namespace), kind)


def split_local(local: bytes) -> tuple[str, int, str]:
    """(namespace, kind, id) of a local key."""
    end = local.index(0)
    return local[:end].decode(), local[end + 1], local[end + 2 :].decode()


def change_key(shard: int, sequence: int) -> bytes:
    return _CHANGE.pack(shard, sequence)


def change_sequence(key: bytes) -> int:
    sequence: int = _CHANGE.unpack(key)[1]
    return sequence


def counts_key(shard: int, namespace: str) -> bytes:
    return b"N" + _SHARD.pack(shard) + namespace.encode()


def counts_prefix(shard: int) -> bytes:
    return b"N" + _SHARD.pack(shard)


def expiry_key(shard: int, expires_s: int, local: bytes) -> bytes:
    return b"X" + _CHANGE.pack(shard, expires_s) + local


def local_of_expiry_key(key: bytes) -> bytes:
    return key[1 + _CHANGE.size :]


def digest_key(shard: int, bucket: int) -> bytes:
    return b"D" + _BUCKET.pack(shard, bucket)


def digest_prefix(shard: int) -> bytes:
    return b"D" + _SHARD.pack(shard)


def bucket_of_digest_key(key: bytes) -> int:
    bucket: int = _BUCKET.unpack(key[1:])[1]
    return bucket


def root_key(shard: int) -> bytes:
    return b"R" + _SHARD.pack(shard)


def term_key(shard: int, bucket: int, local: bytes) -> bytes:
    return b"T" + _BUCKET.pack(shard, bucket) + local


def term_prefix(shard: int, bucket: int) -> bytes:
    return b"T" + _BUCKET.pack(shard, bucket)


def term_end(shard: int, bucket: int) -> bytes:
    """The least key above every term of the bucket."""
    end = prefix_end(term_prefix(shard, bucket))
    assert end is not None
    return end


def local_of_term_key(key: bytes) -> bytes:
    return key[1 + _BUCKET.size :]


def grave_key(shard: int, wall_ms: int, local: bytes) -> bytes:
    return b"G" + _CHANGE.pack(shard, wall_ms) + local


def local_of_grave_key(key: bytes) -> bytes:
    return key[1 + _CHANGE.size :]


def rounds_key(shard: int) -> bytes:
    return b"C" + _SHARD.pack(shard)


def shard_ranges(shard: int) -> list[tuple[str, bytes, bytes]]:
    """(family, start, end) of everything that a shard owns, its place in the change log included."""
    number = _SHARD.pack(shard)
    ranges = [(ROWS, number, shard_end(shard)), (CHANGES, number, shard_end(shard))]
    for letter in b"NDRTXGC":
        prefix = bytes([letter]) + number
        end = prefix_end(prefix)
        assert end is not None
        ranges.append((META, prefix, end))
    return ranges


def shard_end(shard: int) -> bytes:
    """The least key above every key that begins with the shard's number; for the last shard, above all two-byte numbers."""
    return prefix_end(_SHARD.pack(shard)) or b"\xff" * 64
