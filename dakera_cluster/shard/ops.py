"""What one node can ask of a replica on another: requests, answers and their encoding.

The same structs serve a call inside the process and a frame between nodes, so there is one path. ``map_version`` is the
version of the shard (`model.shardmap`) under which the asker acts; a replica that knows a newer one refuses. Requests are
tagged unions of msgpack arrays: a field may be appended with a default, never removed or reordered, so that two releases can
talk. ``now_ms`` travels with a read because expiry and recency must not depend on which replica answers.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.rows import Row
from dakera_cluster.retrieval.options import Options


class Mode(enum.StrEnum):
    """Which candidate lists a search draws from."""

    VECTOR = "vector"
    TEXT = "text"
    HYBRID = "hybrid"


class Fusion(enum.StrEnum):
    """How the two lists become one: reciprocal ranks, or min-max normalised scores."""

    RRF = "rrf"
    MINMAX = "minmax"


class Order(enum.StrEnum):
    """Order of a selection: by id (pages by cursor), or newest first (creation, then id)."""

    ID = "id"
    NEWEST = "newest"
    IMPORTANCE = "importance"


class Base(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Positional on the wire: append fields with defaults only."""


class Conditions(Base, frozen=True):
    """Conditions on memories, joined by AND; None means any. Bounds are inclusive, times are Unix seconds."""

    memory_type: str | None = None
    min_importance: float | None = None
    max_importance: float | None = None
    session_id: str | None = None
    tags: list[str] | None = None
    created_after: float | None = None
    created_before: float | None = None
    event_after: float | None = None
    event_before: float | None = None
    ids: list[str] | None = None


class Where(Base, frozen=True):
    """Which documents a read is about: conditions on memories and a filter expression, joined by AND."""

    conditions: Conditions | None = None
    filter: dict[str, Any] | None = None


class Apply(Base, frozen=True, tag="apply"):
    """Merge rows and answer when they are durable and visible."""

    shard: int
    map_version: int
    rows: list[Row]


class Applied(Base, frozen=True, tag="applied"):
    """``voted``: the replica has all its rows, so its ack counts. ``outrun_by``: see ``rows.outrun_by``."""

    changed: int
    voted: bool = True
    outrun_by: Stamp | None = None


class Read(Base, frozen=True, tag="read"):
    """Bodies of rows of one kind, in the order of ``ids``."""

    shard: int
    map_version: int
    namespace: str
    kind: int
    ids: list[str]


class Bodies(Base, frozen=True, tag="bodies"):
    bodies: list[bytes | None]


class Search(Base, frozen=True, tag="search"):
    """Best ``k`` documents of a namespace's part on a shard. ``vector`` is little-endian float32."""

    shard: int
    map_version: int
    namespace: str
    now_ms: int
    mode: Mode
    k: int
    vector: bytes | None = None
    text: str | None = None
    where: Where | None = None
    metric: str | None = None
    exact: bool = False
    fusion: Fusion = Fusion.MINMAX
    vector_weight: float = 0.5
    rrf_k: int = 60
    highlights: bool = False


class Hit(Base, frozen=True):
    """``body`` is the document's encoded row body, so that the coordinator shapes the answer; that of a recall comes without what
    only indexes read (`memories.readable_in`). Scores absent are None."""

    id: str
    score: float
    vector_score: float | None = None
    text_score: float | None = None
    body: bytes = b""
    usage: bytes | None = None
    features: dict[str, float] | None = None
    highlights: list[str] | None = None
    order_key: float | None = None


class Hits(Base, frozen=True, tag="hits"):
    hits: list[Hit]
    searched: int
    matched: int
    timings_us: dict[str, int] = {}
    extra: list[Hit] = []
    question: str | None = None
    reranked: bool = False


