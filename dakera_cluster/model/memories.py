"""What an agent's rows mean: memories, sessions, namespaces and policies.

A memory is a document row in the agent's namespace. The functions here translate between the row's fields (short, stable
names on disk) and the nouns the services and the API speak. Times are Unix seconds unless a name ends in ``_ms``.
Called by `memory/` (to make and read rows) and by `shard/` (to index them).
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from dakera_cluster.model.errors import CorruptionError

PREVIEW_CHARS = 200
MAX_CONTENT_CHARS = 1_000_000
"""The contract promises clients at least 100,000; real logs hold pasted files several times as long, and refusing one would
lose it. Keywords find all of a text, its vectors speak for the first passages (`retrieval.writing`)."""
MAX_TAGS = 256
MAX_TAG_CHARS = 256
DEFAULT_IMPORTANCE = 0.5
FEEDBACK_HISTORY = 100


class MemoryType(enum.StrEnum):
    EPISODIC = "episodic"
    SEMANTIC = "semantic"
    PROCEDURAL = "procedural"
    WORKING = "working"


class Signal(enum.StrEnum):
    UPVOTE = "upvote"
    DOWNVOTE = "downvote"
    FLAG = "flag"
    POSITIVE = "positive"
    NEGATIVE = "negative"
    NEUTRAL = "neutral"


class Field:
    """Names of the fields of a document row. On disk and on the wire between nodes: append, never rename."""

    TEXT = "text"
    VECTOR = "vector"
    MODEL = "model"
    TOKENS = "tokens"
    PASSAGES = "passages"
    METADATA = "metadata"
    TYPE = "type"
    IMPORTANCE = "importance"
    TAGS = "tags"
    SESSION = "session"
    CREATED = "created"
    UPDATED = "updated"
    EVENT_TIME = "event_time"
    TTL = "ttl"
    EXPIRES = "expires"
    LANG = "lang"
    DECAY_FLAG = "decay_flag"
    FEEDBACK = "feedback"
    EXTRA = "extra"


class Memory(msgspec.Struct, omit_defaults=False, gc=False):
    """A memory as clients see it (shared shape `Memory` of the wire contract)."""

    id: str
    content: str
    agent_id: str
    namespace: str
    memory_type: str = MemoryType.EPISODIC.value
    importance: float = DEFAULT_IMPORTANCE
    tags: list[str] = []
    session_id: str | None = None
    metadata: dict[str, Any] | None = None
    created_at: int = 0
    updated_at: int | None = None
    last_accessed_at: int = 0
    access_count: int = 0
    ttl_seconds: int | None = None
    expires_at: int | None = None
    embedding_model: str | None = None
    event_time: float | None = None
    decay_flag: bool = False


class ScoredMemory(msgspec.Struct, gc=False):
    """A memory found by recall or search. ``score`` is what the list is ordered by."""

    memory: Memory
    score: float
    weighted_score: float | None = None
    smart_score: float | None = None
    vector_score: float | None = None
    text_score: float | None = None
    explain: dict[str, Any] | None = None


class FeedbackEntry(msgspec.Struct, kw_only=True):
    signal: str
    timestamp: int
    old_importance: float
    new_importance: float


class Session(msgspec.Struct, kw_only=True):
    id: str
    session_id: str
    agent_id: str
    started_at: int
    ended_at: int | None = None
    summary: str | None = None
    metadata: dict[str, Any] | None = None
    memory_count: int = 0


def memory_fields(
    *,
    content: str,
    memory_type: str,
    importance: float,
    tags: list[str],
    created: int,
    session_id: str | None = None,
    metadata: dict[str, Any] | None = None,
    event_time: float | None = None,
    ttl_seconds: int | None = None,
    expires_at: int | None = None,
    lang: str | None = None,
) -> dict[str, Any]:
    """Row fields of a new memory, without its vector. None means absent."""
    return {
        Field.TEXT: content,
        Field.TYPE: memory_type,
        Field.IMPORTANCE: importance,
        Field.TAGS: tags or None,
        Field.SESSION: session_id,
        Field.METADATA: metadata,
        Field.CREATED: created,
        Field.EVENT_TIME: event_time,
        Field.TTL: ttl_seconds,
        Field.EXPIRES: expires_at,
        Field.LANG: lang,
    }


class Shown(msgspec.Struct, gc=False):
    """The fields of a row (see `Field`) that a client sees, as they are stored."""

    text: str | None = None
    type: str | None = None
    importance: float = DEFAULT_IMPORTANCE
    tags: list[str] | None = None
    session: str | None = None
    metadata: dict[str, Any] | None = None
    created: float | None = None
    updated: int | None = None
    ttl: int | None = None
    expires: int | None = None
    model: str | None = None
    event_time: float | None = None
    decay_flag: bool | None = None


class _ShownBody(msgspec.Struct, array_like=True, gc=False):
    """A document's body (`rows.Document`) as far as a client sees it."""

    birth: msgspec.Raw
    deleted: msgspec.Raw
    fields: Shown


class _PartedBody(msgspec.Struct, array_like=True, gc=False):
    """A document's body with its values as they are encoded."""

    birth: msgspec.Raw
    deleted: msgspec.Raw
    fields: dict[str, msgspec.Raw]
    stamps: msgspec.Raw


_EPISODIC = MemoryType.EPISODIC.value
_decode_shown = msgspec.msgpack.Decoder(_ShownBody).decode
_PARTED = msgspec.msgpack.Decoder(_PartedBody)
_ENCODER = msgspec.msgpack.Encoder()


def shown_in(body: bytes) -> Shown:
    """The visible fields of an encoded document. Vectors and tokens, nine tenths of a body, are passed over, not copied: an
    answer decodes as many bodies as it holds memories. Raises CorruptionError when the bytes are no document."""
    try:
        return _decode_shown(body).fields
    except msgspec.MsgspecError as error:
        raise CorruptionError(f"row body cannot be decoded as a memory: {error}") from error


def readable_in(body: bytes) -> bytes:
    """The encoded document without what only indexes read (its vectors and tokens, nine tenths of it). Raises CorruptionError
    when the bytes are no document."""
    try:
        parts = _PARTED.decode(body)
    except msgspec.MsgspecError as error:
        raise CorruptionError(f"row body cannot be decoded as a memory: {error}") from error
    for name in (Field.VECTOR, Field.TOKENS, Field.PASSAGES):
        parts.fields.pop(name, None)
    return _ENCODER.encode(parts)


def shown_of(fields: dict[str, Any]) -> Shown:
    """The visible fields among a decoded document's."""
    return msgspec.convert(fields, Shown)


def memory_of(
    memory_id: str, agent_id: str, namespace: str, shown: Shown, access_count: int = 0, last_access_ms: int = 0
) -> Memory:
    """The memory that a document's visible fields describe."""
    created = int(shown.created or 0)
    # By position: an answer makes as many as it holds memories, and eighteen names to match take longer than the rest.
    return Memory(
        memory_id,
        shown.text or "",
        agent_id,
        namespace,
        shown.type or _EPISODIC,
        shown.importance,
        shown.tags or [],
        shown.session,
        shown.metadata,
        created,
        shown.updated or created,  # updated_at
        last_access_ms // 1000 or created,  # last_accessed_at
        access_count,
        shown.ttl,
        shown.expires,
        shown.model,
        shown.event_time,
        bool(shown.decay_flag),
    )
