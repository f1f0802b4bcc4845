"""What this node durably knows of its own copies: which shards it holds, and whether it has all their rows.

A record says under which shard version a copy became what it is (`protocols.transfer`). It is written before what it
promises, so after a crash a half-fetched shard is never mistaken for a whole one. Called by the gate (may this replica vote
and answer?) and by the mover (what is left to do?).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.shardmap import ShardState
from dakera_cluster.protocols.transfer import Holding, Mode, serves, votes
from dakera_cluster.shard import keys
from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.rows import RowStore

PREFIX = b"hold/"

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Holding)


class Holdings:
    """Records of all shards of this node, cached."""

    def __init__(self, store: RowStore, node: NodeId) -> None:
        self._store = store
        self._node = node
        self._records: dict[ShardId, Holding] = {}
        for _, data in store.scan(keys.META, prefix=PREFIX):
            record = _DECODER.decode(data)
            self._records[record.shard] = record

    def get(self, shard: ShardId) -> Holding | None:
        return self._records.get(shard)

    def shards(self) -> list[ShardId]:
        """Shards of which this node has a record."""
        return sorted(self._records)

    def unknown(self, held: Iterable[ShardId]) -> int:
        """How many of these shards this node cannot speak for yet: nothing is noted of them, or their rows were lost and are
        being fetched. A shard that is merely joining does not count: others serve it."""
        return sum(self._is_open(shard) for shard in held)

    def _is_open(self, shard: ShardId) -> bool:
        record = self._records.get(shard)
        return record is None or (record.mode is Mode.REHYDRATE and not record.is_complete)

    async def put(self, *records: Holding) -> None:
        """Make records durable; they count when this returns."""
        batch = WriteBatch()
        for record in records:
            batch.put(keys.META, _key(record.shard), _ENCODER.encode(record))
        await self._store.commit(batch)
        self._records.update((record.shard, record) for record in records)

    async def forget(self, shard: ShardId) -> None:
        """Remove a record, after the rows are gone."""
        await self._store.commit(WriteBatch().delete(keys.META, _key(shard)))
        self._records.pop(shard, None)

    def votes(self, shard: ShardId, state: ShardState) -> bool:
        return votes(self._records.get(shard), state, self._node)

    def serves(self, shard: ShardId, state: ShardState) -> bool:
        return serves(self._records.get(shard), state, self._node)


def _key(shard: ShardId) -> bytes:
    return PREFIX + shard.to_bytes(4, "big")