class Recall(Base, frozen=True, tag="recall"):
    """Run the recall pipeline over an agent's memories. ``token_vectors``: float16[t, d], one a ``token_ids``; ``options``:
    the engine's per-request options; ``neighbours``: also return what stood beside the hits."""

    shard: int
    map_version: int
    namespace: str
    now_ms: int
    k: int
    text: str
    vector: bytes | None
    token_ids: list[int]
    token_vectors: bytes
    where: Where | None
    options: Options
    neighbours: bool = False


class Select(Base, frozen=True, tag="select"):
    """Documents that match, in an order, a page of them. ``after`` is an id (Order.ID); ``limit`` 0 only counts."""

    shard: int
    map_version: int
    namespace: str
    now_ms: int
    where: Where | None
    order: Order
    limit: int
    offset: int = 0
    after: str | None = None
    bodies: bool = True
    usage: bool = False


class Selected(Base, frozen=True, tag="selected"):
    """``total`` counts the live documents of the part, ``matched`` those that match; ``sort_keys`` let a coordinator merge
    pages of several parts."""

    ids: list[str]
    sort_keys: list[float]
    bodies: list[bytes]
    usages: list[bytes | None]
    total: int
    matched: int


class Aggregate(Base, frozen=True, tag="aggregate"):
    """Count, sum, minimum and maximum of ``fields`` over groups of equal ``group_by`` values."""

    shard: int
    map_version: int
    namespace: str
    now_ms: int
    where: Where | None
    group_by: list[str]
    fields: list[str]
    limit: int


class Group(Base, frozen=True):
    """``values``: field -> [count, sum, min, max] over the numbers found; ``count`` counts documents."""

    key: list[Any]
    count: int
    values: dict[str, list[Any]]


class Groups(Base, frozen=True, tag="groups"):
    groups: list[Group]


class Describe(Base, frozen=True, tag="describe"):
    """Sizes and index state of a namespace's part; ``compact`` rebuilds its views from the rows first."""

    shard: int
    map_version: int
    namespace: str
    compact: bool = False


class Description(Base, frozen=True, tag="description"):
    documents: int
    vectors: int
    texts: int
    unique_terms: int
    text_tokens: int
    dimension: int | None
    index_type: str
    built: bool
    memory_bytes: int
    disk_bytes: int
    created_ms: int | None = None
    updated_ms: int | None = None
    known: bool = False


class Profile(Base, frozen=True, tag="profile"):
    """Counts over the live memories of a namespace's part."""

    shard: int
    map_version: int
    namespace: str
    now_ms: int


class Profiled(Base, frozen=True, tag="profiled"):
    """``by_session`` and ``by_tag`` count memories; times are Unix seconds, 0 when there is no memory."""

    count: int
    importance_sum: float
    oldest: int
    newest: int
    by_type: dict[str, int]
    by_session: dict[str, int]
    by_tag: dict[str, int]


class Expired(Base, frozen=True, tag="expired"):
    """Documents of a shard whose time is up."""

    shard: int
    map_version: int
    now_ms: int
    limit: int


class Places(Base, frozen=True, tag="places"):
    """(namespace, id) pairs."""

    places: list[tuple[str, str]]


class Inventory(Base, frozen=True, tag="inventory"):
    """The namespaces that have documents on a shard, with a name prefix."""

    shard: int
    map_version: int
    prefix: str


class Namespaces(Base, frozen=True, tag="namespaces"):
    names: list[str]
    documents: list[int]
    bytes: list[int]


Request = Apply | Read | Search | Recall | Select | Aggregate | Describe | Profile | Expired | Inventory
Answer = Applied | Bodies | Hits | Selected | Groups | Description | Profiled | Places | Namespaces

_ENCODER = msgspec.msgpack.Encoder()
_REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_ANSWERS: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(message: Request | Answer) -> bytes:
    return _ENCODER.encode(message)


def decode_request(data: bytes) -> Request:
    """Raises msgspec.ValidationError on bytes that are no request."""
    return _REQUESTS.decode(data)


def decode_answer(data: bytes) -> Answer:
    """Raises msgspec.ValidationError on bytes that are no answer."""
    return _ANSWERS.decode(data)
