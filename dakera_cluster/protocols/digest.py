"""Order-independent digests of a replica's rows.

A shard's rows are spread over ``BUCKETS`` buckets by key; a bucket's digest is the sum, modulo 2^64, of a 64-bit hash of
every row (key and body). Replicas that hold the same rows have the same digests, whatever order they heard of them in,
and a change of one row costs one subtraction and one addition (Bellare and Micciancio, "A new paradigm for collision-free
hashing: incrementality at reduced cost", 1997; a sum rather than exclusive-or, which would let a row counted twice vanish).
The hash covers the body and not only the version: two merges can end with one version and different fields.

Called by `shard.replica` on every apply, and by repair (`reconcile`).
"""

from __future__ import annotations

from collections.abc import Mapping

import xxhash

BUCKETS = 256
_MASK = (1 << 64) - 1


def hash_of(key: bytes) -> int:
    """64-bit hash of a row's local key: it chooses the bucket (``hash % BUCKETS``) and seeds the row's terms."""
    return xxhash.xxh3_64_intdigest(key)


def bucket_of(key: bytes) -> int:
    """Bucket of a row's local key, 0 .. BUCKETS-1."""
    return hash_of(key) % BUCKETS


def term(key: bytes, body: bytes) -> int:
    """What one row adds to its bucket's digest."""
    return term_of(hash_of(key), body)


def term_of(key_hash: int, body: bytes) -> int:
    """`term` of a row whose key's hash is known."""
    return xxhash.xxh3_64_intdigest(body, seed=key_hash)


def update(digest: int, key: bytes, before: bytes | None, after: bytes | None) -> int:
    """The digest after a row's body changed from ``before`` to ``after``; None means the row is not there."""
    if before is not None:
        digest -= term(key, before)
    if after is not None:
        digest += term(key, after)
    return digest & _MASK


def root(buckets: Mapping[int, int]) -> int:
    """One number for a whole shard: the sum over its buckets, which is the sum over its rows."""
    return sum(buckets.values()) & _MASK


def differing(mine: Mapping[int, int], theirs: Mapping[int, int]) -> tuple[int, ...]:
    """Buckets whose digests differ, in order; a bucket that is not named is empty."""
    return tuple(
        bucket for bucket in sorted(mine.keys() | theirs.keys()) if mine.get(bucket, 0) != theirs.get(bucket, 0)
    )
