"""Dakera Cluster: a self-hosted, replicated memory engine for AI agents.

The packages form a line and import only to the left:
``model -> protocols, storage, index, inference -> retrieval -> shard -> cluster -> memory -> api``.
"""

__version__ = "0.11.55"
