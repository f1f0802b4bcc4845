"""The views of one namespace on one shard: ids, attributes, vectors and full text, all derived from rows.

A view is brought up to date by the changes an apply returned, in any order and any number of times (each slot remembers
the sequence it reflects), so replaying a stretch of the change log is harmless; that is how a snapshot catches up. It may
be dropped and rebuilt from rows whenever it pays. Everything runs in the namespace's lane. Called by `shard.views`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

import msgspec
import numpy as np

from dakera_cluster.index.columns import Columns
from dakera_cluster.index.flat import Metric
from dakera_cluster.index.fulltext import FullTextIndex
from dakera_cluster.index.vectors import FLAT_THRESHOLD_ROWS, MIN_APPROXIMATE_ROWS, IndexType, VectorIndex
from dakera_cluster.model import filters
from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, decode_document, decode_usage
from dakera_cluster.native.importance import Importance
from dakera_cluster.retrieval.evidence import Evidence
from dakera_cluster.shard.attributes import Attributes
from dakera_cluster.shard.kept_rows import KeptRow, KeptRows
from dakera_cluster.shard.ops import Where
from dakera_cluster.shard.records import record_of, vector_of
from dakera_cluster.shard.replica import Change
from dakera_cluster.storage import snapshots

DEAD_BEFORE_REBUILD = 1_000
DEAD_SHARE_BEFORE_REBUILD = 0.5
BULK_DOCUMENTS = 512
"""Documents handed to the indexes at once: bounds the memory of a rebuild."""
BYTES_PER_ID = 180
USAGE_WORTH = 0.1
"""What catching up with a changed usage costs, in changed documents: two numbers against everything the indexes hold."""

Mask = np.ndarray[Any, np.dtype[np.bool_]]


class RowReader(Protocol):
    """The rows a view is derived from."""

    def scan(self, kind: int) -> Iterator[tuple[str, bytes]]:
        """(id, body) of every row of a kind, in id order."""
        ...

    def body(self, row_id: str) -> bytes | None:
        """Body of one document."""
        ...


class ViewSettings(msgspec.Struct, frozen=True):
    """How a namespace is indexed. AUTO switches from flat to HNSW at ``flat_threshold`` vectors."""

    metric: Metric = Metric.COSINE
    index_type: IndexType = IndexType.AUTO
    flat_threshold: int = FLAT_THRESHOLD_ROWS
    bm25_k1: float = 1.2
    bm25_b: float = 0.75


class NamespaceView:
    """Slots are given in order of arrival; a document that comes back after a delete gets a new one."""

    def __init__(self, namespace: str, settings: ViewSettings, rows: RowReader) -> None:
        self.namespace = namespace
        self.settings = settings
        self.sequence = 0
        self.snapshot_sequence = 0
        """``sequence`` of the last snapshot or rebuild."""
        self.slots: dict[str, int] = {}
        self.ids: list[str] = []
        self.attributes = Attributes()
        self.text = FullTextIndex(settings.bm25_k1, settings.bm25_b, self._text_of)
        self.vectors: VectorIndex | None = None
        self.evidence = Evidence()
        self.kept = KeptRows()
        self.foreign_vectors = 0
        self.changes_since_snapshot = 0.0
        self.changes_since_weighed = 0.0
        self._documents_changed = 0
        self._settled = -1
        self._importance: Importance | None = None
        self._rows = rows
        self._columns = Columns(self._column_values)

    def __len__(self) -> int:
        return self.attributes.live

    def rebuild(self, sequence: int) -> None:
        """Fill an empty view from the rows; ``sequence`` is the log position the scan began at."""
        pending: list[tuple[str, bytes]] = []
        for item in self._rows.scan(Kind.DOCUMENT):
            pending.append(item)
            if len(pending) == BULK_DOCUMENTS:
                self._put_documents(((row_id, body, sequence) for row_id, body in pending))
                pending.clear()
        self._put_documents(((row_id, body, sequence) for row_id, body in pending))
        usages = iter(self._rows.scan(Kind.USAGE))
        while some := list(islice(usages, BULK_DOCUMENTS)):
            self._put_usages((row_id, body, sequence) for row_id, body in some)
        self.sequence = self.snapshot_sequence = sequence

    def apply(self, changes: Iterable[Change]) -> None:
        """Reflect changed rows; a change older than what a slot already reflects is passed over."""
        documents: dict[str, tuple[str, bytes, int]] = {}
        usages: list[tuple[str, bytes, int]] = []
        newest = self.sequence
        for change in changes:
            if change.sequence > newest:
                newest = change.sequence
            if change.kind == Kind.DOCUMENT:
                documents[change.id] = (change.id, change.body, change.sequence)
            elif change.kind == Kind.USAGE:
                usages.append((change.id, change.body, change.sequence))
        self.sequence = newest
        worth = len(documents) + USAGE_WORTH * len(usages)
        self.changes_since_snapshot += worth
        self.changes_since_weighed += worth
        if documents:
            self._documents_changed += 1
            self._put_documents(documents.values())
        # After the documents: what is stored and used in one stretch of the log has a slot by now.
        self._put_usages(usages)

    def _put_documents(self, documents: Iterable[tuple[str, bytes, int]]) -> None:
        texts: list[tuple[int, str]] = []
        embedded: list[tuple[int, np.ndarray[Any, Any]]] = []
        for row_id, body, sequence in documents:
            slot = self.slots.get(row_id)
            if slot is not None:
                self.kept.forget(slot)
                if self.attributes.sequence[slot] > sequence:
                    continue
            document = decode_document(body)
            if not document.alive:
                self._remove(row_id, slot)
                continue
            slot = self._slot_of(row_id)
            fields = document.fields
            self.attributes.set(slot, fields)
            self.attributes.sequence[slot] = sequence
            self.evidence.put(slot, row_id, fields)
            if self._columns.fields:
                self._columns.set(slot, record_of(self.namespace, row_id, fields))
            text = fields.get(Field.TEXT)
            if text:
                texts.append((slot, text))
            else:
                self.text.remove(slot)
            vector = vector_of(fields)
            if vector is not None:
                embedded.append((slot, vector))
            elif self.vectors is not None:
                self.vectors.remove(np.array([slot]))
        if texts:
            self.text.add_many([slot for slot, _ in texts], [text for _, text in texts])
        self._add_vectors(embedded)

    def _add_vectors(self, embedded: list[tuple[int, np.ndarray[Any, Any]]]) -> None:
        if not embedded:
            return
        if self.vectors is None:
            self.vectors = self._new_vectors(len(embedded[0][1]))
        # A namespace has one dimension; vectors of another come from a model that was replaced and cannot be compared.
        fitting = [(slot, vector) for slot, vector in embedded if len(vector) == self.vectors.dimension]
        self.foreign_vectors += len(embedded) - len(fitting)
        if fitting:
            self.vectors.add(np.array([slot for slot, _ in fitting]), np.stack([vector for _, vector in fitting]))

    def _new_vectors(self, dimension: int) -> VectorIndex:
        s = self.settings
        return VectorIndex(dimension, s.metric, s.index_type, s.flat_threshold)

    def _put_usages(self, usages: Iterable[tuple[str, bytes, int]]) -> None:
        """Take in the access counts of the documents that are here; of several of one document the last stands."""
        accesses, accessed_ms, slots = self.attributes.accesses, self.attributes.accessed_ms, self.slots
        for row_id, body, sequence in usages:
            slot = slots.get(row_id)
            if slot is not None:
                self.kept.used(slot, body, sequence)
                accesses[slot], accessed_ms[slot] = decode_usage(body).totals()

    def keep(self, slot: int, row: KeptRow) -> None:
        """Keep what the store had for ``slot``, to be answered again."""
        self.kept.keep(slot, row)
        self.changes_since_weighed += USAGE_WORTH

    def _slot_of(self, row_id: str) -> int:
        slot = self.slots.get(row_id)
        if slot is None:
            slot = self.slots[row_id] = len(self.ids)
            self.ids.append(row_id)
            self.attributes.grow(len(self.ids))
        return slot

    def _remove(self, row_id: str, slot: int | None) -> None:
        if slot is None:
            return
        del self.slots[row_id]
        self.attributes.kill(slot)
        self.text.remove(slot)
        self.evidence.remove(slot)
        self._columns.remove(slot)
        if self.vectors is not None:
            self.vectors.remove(np.array([slot]))

    def _column_values(self, field: str) -> Iterator[tuple[int, Any]]:
        for row_id, body in self._rows.scan(Kind.DOCUMENT):
            slot = self.slots.get(row_id)
            if slot is not None:
                value = filters.resolve(record_of(self.namespace, row_id, decode_document(body).fields), field)
                if value is not filters.MISSING:
                    yield slot, value

    def _text_of(self, slot: int) -> str | None:
        body = self._rows.body(self.ids[slot])
        text: str | None = decode_document(body).fields.get(Field.TEXT) if body is not None else None
        return text

    @property
    def worn(self) -> bool:
        """True when so many slots are dead that a rebuild pays."""
        dead = len(self.ids) - len(self)
        return dead > DEAD_BEFORE_REBUILD and dead > DEAD_SHARE_BEFORE_REBUILD * len(self.ids)

    def mask(self, where: Where | None, now_ms: int) -> Mask:
        """Mask over slots of the visible documents that match."""
        mask: Mask = self.attributes.visible(now_ms)
        if where is None:
            return mask
        if where.conditions is not None:
            mask = mask & self.attributes.matching(where.conditions, self.slots)
        if where.filter:
            mask = mask & self._columns.mask(filters.parse(where.filter), self.attributes.size)
        return mask

    def maintenance(self) -> bool:
        """One bounded step of background work on the indexes; True when more remains."""
        vectors = self.vectors is not None and self.vectors.maintenance()
        return self.text.maintenance() or self.evidence.maintenance() or vectors

    @property
    def has_maintenance(self) -> bool:
        """Whether a step of `maintenance` or `settle` may find work, now or after further changes."""
        return self.text.segments > 1 or (self.vectors is not None and len(self.vectors) >= MIN_APPROXIMATE_ROWS)

    def settle(self) -> bool:
        """Make a view whose documents have not changed since the last call its quickest; False when they have. It is used
        all the while it is searched: access counts do not put this off."""
        if self._settled != self._documents_changed:
            self._settled = self._documents_changed
            return False
        if self.text.segments > 1:
            self.text.compact()
        return True

    def allowed(self, where: Where | None, now_ms: int) -> Mask | None:
        """`mask`, or None when every live document is allowed: the indexes hold no dead ones."""
        if where is None and not self.attributes.expiring:
            return None
        return self.mask(where, now_ms)

    @property
    def importance(self) -> Importance:
        """The importance of every document, and its times; good until the next change."""
        own = self.attributes.importance, self.attributes.created, self.attributes.accessed_ms
        if self._importance is None or not self._importance.is_of(*own):
            self._importance = Importance(*own)
        return self._importance

    @property
    def memory_bytes(self) -> int:
        """Estimate of the resident memory of the view."""
        vectors = self.vectors.memory_bytes if self.vectors is not None else 0
        ids = len(self.ids) * BYTES_PER_ID
        views = self.text.memory_bytes + self.evidence.memory_bytes + self.kept.nbytes
        return int(vectors + views + self.attributes.memory_bytes + self._columns.memory_bytes + ids)

    def dump(self) -> tuple[dict[str, Any], dict[str, snapshots.Parts]]:
        """(meta, sections) of a snapshot; `load` turns them back into a view. The sections refer to the view's own arrays:
        they must be written before it changes."""
        numbers, strings = self.attributes.dump()
        dead = [slot for slot, row_id in enumerate(self.ids) if self.slots.get(row_id) != slot]
        sections: dict[str, snapshots.Parts] = {
            "ids": msgspec.msgpack.encode(self.ids),
            "dead": msgspec.msgpack.encode(dead),
            "strings": strings,
            "text": self.text.dump_parts(),
            "evidence": self.evidence.dump_parts(),
            **{f"column.{name}": values.data.cast("B") for name, values in numbers.items()},
        }
        if self.vectors is not None:
            sections["vectors"] = self.vectors.dump_parts()
        dtypes = {name: values.dtype.str for name, values in numbers.items()}
        meta = {
            "namespace": self.namespace,
            "sequence": self.sequence,
            "settings": msgspec.to_builtins(self.settings),
            "dtypes": dtypes,
            "foreign": self.foreign_vectors,
        }
        return meta, sections

    @classmethod
    def load(
        cls,
        namespace: str,
        settings: ViewSettings,
        rows: RowReader,
        meta: dict[str, Any],
        sections: Mapping[str, Any],
    ) -> NamespaceView:
        """The view a snapshot holds. Raises CorruptionError, KeyError or msgspec.ValidationError when it is not whole."""
        self = cls(namespace, settings, rows)
        self.ids = msgspec.msgpack.decode(sections["ids"], type=list[str])
        dead = set(msgspec.msgpack.decode(sections["dead"], type=list[int]))
        self.slots = {row_id: slot for slot, row_id in enumerate(self.ids) if slot not in dead}
        numbers = {
            name: np.frombuffer(sections[f"column.{name}"], dtype=dtype) for name, dtype in meta["dtypes"].items()
        }
        self.attributes = Attributes.load(numbers, sections["strings"])
        # A copy of the only section whose arrays are kept as they lie: one view of it would keep the whole file mapped.
        self.text = FullTextIndex.load(bytes(sections["text"]), settings.bm25_k1, settings.bm25_b, self._text_of)
        self.evidence = Evidence.load(sections["evidence"])
        if "vectors" in sections:
            self.vectors = VectorIndex.load(sections["vectors"], settings.flat_threshold)
        self.foreign_vectors = meta["foreign"]
        self.sequence = self.snapshot_sequence = meta["sequence"]
        return self
