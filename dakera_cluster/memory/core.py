"""What every memory service stands on: rows in, rows out, embedding once, and the common checks.

A service turns a request into rows (resolved effects, never queries) and a write, or into a search and an answer. The
helpers here are the only places where a row is made from, or read into, fields. Called by the services only.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any

import msgspec
import numpy as np
import xxhash
from dateutil import parser as dates

from dakera_cluster.cluster.catalog import Catalog
from dakera_cluster.cluster.replicator import Replicator
from dakera_cluster.cluster.router import Router
from dakera_cluster.inference.encoding import Encoded
from dakera_cluster.inference.models import TextKind
from dakera_cluster.inference.service import Embedder, UnavailableEmbedder
from dakera_cluster.memory.events import EventBus
from dakera_cluster.memory.requests import MAX_TOP_K
from dakera_cluster.model.errors import EmptyVectorError, InvalidRequestError, NamespaceNotFoundError
from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.ids import SESSIONS_NAMESPACE, agent_namespace, agent_of, check_id, check_namespace
from dakera_cluster.model.memories import Field, Memory, MemoryType, memory_of, shown_in, shown_of
from dakera_cluster.model.rows import (
    Document,
    Kind,
    Row,
    Usage,
    decode_document,
    decode_usage,
    delete_document,
    delete_usage,
    patch_document,
    put_document,
)
from dakera_cluster.protocols.quorum import ReadLevel
from dakera_cluster.retrieval import writing
from dakera_cluster.shard.ops import Hit, Order, Select, Selected, Where

EMBEDDED_FIELDS = (Field.VECTOR, Field.TOKENS, Field.PASSAGES, Field.MODEL)
SURELY_ONE_PASSAGE_CHARS = 200
"""Texts up to this length are not cut: tokenising them first would cost more than it could find."""
ROWS_PER_WRITE = 512
PAGE = 1_000
MAX_METADATA_BYTES = 256 * 1024
NO_ACCESS = (0, 0)
"""`Usage.totals` of a memory that was never recalled."""
_METADATA = msgspec.msgpack.Encoder()


class MemorySettings(msgspec.Struct, frozen=True):
    """Defaults of the memory services; times in seconds."""

    rrf_k: int = 60
    bm25_enabled: bool = True


class Core:
    """The services' shared dependencies and helpers."""

    def __init__(
        self,
        router: Router,
        replicator: Replicator,
        catalog: Catalog,
        embedder: Embedder | UnavailableEmbedder,
        now_ms: Callable[[], int],
        settings: MemorySettings,
        events: EventBus,
    ) -> None:
        self.router = router
        self.replicator = replicator
        self.catalog = catalog
        self.embedder = embedder
        self.now_ms = now_ms
        self.settings = settings
        self.events = events
        self.pieces = writing.PieceRules(embedder.pieces)

    @property
    def now_s(self) -> int:
        return self.now_ms() // 1000

    async def put(self, namespace: str, documents: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Write whole documents, replacing what has their ids."""
        await self._write(
            len(documents),
            lambda stamp, some: [Row(namespace, Kind.DOCUMENT, i, put_document(stamp, f)) for i, f in documents[some]],
        )

    async def patch(self, namespace: str, changes: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Write fields of documents; None clears a field."""
        await self._write(
            len(changes),
            lambda stamp, some: [Row(namespace, Kind.DOCUMENT, i, patch_document(stamp, f)) for i, f in changes[some]],
        )

    async def delete(self, namespace: str, ids: Sequence[str]) -> None:
        """Write tombstones for documents and what is known of their use."""

        def build(stamp: Stamp, some: slice) -> list[Row]:
            body, usage = delete_document(stamp), delete_usage(stamp)
            kinds = ((Kind.DOCUMENT, body), (Kind.USAGE, usage))
            return [Row(namespace, kind, i, dead) for i in ids[some] for kind, dead in kinds]

        await self._write(len(ids), build)

    async def _write(self, count: int, build: Callable[[Stamp, slice], list[Row]]) -> None:
        for start in range(0, count, ROWS_PER_WRITE):
            some = slice(start, start + ROWS_PER_WRITE)
            await self.replicator.write(partial(_build_some, build, some))

    async def documents(
        self, namespace: str, ids: Sequence[str], level: ReadLevel | None = None
    ) -> dict[str, Document]:
        """id -> document, of those that live and have not expired. ``level``: this read's own, over the request's."""
        found = await self.router.read(namespace, Kind.DOCUMENT, ids, level)
        decoded = {row_id: decode_document(body) for row_id, body in found.items()}
        now_s = self.now_s
        return {i: d for i, d in decoded.items() if d.alive and not 0 < (d.fields.get("expires") or 0) <= now_s}

    async def latest(self, namespace: str, ids: Sequence[str]) -> dict[str, Document]:
        """`documents` as every acknowledged write has left them, for a write that depends on what is there: a replica that
        lags, with a full disk perhaps, must not answer "nothing to forget", nor have its old state written back."""
        return await self.documents(namespace, ids, ReadLevel.STRONG)

    async def usages(self, namespace: str, ids: Sequence[str]) -> dict[str, Usage]:
        found = await self.router.read(namespace, Kind.USAGE, ids)
        return {row_id: decode_usage(body) for row_id, body in found.items()}

    async def select(
        self,
        namespace: str,
        where: Where | None,
        *,
        order: Order = Order.ID,
        limit: int,
        offset: int = 0,
        after: str | None = None,
        bodies: bool = True,
        usage: bool = False,
    ) -> Selected:
        request = Select(0, 0, namespace, self.now_ms(), where, order, limit, offset, after, bodies, usage)
        return await self.router.select(request)

    async def every_id(self, namespace: str, where: Where | None) -> list[str]:
        """Ids of all documents that match, by pages."""
        ids: list[str] = []
        after: str | None = None
        while True:
            page = await self.select(namespace, where, limit=PAGE, after=after, bodies=False)
            ids.extend(page.ids)
            if len(page.ids) < PAGE:
                return ids
            after = page.ids[-1]

    async def known(self, namespace: str) -> bool:
        """Whether anything was ever stored in, or configured for, the namespace."""
        if await self.catalog.lookup(namespace) is not None:
            return True
        if any(part.known for part in await self.router.describe(namespace)):
            return True
        agent = agent_of(namespace)
        if agent is None:
            return False
        page = await self.select(SESSIONS_NAMESPACE, Where(filter={"agent": agent}), limit=0)
        return page.matched > 0

    async def require(self, namespace: str) -> None:
        """Raise NamespaceNotFoundError unless the namespace is known."""
        if not await self.known(namespace):
            agent = agent_of(namespace)
            what = f"agent_id: agent {agent!r}" if agent is not None else f"namespace: namespace {namespace!r}"
            raise NamespaceNotFoundError(f"{what} does not exist", details={"namespace": namespace})

    def embed(self, texts: Sequence[str], kind: TextKind, *, tokens: bool = False) -> Awaitable[Encoded]:
        return self.embedder.embed(texts, kind, tokens)

    async def embed_documents(self, documents: Sequence[dict[str, Any]]) -> None:
        """Set the embedded fields of memories from their text and metadata, in one pass over all their passages.

        Raises ModelUnavailableError, OverloadedError or QueryTimeoutError; then nothing is set.
        """
        passages = await self._passages(documents)
        encoded = await self.embed([text for texts in passages for text in texts], TextKind.PASSAGE, tokens=True)
        at = 0
        for fields, texts in zip(documents, passages, strict=True):
            part = Encoded(encoded.texts[at : at + len(texts)], encoded.dimension)
            fields.update(writing.row_fields(part, self.pieces))
            fields[Field.MODEL] = self.embedder.name
            at += len(texts)

    async def _passages(self, documents: Sequence[dict[str, Any]]) -> list[list[str]]:
        """The texts to embed of each document; the long ones of a batch are cut together, off the event loop."""
        embedder = self.embedder
        ranges = _one_passage if isinstance(embedder, UnavailableEmbedder) else embedder.passages

        def cut(fields: dict[str, Any]) -> list[str]:
            text = fields[Field.TEXT]
            some = ranges if len(text) > SURELY_ONE_PASSAGE_CHARS else _one_passage
            return writing.passages(text, fields.get(Field.METADATA), some)

        def cut_all() -> list[list[str]]:
            return [cut(fields) for fields in documents]

        if all(len(fields[Field.TEXT]) <= SURELY_ONE_PASSAGE_CHARS for fields in documents):
            return cut_all()
        return await asyncio.to_thread(cut_all)

    def memory(self, agent_id: str, row_id: str, document: Document, usage: Usage | None) -> Memory:
        totals = usage.totals() if usage is not None else NO_ACCESS
        return memory_of(row_id, agent_id, agent_namespace(agent_id), shown_of(document.fields), *totals)

    def memories_of_hits(self, agent_id: str, hits: Sequence[Hit]) -> list[Memory]:
        namespace = agent_namespace(agent_id)
        return [_memory_in(agent_id, namespace, hit.id, hit.body, hit.usage) for hit in hits]

    def memories_of(self, agent_id: str, page: Selected) -> list[Memory]:
        namespace = agent_namespace(agent_id)
        usages = page.usages or [None] * len(page.ids)
        return [
            _memory_in(agent_id, namespace, row_id, body, usage)
            for row_id, body, usage in zip(page.ids, page.bodies, usages, strict=True)
        ]


def _memory_in(agent_id: str, namespace: str, row_id: str, body: bytes, usage: bytes | None) -> Memory:
    count, last_access_ms = decode_usage(usage).totals() if usage is not None else NO_ACCESS
    return memory_of(row_id, agent_id, namespace, shown_in(body), count, last_access_ms)


def _build_some(build: Callable[[Stamp, slice], list[Row]], some: slice, stamp: Stamp) -> list[Row]:
    return build(stamp, some)


def _one_passage(text: str, overlap_tokens: int, max_tokens: int) -> list[tuple[int, int]]:
    return [(0, len(text))]


def agent_tag(agent_id: str) -> str:
    """Eight hex digits that ids of an agent's memories and sessions carry, so that an id alone leads to the agent."""
    return f"{xxhash.xxh32_intdigest(agent_id.encode()):08x}"


def new_id(prefix: str, agent_id: str, now_ms: int, separator: str = "_") -> str:
    """A fresh id: prefix, agent tag, time in milliseconds (ids of an agent sort by creation) and 40 random bits."""
    return f"{prefix}_{agent_tag(agent_id)}{separator}{now_ms:011x}{secrets.token_hex(5)}"


@lru_cache(maxsize=1024)
def agent_space(agent_id: str) -> str:
    """The checked namespace of an agent. Raises InvalidRequestError naming ``agent_id``."""
    check_id(agent_id, "agent_id", limit=200)
    return agent_namespace(agent_id)


def vector_space(namespace: str) -> str:
    return check_namespace(namespace)


def check_range(value: float | None, field: str, low: float, high: float) -> None:
    """Raise InvalidRequestError unless ``value`` is None or lies in [low, high]."""
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise InvalidRequestError(f"expected a number from {low:g} to {high:g}, got {value}", field=field)


def check_top_k(value: int | None, default: int, field: str = "top_k") -> int:
    if value is None:
        return default
    if not 1 <= value <= MAX_TOP_K:
        raise InvalidRequestError(f"expected an integer from 1 to {MAX_TOP_K}, got {value}", field=field)
    return value


def check_type(value: str | None, field: str = "memory_type") -> str | None:
    if value is not None and value not in tuple(MemoryType):
        raise InvalidRequestError(f"expected one of {', '.join(MemoryType)}, got {value!r}", field=field)
    return value


def check_choice(value: str | None, choices: Sequence[str], field: str) -> str | None:
    if value is not None and value not in choices:
        raise InvalidRequestError(f"expected one of {', '.join(choices)}, got {value!r}", field=field)
    return value


def check_metadata(value: dict[str, Any] | None, field: str = "metadata") -> dict[str, Any] | None:
    if value:
        try:
            size = len(_METADATA.encode(value))
        except (OverflowError, UnicodeEncodeError):
            raise InvalidRequestError("holds a number or text that cannot be stored", field=field) from None
        if size > MAX_METADATA_BYTES:
            raise InvalidRequestError(f"must be at most {MAX_METADATA_BYTES} bytes, got {size}", field=field)
    return value


def check_vector(values: Sequence[float], field: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32[d] of finite numbers. Raises EmptyVectorError or InvalidRequestError."""
    if not len(values):
        raise EmptyVectorError("must have at least one number", field=field)
    with np.errstate(over="ignore"):
        vector = np.asarray(values, dtype=np.float32)
    if not np.isfinite(vector).all():
        raise InvalidRequestError("every number must be finite", field=field)
    return vector


def parse_time(value: float | str | None, field: str) -> float | None:
    """Unix seconds of a number or an ISO-8601 text. Raises InvalidRequestError."""
    if value is None:
        return None
    if isinstance(value, int | float):
        check_range(value, field, -62_135_596_800, 253_402_300_799)
        return float(value)
    try:
        moment = dates.isoparse(value)
    except (ValueError, OverflowError):
        raise InvalidRequestError(
            f"expected Unix seconds or an ISO-8601 time, got {value[:64]!r}", field=field
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
