"""Every setting of a node, declared once.

A setting is one field of one section: its type and default are the field's, its variable, aliases, unit, accepted values
and meaning are the `Var` beside it. The loader, the README's table and the redacted view of a running node are all
derived from these rows, so none of them can go stale. Where the public sources disagree about a default, the documented
product default wins; a setting with ``effect=False`` is accepted so that existing stacks start unchanged.
"""

from dakera_cluster.model.config.cluster import Cluster, ReadConsistency, Role, WriteLevel
from dakera_cluster.model.config.load import ConfigError, ConfigWarning, Problem, WarningKind, load
from dakera_cluster.model.config.memory import MemoryLife
from dakera_cluster.model.config.models import Device, Models
from dakera_cluster.model.config.observability import LogFormat, Observability
from dakera_cluster.model.config.retrieval import Retrieval, SearchMode
from dakera_cluster.model.config.server import Limits, Server
from dakera_cluster.model.config.settings import ROWS, Settings
from dakera_cluster.model.config.storage import Cipher, Storage, StorageKind
from dakera_cluster.model.config.values import HostPort, Secret
from dakera_cluster.model.config.variable import Row, Var

__all__ = [
    "ROWS",
    "Cipher",
    "Cluster",
    "ConfigError",
    "ConfigWarning",
    "Device",
    "HostPort",
    "Limits",
    "LogFormat",
    "MemoryLife",
    "Models",
    "Observability",
    "Problem",
    "ReadConsistency",
    "Retrieval",
    "Role",
    "Row",
    "SearchMode",
    "Secret",
    "Server",
    "Settings",
    "Storage",
    "StorageKind",
    "Var",
    "WarningKind",
    "WriteLevel",
    "load",
]
