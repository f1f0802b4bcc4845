"""A batch of row changes that is applied whole or not at all.

A batch knows column families by name and keys and values as opaque bytes; it owns no database handle, so that any
package may build one, inspect it in a test, and hand it to ``RowStore.commit``. Later operations on the same key win.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

OPERATION_OVERHEAD_BYTES = 12
"""What RocksDB adds to one operation in its log: tag, column family and two length prefixes."""


class Change(Enum):
    """What one operation of a batch does."""

    PUT = "put"
    DELETE = "delete"
    DELETE_RANGE = "delete_range"


class Operation(NamedTuple):
    """One change. ``value`` is the value of a PUT, the exclusive end key of a DELETE_RANGE, and empty for a DELETE."""

    change: Change
    family: str
    key: bytes
    value: bytes


class WriteBatch:
    """An ordered list of changes. Not safe for use by two threads at once."""

    __slots__ = ("operations", "size_bytes")

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.size_bytes = 0

    def put(self, family: str, key: bytes, value: bytes) -> WriteBatch:
        """Set ``key`` to ``value``."""
        return self._add(Change.PUT, family, key, value)

    def delete(self, family: str, key: bytes) -> WriteBatch:
        """Remove ``key``; a key that is not there is no error."""
        return self._add(Change.DELETE, family, key, b"")

    def delete_range(self, family: str, start: bytes, end: bytes) -> WriteBatch:
        """Remove every key in ``[start, end)``."""
        if end <= start:
            raise ValueError("delete_range: the end key must be greater than the start key")
        return self._add(Change.DELETE_RANGE, family, start, end)

    def extend(self, other: WriteBatch) -> WriteBatch:
        """Append the changes of ``other`` after these."""
        self.operations.extend(other.operations)
        self.size_bytes += other.size_bytes
        return self

    def _add(self, change: Change, family: str, key: bytes, value: bytes) -> WriteBatch:
        if not isinstance(key, bytes) or not isinstance(value, bytes):
            raise TypeError("keys and values of a row store are bytes")
        self.operations.append(Operation(change, family, key, value))
        self.size_bytes += len(key) + len(value) + OPERATION_OVERHEAD_BYTES
        return self

    def __len__(self) -> int:
        return len(self.operations)

    def __bool__(self) -> bool:
        return bool(self.operations)
