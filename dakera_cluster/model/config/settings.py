"""All settings of a node as one frozen value, and the table of its rows.

Invariant: `ROWS` lists every field of every section exactly once; names, aliases and file keys are unique over it.
Built by `load`, read by the composition root, which hands each part only what it needs.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dakera_cluster.model.config.cluster import Cluster
from dakera_cluster.model.config.memory import MemoryLife
from dakera_cluster.model.config.models import Models
from dakera_cluster.model.config.observability import Observability
from dakera_cluster.model.config.retrieval import Retrieval
from dakera_cluster.model.config.server import HEALTH_CHECK_S, Limits, Server
from dakera_cluster.model.config.storage import Storage
from dakera_cluster.model.config.values import HostPort
from dakera_cluster.model.config.variable import Row, rows_of


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    server: Server = Server()
    limits: Limits = Limits()
    storage: Storage = Storage()
    models: Models = Models()
    retrieval: Retrieval = Retrieval()
    memory: MemoryLife = MemoryLife()
    cluster: Cluster = Cluster()
    observability: Observability = Observability()

    @property
    def gossip_bind(self) -> HostPort:
        """Where gossip and peers are listened to."""
        return self.cluster.gossip_bind or HostPort(self.server.host, self.cluster.gossip_port)

    @property
    def drain_s(self) -> int:
        """Two balancer intervals in a cluster; a node alone has nobody to hand its traffic to."""
        if self.server.drain_s is not None:
            return self.server.drain_s
        return 2 * HEALTH_CHECK_S if self.cluster.enabled else 0

    def effective(self) -> dict[str, dict[str, Any]]:
        """Section -> field -> value as text, number, bool, list or None; secrets are `***` when set, URLs lose their
        password. Fit for an administrator's eyes and for logs."""
        shown: dict[str, dict[str, Any]] = {}
        for row in ROWS:
            value = getattr(getattr(self, row.section), row.field)
            shown.setdefault(row.section, {})[row.field] = _plain(row, value)
        return shown


def _plain(row: Row, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, tuple) and not isinstance(value, HostPort):
        return [str(item) for item in value]
    return row.var.kind.show(value)


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "server": Server,
    "limits": Limits,
    "storage": Storage,
    "models": Models,
    "retrieval": Retrieval,
    "memory": MemoryLife,
    "cluster": Cluster,
    "observability": Observability,
}
ROWS: tuple[Row, ...] = tuple(row for name, struct in SECTIONS.items() for row in rows_of(name, struct))
