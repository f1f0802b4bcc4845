"""Numbers of tombstone collection, per shard and durable: what this replica confirmed, and what it forgot.

They decide whether a replica may hold rows that are dead without a trace (`tombstones.must_wipe`). A copy that was fetched
from others inherits: it has confirmed no more than the least of its sources, and may lack tombstones that any of them has
forgotten. A wipe erases the numbers together with the rows. Called by repair, mover and collector.
"""

from __future__ import annotations

import msgspec

from dakera_cluster.model.ids import ShardId
from dakera_cluster.protocols.tombstones import must_wipe
from dakera_cluster.shard import keys
from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.rows import ReadView, RowStore


class Round(msgspec.Struct, frozen=True, array_like=True):
    """Highest round confirmed, and highest round in which tombstones were dropped."""

    confirmed: int = 0
    collected: int = 0


NONE = Round()

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Round)


class Rounds:
    """The rounds of every shard of a node. Not cached: a wipe removes them behind this object."""

    def __init__(self, store: RowStore) -> None:
        self._store = store

    def get(self, shard: ShardId) -> Round:
        data = self._store.get(keys.META, keys.rounds_key(shard))
        return _DECODER.decode(data) if data is not None else NONE

    def must_wipe(self, shard: ShardId, peer_collected: int) -> bool:
        """Has anybody, this node's own sources included, forgotten more than this copy confirmed?"""
        mine = self.get(shard)
        return must_wipe(mine.confirmed, max(peer_collected, mine.collected))

    async def confirm(self, shard: ShardId, number: int) -> bool:
        """Note a confirmation; False, and nothing noted, when it is not above every earlier one."""

        def prepare(view: ReadView) -> tuple[WriteBatch, bool]:
            mine = _read(view, shard)
            if mine is not None and number <= mine.confirmed:
                return WriteBatch(), False
            return _write(shard, Round(number, mine.collected if mine is not None else 0)), True

        return await self._store.commit(prepare)

    async def collect(self, shard: ShardId, number: int) -> bool:
        """Note a collection before anything is dropped; False when the round is not the last one confirmed here."""

        def prepare(view: ReadView) -> tuple[WriteBatch, bool]:
            mine = _read(view, shard) or NONE
            if number != mine.confirmed:
                return WriteBatch(), False
            return _write(shard, Round(number, max(mine.collected, number))), True

        return await self._store.commit(prepare)

    async def inherit(self, shard: ShardId, theirs: Round) -> None:
        """Note that rows of this copy came from a replica with these numbers."""

        def prepare(view: ReadView) -> tuple[WriteBatch, None]:
            mine = _read(view, shard)
            if mine is None:
                return _write(shard, theirs), None
            both = Round(min(mine.confirmed, theirs.confirmed), max(mine.collected, theirs.collected))
            return WriteBatch() if both == mine else _write(shard, both), None

        await self._store.commit(prepare)


def _read(view: ReadView, shard: ShardId) -> Round | None:
    data = view.get(keys.META, keys.rounds_key(shard))
    return _DECODER.decode(data) if data is not None else None


def _write(shard: ShardId, value: Round) -> WriteBatch:
    return WriteBatch().put(keys.META, keys.rounds_key(shard), _ENCODER.encode(value))
