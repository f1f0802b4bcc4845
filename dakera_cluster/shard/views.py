"""The views a node holds: loaded on first use, kept within a memory bound, snapshotted so that a restart is quick.

A view comes from its snapshot when that is whole, of the same settings and within the change log, and from the rows
otherwise; nothing is lost with a snapshot but time. Large views are snapshotted after enough changes and at shutdown;
small ones are cheaper to rebuild. The least recently used are dropped when the bound is passed (cold agents cost disk, not
memory). Everything but the registry itself runs in the namespace's lane. Called by `shard.host`.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from dakera_cluster.model.errors import CorruptionError, StorageError
from dakera_cluster.model.rows import Kind
from dakera_cluster.shard.replica import CHANGES_KEPT, Change, Replica
from dakera_cluster.shard.view import NamespaceView, ViewSettings
from dakera_cluster.storage import snapshots

log = logging.getLogger(__name__)

DEFAULT_VIEW_BYTES = 512 << 20
SNAPSHOT_MIN_DOCUMENTS = 2_000
SNAPSHOT_CHANGES = 10_000
SNAPSHOT_CHANGES_SHARE = 0.2
"""Changes, beside the documents of a large view, that are worth a snapshot: catching up with them takes two seconds at
100,000 documents, and a fill writes each document six times, not fifty."""
SNAPSHOT_LOG_SHARE = 0.5
"""Part of the change log behind which a snapshot of a view that changes is made anew, whatever the changes are worth: behind
all of it, it could not catch up."""
SNAPSHOT_FORMAT = 2
CATCH_UP_BATCH = 512
LOADED_IN_LANE_DOCUMENTS = 2_000
"""A view of more documents is not loaded in its lane: the others there would wait for seconds."""
CHANGES_PER_WEIGHING = 64
MAX_MISSED = 4_096
"""Namespaces whose changes are counted while their views are not in memory."""

SettingsOf = Callable[[str], ViewSettings]


class ViewStats(msgspec.Struct):
    """Counters of the registry since the start."""

    loaded: int = 0
    rebuilt: int = 0
    dropped: int = 0
    snapshots: int = 0
    bulk: int = 0
    """Pieces of work that passed through tens of megabytes."""


class NamespaceRows:
    """The rows of one namespace on one replica, as its view reads them."""

    def __init__(self, replica: Replica, namespace: str) -> None:
        self._replica = replica
        self._namespace = namespace

    def scan(self, kind: int) -> Iterator[tuple[str, bytes]]:
        return self._replica.rows(self._namespace, kind)

    def body(self, row_id: str) -> bytes | None:
        return self._replica.read(self._namespace, Kind.DOCUMENT, [row_id])[0]


class Views:
    """Registry of loaded views, keyed by (shard, namespace)."""

    def __init__(
        self, directory: Path | None, settings_of: SettingsOf, *, limit_bytes: int = DEFAULT_VIEW_BYTES
    ) -> None:
        self._directory = directory
        self._settings_of = settings_of
        self._limit_bytes = limit_bytes
        self._views: OrderedDict[tuple[int, str], NamespaceView] = OrderedDict()
        self._weights: dict[tuple[int, str], int] = {}
        self._due: set[tuple[int, str]] = set()
        self._unsettled: set[tuple[int, str]] = set()
        self._missed: dict[tuple[int, str], int] = {}
        self.memory_bytes = 0
        self.stats = ViewStats()

    def __len__(self) -> int:
        return len(self._views)

    def unsettled(self) -> list[tuple[int, str]]:
        """Views whose vector index may have background work. Any thread."""
        return list(self._unsettled)

    def loaded(self, shard: int, namespace: str) -> NamespaceView | None:
        """The view when it is in memory. Any thread."""
        return self._views.get((shard, namespace))

    def get(self, replica: Replica, namespace: str) -> NamespaceView:
        """The view, loaded when it is not in memory. In the lane."""
        view = self._current(replica.shard, namespace)
        return view if view is not None else self._keep(replica, self.prepare(replica, namespace))

    def at_hand(self, replica: Replica, namespace: str) -> NamespaceView | None:
        """The view when it is in memory or small; None when it must be loaded beside the lane. In the lane."""
        view = self._current(replica.shard, namespace)
        if view is None and replica.counts(namespace).documents <= LOADED_IN_LANE_DOCUMENTS:
            return self._keep(replica, self.prepare(replica, namespace))
        return view

    def prepare(self, replica: Replica, namespace: str) -> NamespaceView:
        """A view from its snapshot or the rows, as of some moment of the call. Any thread, one a namespace at a time."""
        if self.loaded(replica.shard, namespace) is not None:
            self._forget_snapshot(replica.shard, namespace)
        return self._load(replica, namespace)

    def install(self, replica: Replica, view: NamespaceView) -> None:
        """Take in a view that was prepared elsewhere, with all that changed since. In the lane."""
        self.stats.bulk += 1
        if self._current(replica.shard, view.namespace) is None and self._catch_up(view, replica):
            self._keep(replica, view)

    def _current(self, shard: int, namespace: str) -> NamespaceView | None:
        key = (shard, namespace)
        view = self._views.get(key)
        if view is None or view.settings != self._settings_of(namespace) or view.worn:
            return None
        self._views.move_to_end(key)
        if view.changes_since_weighed >= CHANGES_PER_WEIGHING:
            self._weigh(key, view)
        return view

    def _keep(self, replica: Replica, view: NamespaceView) -> NamespaceView:
        key = (replica.shard, view.namespace)
        self._views[key] = view
        self._views.move_to_end(key)
        self._missed.pop(key, None)
        self._weigh(key, view)
        return view

    def missed(self, shard: int, namespace: str, changes: int) -> None:
        """Note changes of a view that is not in memory. Event loop."""
        key = (shard, namespace)
        self._missed[key] = self._missed.get(key, 0) + changes
        if len(self._missed) > MAX_MISSED:
            del self._missed[next(iter(self._missed))]

    def behind(self) -> list[tuple[int, str]]:
        """Views that are not in memory and whose snapshot, if any, lacks so much that the next read would feel it."""
        return [key for key, changes in self._missed.items() if changes >= SNAPSHOT_CHANGES]

    def forget_missed(self, shard: int, namespace: str) -> None:
        """The view has been brought up to date, or cannot be."""
        self._missed.pop((shard, namespace), None)

    def apply(self, replica: Replica, namespace: str, changes: list[Change]) -> None:
        """Bring a loaded view up to date; one that is not loaded reads the rows when it is. In the lane."""
        key = (replica.shard, namespace)
        view = self._views.get(key)
        if view is None:
            return
        view.apply(changes)
        if view.changes_since_weighed >= CHANGES_PER_WEIGHING:
            self._weigh(key, view)

    def drop(self, shard: int, namespace: str) -> None:
        """Forget a view and its snapshot. In the lane."""
        self._remove((shard, namespace))
        self._missed.pop((shard, namespace), None)
        self._forget_snapshot(shard, namespace)

    def of_shard(self, shard: int) -> list[str]:
        """Namespaces of a shard whose views are in memory. Any thread."""
        return [namespace for number, namespace in list(self._views) if number == shard]

    def forget_shard(self, shard: int) -> None:
        """Remove the snapshots of a shard whose views are all dropped. Any thread."""
        if self._directory is not None:
            shutil.rmtree(self._directory / f"{shard:05d}", ignore_errors=True)

    def _weigh(self, key: tuple[int, str], view: NamespaceView) -> None:
        """Account for a view's size: sums over all views are too slow to make for each decision."""
        weight = view.memory_bytes
        self.memory_bytes += weight - self._weights.get(key, 0)
        self._weights[key] = weight
        view.changes_since_weighed = 0.0
        worth_one = view.changes_since_snapshot >= max(SNAPSHOT_CHANGES, SNAPSHOT_CHANGES_SHARE * len(view))
        if worth_one or view.sequence - view.snapshot_sequence >= SNAPSHOT_LOG_SHARE * CHANGES_KEPT:
            self._due.add(key)
        if view.has_maintenance:
            self._unsettled.add(key)

    def _remove(self, key: tuple[int, str]) -> bool:
        self.memory_bytes -= self._weights.pop(key, 0)
        self._due.discard(key)
        self._unsettled.discard(key)
        return self._views.pop(key, None) is not None

    def due_for_snapshot(self) -> list[tuple[int, str]]:
        """Views that changed enough since their last snapshot. Any thread."""
        return list(self._due)

    def changed(self) -> list[tuple[int, str]]:
        """Views with any change since their last snapshot. Any thread."""
        return [key for key, view in list(self._views.items()) if view.changes_since_snapshot]

    def over_limit(self) -> list[tuple[int, str]]:
        """The least recently used views that must go for the rest to fit. Any thread."""
        total = self.memory_bytes
        dropped: list[tuple[int, str]] = []
        if total <= self._limit_bytes:
            return dropped
        for key in list(self._views)[:-1]:
            if total <= self._limit_bytes:
                break
            total -= self._weights.get(key, 0)
            dropped.append(key)
        return dropped

    def evict(self, shard: int, namespace: str) -> snapshots.Staged | None:
        """Drop a view from memory, snapshotted first when it is large. In the lane; see ``snapshot``."""
        staged = self.snapshot(shard, namespace)
        if self._remove((shard, namespace)):
            self.stats.dropped += 1
        return staged

    def snapshot(self, shard: int, namespace: str) -> snapshots.Staged | None:
        """Write a view's snapshot when it is large enough to be worth one, to be published by ``publish``: the lane does
        not wait for the disk. In the lane."""
        view = self._views.get((shard, namespace))
        if view is None or self._directory is None or not view.changes_since_snapshot:
            return None
        view.changes_since_snapshot = 0.0
        view.snapshot_sequence = view.sequence
        self._due.discard((shard, namespace))
        if len(view) < SNAPSHOT_MIN_DOCUMENTS:
            return None
        self.stats.bulk += 1
        meta, sections = view.dump()
        try:
            return snapshots.stage(self._path(shard, namespace), sections, {"format": SNAPSHOT_FORMAT, **meta})
        except StorageError as error:
            # The view is derived: without its snapshot the next start is slower, and nothing else.
            log.warning("view snapshot of %s on shard %d was not written: %s", namespace, shard, error)
            return None

    def publish(self, staged: snapshots.Staged) -> None:
        """Make a snapshot durable and usable. Any thread but a lane."""
        try:
            staged.publish()
            self.stats.snapshots += 1
        except StorageError as error:
            log.warning("a view snapshot was not published: %s", error)

    def maintain(self, shard: int, namespace: str) -> bool:
        """One bounded step of index maintenance; True when more remains. In the lane."""
        view = self._views.get((shard, namespace))
        if view is not None and view.maintenance():
            return True
        # A view that still changes is looked at again in the next round, and made its quickest in the first quiet one.
        if view is None or view.settle():
            self._unsettled.discard((shard, namespace))
            self.stats.bulk += view is not None and len(view) >= SNAPSHOT_MIN_DOCUMENTS
        return False

    def _load(self, replica: Replica, namespace: str) -> NamespaceView:
        view = self._from_snapshot(replica, namespace)
        if view is not None:
            self.stats.loaded += 1
            return view
        view = NamespaceView(namespace, self._settings_of(namespace), NamespaceRows(replica, namespace))
        view.rebuild(replica.sequence)
        view.changes_since_snapshot = len(view)
        self.stats.rebuilt += 1
        return view

    def _from_snapshot(self, replica: Replica, namespace: str) -> NamespaceView | None:
        if self._directory is None:
            return None
        path = self._path(replica.shard, namespace)
        settings = self._settings_of(namespace)
        try:
            meta, sections = snapshots.read(path)
            if meta["format"] != SNAPSHOT_FORMAT or meta["settings"] != msgspec.to_builtins(settings):
                return None
            view = NamespaceView.load(namespace, settings, NamespaceRows(replica, namespace), meta, sections)
            sections.close()
        except FileNotFoundError:
            return None
        except (CorruptionError, KeyError, ValueError) as error:
            log.warning("view snapshot of %s is not usable, rebuilding from rows: %s", namespace, error)
            return None
        return view if self._catch_up(view, replica) else None

    def _catch_up(self, view: NamespaceView, replica: Replica) -> bool:
        """Apply what changed since the snapshot; False when the change log no longer reaches back that far."""
        until = replica.sequence
        changes = replica.changes_since(view.sequence)
        if changes is None:
            return False
        pending: dict[tuple[int, str], int] = {}
        for sequence, namespace, kind, row_id in changes:
            if namespace == view.namespace:
                pending[(kind, row_id)] = sequence
        waiting = list(pending.items())
        for start in range(0, len(waiting), CATCH_UP_BATCH):
            view.apply(_read_changes(replica, view.namespace, waiting[start : start + CATCH_UP_BATCH]))
        view.sequence = max(view.sequence, until)
        return True

    def _path(self, shard: int, namespace: str) -> Path:
        assert self._directory is not None
        name = hashlib.blake2b(namespace.encode(), digest_size=16).hexdigest()
        return self._directory / f"{shard:05d}" / f"{name}.view"

    def _forget_snapshot(self, shard: int, namespace: str) -> None:
        if self._directory is not None:
            self._path(shard, namespace).unlink(missing_ok=True)


def _read_changes(replica: Replica, namespace: str, waiting: list[tuple[tuple[int, str], int]]) -> Iterator[Change]:
    for wanted in (Kind.DOCUMENT, Kind.USAGE):
        some = [(row_id, sequence) for (kind, row_id), sequence in waiting if kind == wanted]
        bodies = replica.read(namespace, wanted, [row_id for row_id, _ in some])
        for (row_id, sequence), body in zip(some, bodies, strict=True):
            if body is not None:
                yield Change(sequence, namespace, wanted, row_id, body)
