"""What simulated nodes say to each other over their peer connections. Rows travel as (key, body); every message about a shard
carries the shard's version."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

from dakera_cluster.model.shardmap import ShardMap

Rows = tuple[tuple[bytes, bytes], ...]


class Path(enum.Enum):
    """How a row comes to a replica: the two paths are fenced against the past in different ways."""

    WRITE = "write"
    REPAIR = "repair"


class ApplyRows(NamedTuple):
    shard: int
    version: int
    rows: Rows
    path: Path
    started_wall_ms: int = 0


class ReadRow(NamedTuple):
    shard: int
    version: int
    key: bytes
    needs_vote: bool


class AskRootOf(NamedTuple):
    shard: int
    version: int
    collected: int
    is_complete: bool


class AskBucketsOf(NamedTuple):
    shard: int
    version: int


class AskRowsOf(NamedTuple):
    shard: int
    version: int
    buckets: tuple[int, ...]


class ExchangeRows(NamedTuple):
    shard: int
    version: int
    rows: Rows
    want: tuple[bytes, ...]
    started_wall_ms: int


class FetchRows(NamedTuple):
    shard: int
    version: int
    cursor: bytes


class HoldTombstones(NamedTuple):
    shard: int
    version: int
    round: int
    rows: Rows


class CollectTombstones(NamedTuple):
    shard: int
    version: int
    round: int
    terms: tuple[tuple[bytes, int], ...]


class GetMap(NamedTuple):
    above: int


class Announce(NamedTuple):
    """A leader's command under its epoch: this is your leader, and this map version is out."""

    epoch: int
    version: int
    leader: str


class TellReady(NamedTuple):
    shard: int
    version: int
    node: str


class Status(enum.Enum):
    OK = "ok"
    STORED = "stored"
    """Applied, without a vote."""
    REFUSED = "refused"
    TOO_OLD = "too_old"
    OUTDATED = "outdated"
    NOT_HELD = "not_held"


class Reply(NamedTuple):
    status: Status
    value: Any = None
    version: int = 0
    map: ShardMap | None = None


class Request(NamedTuple):
    number: int
    body: Any


class Response(NamedTuple):
    number: int
    reply: Reply
