"""What recalls answer about documents, kept beside the view: most answers are about memories that others were about before, and
twenty keys of the row store cost more than the whole order of a pool.

A row is kept as the store had it, less what only indexes read, and forgotten when its document changes; a usage is replaced
by a younger one. Everything runs in the namespace's lane, where every change arrives after it was written: what is kept is
never older than what the view shows. Owned by the shard's NamespaceView, filled by `shard.recall`.
"""

from __future__ import annotations

import msgspec

KEPT_BYTES = 8 << 20
"""Of rows that one view keeps, about twenty thousand short memories; beyond it those that were kept first go first."""
BYTES_PER_ROW = 220
"""Of a kept row beside its body and usage."""


class KeptRow(msgspec.Struct, gc=False):
    """``body``: as by `memories.readable_in`. ``sequence``: place in the shard's change log up to which the
    usage was known."""

    body: bytes
    usage: bytes | None
    sequence: int

    @property
    def nbytes(self) -> int:
        return BYTES_PER_ROW + len(self.body) + (len(self.usage) if self.usage is not None else 0)


class KeptRows:
    """See the module. By slot."""

    def __init__(self, limit_bytes: int = KEPT_BYTES) -> None:
        self.nbytes = 0
        self._limit_bytes = limit_bytes
        self._rows: dict[int, KeptRow] = {}
        self.get = self._rows.get
        """The row of a slot, None when it is not kept."""

    def __len__(self) -> int:
        return len(self._rows)

    def keep(self, slot: int, row: KeptRow) -> None:
        """Keep what the store had for ``slot``."""
        self.forget(slot)
        self._rows[slot] = row
        self.nbytes += row.nbytes
        while self.nbytes > self._limit_bytes:
            self.forget(next(iter(self._rows)))

    def forget(self, slot: int) -> None:
        """The document of ``slot`` has changed or is gone."""
        row = self._rows.pop(slot, None)
        if row is not None:
            self.nbytes -= row.nbytes

    def used(self, slot: int, usage: bytes, sequence: int) -> None:
        """The usage of ``slot`` as of the change ``sequence``; one that is older than what is kept is passed over."""
        row = self._rows.get(slot)
        if row is not None and sequence > row.sequence:
            self.nbytes += len(usage) - len(row.usage or b"")
            row.usage, row.sequence = usage, sequence
