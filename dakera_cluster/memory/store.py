"""Memories one by one: store, get, update, forget, list.

A store answers when the memory is durable and found by the next recall on any path. With an id of the client's choosing a
repeated store is a replacement, so a retry after an unsure answer is safe. A node without an embedding model stores the
text alone and says so in a warning: keyword recall finds it. Called by the API.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from dakera_cluster.memory.core import (
    EMBEDDED_FIELDS,
    Core,
    agent_space,
    agent_tag,
    check_metadata,
    check_range,
    check_type,
    check_vector,
    new_id,
    parse_time,
)
from dakera_cluster.memory.requests import MAX_BATCH, BatchFilter, ForgetQuery, MemoryChanges, StoreItem
from dakera_cluster.memory.services import BatchRecalled, Importance, Stored
from dakera_cluster.model.errors import (
    DimensionMismatchError,
    InvalidRequestError,
    ModelUnavailableError,
    ServiceUnavailableError,
    VectorNotFoundError,
)
from dakera_cluster.model.hlc import NEVER
from dakera_cluster.model.ids import AGENT_PREFIX, agent_namespace, check_id
from dakera_cluster.model.keys import Access
from dakera_cluster.model.memories import (
    DEFAULT_IMPORTANCE,
    MAX_CONTENT_CHARS,
    MAX_TAG_CHARS,
    MAX_TAGS,
    Field,
    Memory,
    MemoryType,
    Signal,
    memory_fields,
)
from dakera_cluster.model.rows import Document
from dakera_cluster.protocols.quorum import ReadLevel
from dakera_cluster.shard.ops import Conditions, Order, Where
from dakera_cluster.shard.records import vector_bytes

MAX_LIST = 1_000
MAX_OFFSET = 100_000
MAX_TTL_S = 100 * 365 * 86_400


class Memories:
    """Implements `services.MemoryService`."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def store(self, agent_id: str, items: list[StoreItem]) -> Stored:
        """Store 1 to MAX_BATCH memories. Raises InvalidRequestError (nothing stored), or what writing raises."""
        namespace = agent_space(agent_id)
        if not 1 <= len(items) <= MAX_BATCH:
            raise InvalidRequestError(f"expected 1 to {MAX_BATCH} memories, got {len(items)}", field="memories")
        single = len(items) == 1
        fields = [self._fields(item, "" if single else f"memories[{i}].") for i, item in enumerate(items)]
        now_ms = self._core.now_ms()
        ids = [item.id if item.id is not None else new_id("mem", agent_id, now_ms) for item in items]
        started = time.perf_counter()
        warnings = await self._embed(items, fields)
        spent_ms = int((time.perf_counter() - started) * 1000)
        # Of two items with one id the later wins, as it would in two calls.
        await self._core.put(namespace, list(dict(zip(ids, fields, strict=True)).items()))
        memories = [self._core.memory(agent_id, i, _as_document(f), None) for i, f in zip(ids, fields, strict=True)]
        self._core.events.stored(agent_id, memories)
        return Stored(memories, spent_ms, warnings)

    def _fields(self, item: StoreItem, path: str) -> dict[str, Any]:
        now_s = self._core.now_s
        check_content(item.content, f"{path}content")
        check_range(item.importance, f"{path}importance", 0, 1)
        check_type(item.memory_type, f"{path}memory_type")
        check_tags(item.tags, f"{path}tags")
        check_metadata(item.metadata, f"{path}metadata")
        for value, name in ((item.id, "id"), (item.session_id, "session_id")):
            if value is not None:
                check_id(value, f"{path}{name}")
        if item.ttl_seconds is not None and not 1 <= item.ttl_seconds <= MAX_TTL_S:
            raise InvalidRequestError(f"expected 1 to {MAX_TTL_S} seconds", field=f"{path}ttl_seconds")
        expires = item.expires_at
        if expires is not None and not now_s < expires <= now_s + MAX_TTL_S:
            raise InvalidRequestError("expected a Unix time in seconds in the future", field=f"{path}expires_at")
        if expires is None and item.ttl_seconds is not None:
            expires = now_s + item.ttl_seconds
        return memory_fields(
            content=item.content,
            memory_type=item.memory_type or MemoryType.EPISODIC.value,
            importance=DEFAULT_IMPORTANCE if item.importance is None else float(item.importance),
            tags=list(dict.fromkeys(item.tags or ())),
            created=now_s,
            session_id=item.session_id,
            metadata=item.metadata,
            event_time=parse_time(item.event_time, f"{path}event_time"),
            ttl_seconds=item.ttl_seconds,
            expires_at=expires,
            lang=item.lang,
        )

    async def _embed(self, items: Sequence[StoreItem], fields: list[dict[str, Any]]) -> list[str]:
        embedder = self._core.embedder
        missing: list[int] = []
        for position, item in enumerate(items):
            if item.embedding is None:
                missing.append(position)
                continue
            path = "embedding" if len(items) == 1 else f"memories[{position}].embedding"
            vector = check_vector(item.embedding, path)
            if embedder.available and len(vector) != embedder.dimension:
                raise DimensionMismatchError(f"expected {embedder.dimension} numbers, got {len(vector)}", field=path)
            fields[position][Field.VECTOR] = vector_bytes(vector)
        if not missing:
            return []
        try:
            await self._core.embed_documents([fields[position] for position in missing])
        except ModelUnavailableError as error:
            return [f"stored without an embedding, found by keywords only: {error.message}"]
        return []

    async def get(self, memory_id: str, agent_id: str | None, access: Access) -> Memory:
        """The memory. Raises VectorNotFoundError; InvalidRequestError when several agents have the id."""
        agent, document = await self.find(memory_id, agent_id, access)
        usages = await self._core.usages(agent_namespace(agent), [memory_id])
        return self._core.memory(agent, memory_id, document, usages.get(memory_id))

    async def find(
        self, memory_id: str, agent_id: str | None, access: Access, level: ReadLevel | None = None
    ) -> tuple[str, Document]:
        """The agent that holds the memory, and the memory's document; without an agent it is looked up over all that
        the caller may read. ``level``: STRONG for a write that depends on it."""
        check_id(memory_id, "memory_id")
        agents = [agent_id] if agent_id is not None else await self._candidates(memory_id, access)
        holders: list[tuple[str, Document]] = []
        for agent in agents:
            document = (await self._core.documents(agent_space(agent), [memory_id], level)).get(memory_id)
            if document is not None:
                holders.append((agent, document))
        if not holders:
            raise VectorNotFoundError(f"memory_id: memory {memory_id!r} does not exist")
        if len(holders) > 1:
            raise InvalidRequestError(f"{len(holders)} agents have a memory {memory_id!r}: name one", field="agent_id")
        return holders[0]

    async def _candidates(self, memory_id: str, access: Access) -> list[str]:
        names = await self._core.router.inventory(AGENT_PREFIX)
        agents = [name[len(AGENT_PREFIX) :] for name in names if access.allows(name)]
        # An id we made names its agent; only an id of a client's choosing must be asked of everybody.
        named = [agent for agent in agents if memory_id.startswith(f"mem_{agent_tag(agent)}_")]
        return named or agents

    async def update(self, memory_id: str, agent_id: str | None, changes: MemoryChanges, access: Access) -> Memory:
        """Change the given fields; a new content is embedded anew. Raises VectorNotFoundError, InvalidRequestError."""
        patch: dict[str, Any] = {}
        if changes.content is not None:
            patch[Field.TEXT] = check_content(changes.content, "content")
        if changes.importance is not None:
            check_range(changes.importance, "importance", 0, 1)
            patch[Field.IMPORTANCE] = float(changes.importance)
        if changes.tags is not None:
            check_tags(changes.tags, "tags")
            patch[Field.TAGS] = list(dict.fromkeys(changes.tags)) or None
        if changes.metadata is not None:
            patch[Field.METADATA] = check_metadata(changes.metadata)
        if changes.memory_type is not None:
            patch[Field.TYPE] = check_type(changes.memory_type)
        agent, document = await self.find(memory_id, agent_id, access, ReadLevel.STRONG)
        if Field.TEXT in patch or Field.METADATA in patch:
            merged = {**document.fields, **patch}
            patch |= dict.fromkeys(EMBEDDED_FIELDS)
            with contextlib.suppress(ModelUnavailableError):
                await self._core.embed_documents([merged])
            patch |= {name: merged.get(name) for name in EMBEDDED_FIELDS if merged.get(Field.MODEL) is not None}
        if patch:
            patch[Field.UPDATED] = self._core.now_s
            await self._core.patch(agent_namespace(agent), [(memory_id, patch)])
        if Field.IMPORTANCE in patch:
            self._core.events.importance_updated(agent, memory_id, patch[Field.IMPORTANCE])
        return await self.changed(agent, memory_id, document, patch)

    async def changed(self, agent_id: str, memory_id: str, document: Document, patch: dict[str, Any]) -> Memory:
        """The memory as a durable patch has made it. Nothing is read back that could fail and hide that it was done."""
        fields = {name: value for name, value in {**document.fields, **patch}.items() if value is not None}
        try:
            usages = await self._core.usages(agent_namespace(agent_id), [memory_id])
        except ServiceUnavailableError:
            usages = {}
        return self._core.memory(agent_id, memory_id, _as_document(fields), usages.get(memory_id))

    async def set_importance(self, agent_id: str, memory_ids: list[str], importance: float) -> list[Importance]:
        """Set the importance of the memories that exist. Raises VectorNotFoundError when none does."""
        check_range(importance, "importance", 0, 1)
        namespace = agent_space(agent_id)
        if not memory_ids or len(memory_ids) > MAX_BATCH:
            raise InvalidRequestError(f"expected 1 to {MAX_BATCH} ids", field="memory_ids")
        for memory_id in memory_ids:
            check_id(memory_id, "memory_id")
        documents = await self._core.latest(namespace, memory_ids)
        if not documents:
            raise VectorNotFoundError(f"memory_id: memory {memory_ids[0]!r} does not exist")
        change = {Field.IMPORTANCE: float(importance), Field.UPDATED: self._core.now_s}
        await self._core.patch(namespace, [(i, change) for i in documents])
        for memory_id in documents:
            self._core.events.importance_updated(agent_id, memory_id, float(importance))
        usages = await self._core.usages(namespace, list(documents))
        changed: list[Importance] = []
        for memory_id, document in documents.items():
            before = float(document.fields.get(Field.IMPORTANCE, DEFAULT_IMPORTANCE))
            document.fields.update(change)
            memory = self._core.memory(agent_id, memory_id, document, usages.get(memory_id))
            signal = Signal.UPVOTE if importance >= before else Signal.DOWNVOTE
            changed.append(Importance(memory, before, signal.value))
        return changed

    async def forget(self, agent_id: str, query: ForgetQuery) -> int:
        """Delete what meets every given condition. Raises InvalidRequestError when none is given."""
        agent_space(agent_id)
        if not (query.memory_ids or query.tags or query.session_id or query.before_timestamp is not None):
            raise InvalidRequestError(
                "expected at least one of memory_ids, tags, session_id, before_timestamp", field="memory_ids"
            )
        if query.memory_ids and not (query.tags or query.session_id or query.before_timestamp is not None):
            return await self._forget_ids(agent_id, query.memory_ids)
        before = query.before_timestamp
        conditions = Conditions(
            session_id=query.session_id,
            tags=query.tags or None,
            created_before=None if before is None else before - 1,
            ids=query.memory_ids or None,
        )
        return await self._forget(agent_id, conditions)

    async def forget_matching(self, agent_id: str, query: BatchFilter) -> int:
        """Delete what a filter matches. Raises InvalidRequestError for an empty filter."""
        conditions = conditions_of(query)
        if conditions == Conditions():
            raise InvalidRequestError("expected at least one condition", field="filter")
        agent_space(agent_id)
        return await self._forget(agent_id, conditions)

    async def _forget_ids(self, agent_id: str, memory_ids: list[str]) -> int:
        """Explicit ids need no search, and what a majority has is deleted whatever one replica knows of it."""
        for position, memory_id in enumerate(memory_ids):
            check_id(memory_id, f"memory_ids[{position}]")
        namespace = agent_namespace(agent_id)
        present = list(await self._core.latest(namespace, memory_ids))
        if not present:
            await self._core.require(namespace)
        await self._core.delete(namespace, present)
        self._core.events.forgotten(agent_id, present)
        return len(present)

    async def _forget(self, agent_id: str, conditions: Conditions) -> int:
        namespace = agent_namespace(agent_id)
        ids = await self._core.every_id(namespace, Where(conditions))
        if not ids:
            await self._core.require(namespace)
        await self._core.delete(namespace, ids)
        self._core.events.forgotten(agent_id, ids)
        return len(ids)

    async def recall_matching(self, agent_id: str, query: BatchFilter, limit: int) -> BatchRecalled:
        """Newest memories that a filter matches, without a query."""
        check_range(limit, "limit", 1, MAX_OFFSET)
        return await self._page(agent_id, Where(conditions_of(query)), limit, 0)

    async def list(self, agent_id: str, memory_type: str | None, limit: int, offset: int) -> BatchRecalled:
        """Newest memories first."""
        check_range(limit, "limit", 1, MAX_LIST)
        check_range(offset, "offset", 0, MAX_OFFSET)
        where = Where(Conditions(memory_type=check_type(memory_type))) if memory_type is not None else None
        return await self._page(agent_id, where, limit, offset)

    async def _page(
        self, agent_id: str, where: Where | None, limit: int, offset: int, order: Order = Order.NEWEST
    ) -> BatchRecalled:
        namespace = agent_space(agent_id)
        page = await self._core.select(namespace, where, order=order, limit=limit, offset=offset, usage=True)
        if page.total == 0:
            await self._core.require(namespace)
        return BatchRecalled(self._core.memories_of(agent_id, page), page.total, page.matched)

    async def list_all(self, access: Access, limit: int, offset: int) -> BatchRecalled:
        """Memories of every agent the caller may read, agent by agent in name order, newest first within one."""
        check_range(limit, "limit", 1, MAX_LIST)
        check_range(offset, "offset", 0, MAX_OFFSET)
        found = BatchRecalled([], 0, 0)
        for name, (documents, _) in (await self._core.router.inventory(AGENT_PREFIX)).items():
            if not access.allows(name):
                continue
            found.total += documents
            wanted = limit - len(found.memories)
            if wanted > 0 and offset < documents:
                page = await self._page(name[len(AGENT_PREFIX) :], None, wanted, offset)
                found.memories.extend(page.memories)
            offset = max(0, offset - documents)
        found.filtered = found.total
        return found


