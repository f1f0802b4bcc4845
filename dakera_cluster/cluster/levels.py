"""What a request asked of writes and reads: context variables, because they belong to the request and not to any of the
services between the API and the coordinator. None is the configured default. Set by the API, read by replicator and router.
"""

from __future__ import annotations

import contextvars

from dakera_cluster.protocols.quorum import ReadLevel, WriteLevel

write_level: contextvars.ContextVar[WriteLevel | None] = contextvars.ContextVar("write_level", default=None)
read_level: contextvars.ContextVar[ReadLevel | None] = contextvars.ContextVar("read_level", default=None)
max_staleness_ms: contextvars.ContextVar[int | None] = contextvars.ContextVar("max_staleness_ms", default=None)
