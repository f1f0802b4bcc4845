"""L1: bytes in this process, bounded in bytes, the least recently used dropped first.

A cache is never the truth. Called by the embedding cache and by the tiers (objects fetched from the bucket).
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import msgspec

ENTRY_OVERHEAD_BYTES = 200
"""What a key and a value cost beside their content: two bytes objects, a link of the ordered dict."""


class CacheStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the start, and what is held now."""

    hits: int
    misses: int
    evictions: int
    entries: int
    size_bytes: int
    limit_bytes: int


class ByteCache:
    """A least-recently-used cache of bytes with a bound in bytes, overhead included. Safe for any thread."""

    def __init__(self, limit_bytes: int) -> None:
        """``limit_bytes`` 0 holds nothing."""
        self.limit_bytes = limit_bytes
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._size_bytes = 0
        self._hits = self._misses = self._evictions = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        """The value, which becomes the most recently used, or None."""
        with self._lock:
            value = self._entries.get(key)
            if value is None:
                self._misses += 1
                return None
            self._hits += 1
            self._entries.move_to_end(key)
            return value

    def put(self, key: bytes, value: bytes) -> None:
        """Hold ``value``, dropping the least recently used; a value above the whole bound is not held."""
        with self._lock:
            self._drop(key)
            cost = _cost(key, value)
            if cost > self.limit_bytes:
                return
            self._entries[key] = value
            self._size_bytes += cost
            while self._size_bytes > self.limit_bytes:
                self._drop(next(iter(self._entries)))
                self._evictions += 1

    def delete(self, key: bytes) -> None:
        """Forget ``key``; no error when it is not held."""
        with self._lock:
            self._drop(key)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._size_bytes = 0

    def stats(self) -> CacheStats:
        with self._lock:
            return CacheStats(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                entries=len(self._entries),
                size_bytes=self._size_bytes,
                limit_bytes=self.limit_bytes,
            )

    def _drop(self, key: bytes) -> None:
        value = self._entries.pop(key, None)
        if value is not None:
            self._size_bytes -= _cost(key, value)


def _cost(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_OVERHEAD_BYTES