def check_content(content: str, field: str) -> str:
    if not content.strip():
        raise InvalidRequestError("must not be empty", field=field)
    if len(content) > MAX_CONTENT_CHARS:
        raise InvalidRequestError(f"must be at most {MAX_CONTENT_CHARS} characters, got {len(content)}", field=field)
    try:
        content.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("must be valid Unicode text", field=field) from None
    return content


def check_tags(tags: Sequence[str] | None, field: str) -> None:
    if tags is None:
        return
    if len(tags) > MAX_TAGS:
        raise InvalidRequestError(f"must be at most {MAX_TAGS} tags, got {len(tags)}", field=field)
    for position, tag in enumerate(tags):
        check_id(tag, f"{field}[{position}]", limit=MAX_TAG_CHARS)


def conditions_of(query: BatchFilter) -> Conditions:
    """The shard's conditions of a `BatchMemoryFilter`; empty arrays count as not given."""
    check_range(query.min_importance, "filter.min_importance", 0, 1)
    check_range(query.max_importance, "filter.max_importance", 0, 1)
    check_type(query.memory_type, "filter.memory_type")
    return Conditions(
        memory_type=query.memory_type,
        min_importance=query.min_importance,
        max_importance=query.max_importance,
        session_id=query.session_id,
        tags=query.tags or None,
        created_after=query.created_after,
        created_before=query.created_before,
    )


def _as_document(fields: dict[str, Any]) -> Document:
    return Document(NEVER, NEVER, {k: v for k, v in fields.items() if v is not None}, {})
