"""Layout of a node's row store: which bytes name what.

======== ============================================ ==========================================
family   key                                          value
======== ============================================ ==========================================
rows     shard u16 | namespace | 0 | kind u8 | id      encoded body (`model.rows`)
changes  shard u16 | sequence u64                      namespace | 0 | kind u8 | id
meta     ``n`` | shard u16 | namespace                 `NamespaceCounts`
meta     ``d`` | shard u16 | bucket u16                digest u64
meta     ``x`` | shard u16 | expiry u64 | local key      empty: the document expires then (Unix seconds)
meta     anything else                                 owned by the node (identity, epochs)
======== ============================================ ==========================================

Big-endian, so that byte order is numeric order: one shard, one namespace or one kind is one contiguous range. ``changes``
is the shard's log of what was applied, in order: views and the bucket catch up from it.
"""

from __future__ import annotations

import struct

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
    return b"n" + _SHARD.pack(shard) + namespace.encode()


def counts_prefix(shard: int) -> bytes:
    return b"n" + _SHARD.pack(shard)


def expiry_key(shard: int, expires_s: int, local: bytes) -> bytes:
    return b"x" + _CHANGE.pack(shard, expires_s) + local


def local_of_expiry_key(key: bytes) -> bytes:
    return key[1 + _CHANGE.size :]


def digest_key(shard: int, bucket: int) -> bytes:
    return b"d" + _BUCKET.pack(shard, bucket)


def digest_prefix(shard: int) -> bytes:
    return b"d" + _SHARD.pack(shard)


def bucket_of_digest_key(key: bytes) -> int:
    bucket: int = _BUCKET.unpack(key[1:])[1]
    return bucket
