"""Identifiers: nodes, boots, shards and the rows of users.

Every bound on an identifier stands here. Ids arrive from clients in URLs, so what is accepted is generous (any printable
text, ``:`` ``.`` ``-`` ``_`` ``@`` and spaces included) and what is refused is refused by name. Called by the API
(validation), by the shard (placement of a row) and by the protocols (node identity).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NewType

import xxhash

from dakera_cluster.model.errors import InvalidRequestError

NodeId = NewType("NodeId", str)
"""Name of a node, kept on its disk: survives restarts and address changes."""
BootId = NewType("BootId", int)
"""Number of the node's start, strictly growing over its life; with NodeId it names one process."""
ShardId = NewType("ShardId", int)

MAX_ID_CHARS = 512
MAX_NAMESPACE_CHARS = 256
AGENT_PREFIX = "_dakera_agent_"
SESSIONS_NAMESPACE = "_dakera_sessions"
ROUTE_SEPARATOR = "~"


def check_id(value: str, field: str, *, limit: int = MAX_ID_CHARS) -> str:
    """Return ``value`` when it can name a row; raise InvalidRequestError naming ``field`` otherwise."""
    if not value or value.isspace():
        raise InvalidRequestError("must not be empty", field=field)
    if len(value) > limit:
        raise InvalidRequestError(f"must be at most {limit} characters, got {len(value)}", field=field)
    if not value.isprintable():
        raise InvalidRequestError("must not hold control or unprintable characters", field=field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("must be valid Unicode", field=field) from None
    return value


def check_namespace(value: str, field: str = "namespace") -> str:
    return check_id(value, field, limit=MAX_NAMESPACE_CHARS)


def agent_namespace(agent_id: str) -> str:
    """The namespace that holds an agent's memories."""
    return AGENT_PREFIX + agent_id


def agent_of(namespace: str) -> str | None:
    """The agent whose namespace this is, or None."""
    return namespace[len(AGENT_PREFIX) :] if namespace.startswith(AGENT_PREFIX) else None


def node_tag(node_id: str) -> int:
    """32-bit tag of a node inside stamps; a collision is harmless because ties are settled by the value itself."""
    return xxhash.xxh32_intdigest(node_id.encode())


def routing_part(row_id: str) -> str:
    """What decides the partition of a row: the part before ``~`` when there is one, so that related rows (all sessions of
    an agent) can be kept together and still be found by id alone."""
    return row_id.split(ROUTE_SEPARATOR, 1)[0]


def partition_of(row_id: str, partitions: int) -> int:
    """Partition of a row inside its namespace, 0 .. partitions-1."""
    if partitions == 1:
        return 0
    return xxhash.xxh64_intdigest(routing_part(row_id).encode()) % partitions


@lru_cache(maxsize=1024)
def shard_of(namespace: str, partition: int, shards: int) -> ShardId:
    """hash(namespace, partition) mod shards. Fixed for the life of a cluster."""
    return ShardId(xxhash.xxh64_intdigest(f"{namespace}\x00{partition}".encode()) % shards)
