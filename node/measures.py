"""Where the time of writes goes, as metrics: the coordinator's quorums, this node's disk and its model.

Sums and counts only, taken when they are asked for: the mean of any span is the ratio of two differences. Registered by the
composition root.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from dakera_cluster.cluster.replicator import Replicator
from dakera_cluster.inference.service import Embedder, UnavailableEmbedder
from dakera_cluster.storage.rows import RowStore


class WriteMeasures(Collector):
    """``dakera_write_seconds{part}``: the whole write, this node's own replica, one other's. ``dakera_disk_sync_seconds``:
    one fsync of a group of commits. ``dakera_embedding_seconds``: the model at work, by texts."""

    def __init__(self, replicator: Replicator, store: RowStore, embedder: Embedder | UnavailableEmbedder) -> None:
        self._replicator = replicator
        self._store = store
        self._embedder = embedder

    def collect(self) -> Iterator[Metric]:
        stats = self._replicator.stats
        parts = SummaryMetricFamily("dakera_write_seconds", "Writes of one shard by this coordinator", labels=["part"])
        for part, spent in (("whole", stats.whole), ("own_replica", stats.own), ("peer", stats.peer)):
            parts.add_metric([part], spent.count, spent.seconds)
        yield parts
        results = CounterMetricFamily("dakera_writes", "Writes of one shard by their outcome", labels=["result"])
        for result in ("failed", "ambiguous", "restamped", "refreshed", "hinted"):
            results.add_metric([result], getattr(stats, result))
        yield results
        disk = self._store.stats()
        yield SummaryMetricFamily(
            "dakera_disk_sync_seconds", "Syncs of the row store's log", disk.syncs, disk.sync_seconds
        )
        yield CounterMetricFamily(
            "dakera_disk_commits", "Commits of the row store; a sync serves a group", disk.commits
        )
        model = self._embedder.stats()
        if model is not None:
            yield SummaryMetricFamily(
                "dakera_embedding_seconds", "The model at work, by texts", model.encoded_texts, model.busy_s
            )
