"""The composition root: settings in, a running node out.

Every part is made here and handed what it needs; nothing else constructs across packages. Start-up goes from the disk
outwards (rows, identity, catalog, model, services, HTTP), shutdown the other way: stop accepting, finish what is in
flight, flush, snapshot, close. Called by the process entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import shutil
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry

from dakera_cluster.api.server import ApiServer
from dakera_cluster.cluster.birth import join_bucket
from dakera_cluster.cluster.catalog import Catalog
from dakera_cluster.cluster.gate import Gate
from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.local import LocalTransport, be_alone
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.peer_server import PeerServer
from dakera_cluster.cluster.peer_services import Context, Priority
from dakera_cluster.cluster.portrait import (
    COMMAND_METHOD,
    MAINTENANCE_METHOD,
    VITALS_METHOD,
    MemberFacts,
    Portrait,
)
from dakera_cluster.cluster.replication import Replication
from dakera_cluster.cluster.replicator import Replicator
from dakera_cluster.cluster.router import Router
from dakera_cluster.cluster.runtime import Runtime
from dakera_cluster.cluster.segments import Segments
from dakera_cluster.cluster.status import NodeStatus
from dakera_cluster.cluster.vitals import VitalSigns
from dakera_cluster.inference.onnx_pass import Device
from dakera_cluster.inference.reranker import Reranker, RerankerSettings, UnavailableReranker, open_reranker
from dakera_cluster.inference.service import Embedder, EmbedderSettings, UnavailableEmbedder, open_embedder
from dakera_cluster.memory.activity import ActivityStatus
from dakera_cluster.memory.agents import Agents
from dakera_cluster.memory.consolidate import Consolidation
from dakera_cluster.memory.core import Core, MemorySettings
from dakera_cluster.memory.events import EventBus
from dakera_cluster.memory.expiry import Expiry
from dakera_cluster.memory.feedback import Feedback
from dakera_cluster.memory.keys import Keys
from dakera_cluster.memory.namespaces import Namespaces
from dakera_cluster.memory.queries import Queries
from dakera_cluster.memory.recall import Recaller
from dakera_cluster.memory.reranking import CrossEncoding
from dakera_cluster.memory.services import Services
from dakera_cluster.memory.sessions import Sessions
from dakera_cluster.memory.store import Memories
from dakera_cluster.memory.texts import Texts
from dakera_cluster.memory.usage import UsageNotes
from dakera_cluster.model.config import Settings
from dakera_cluster.model.config.storage import StorageKind
from dakera_cluster.model.errors import DakeraError
from dakera_cluster.model.hlc import HybridClock
from dakera_cluster.model.ids import NodeId, node_tag
from dakera_cluster.protocols.quorum import ReadLevel
from dakera_cluster.shard import keys
from dakera_cluster.shard.host import Host, HostSettings
from dakera_cluster.shard.view import ViewSettings
from dakera_cluster.storage.directory import DirectoryObjectStore
from dakera_cluster.storage.memory_objects import MemoryObjectStore
from dakera_cluster.storage.objects import ObjectStore
from dakera_cluster.storage.rocks import RowStoreSettings
from dakera_cluster.storage.rows import RowStore, StoreState
from node import part_settings
from node.identity import Identity, take_identity
from node.measures import WriteMeasures
from node.shared import Shared

log = logging.getLogger(__name__)

ALONE = "alone"
"""Cluster id of a node that is a cluster by itself."""
COLLECT_AFTER_OBJECTS = 10_000
EXIT_OK = 0
EXIT_FAILED = 1


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


async def run_node(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with contextlib.AsyncExitStack() as stack:
            node = await start_node(settings, stack, stop)
            _tame_collector()
            await stop.wait()
            await node.drain()
    except DakeraError as error:
        log.error("the node cannot run: %s", error.message)
        return EXIT_FAILED
    except OSError as error:
        log.error("the node cannot run: %s", error)
        return EXIT_FAILED
    return EXIT_OK


class Node:
    """A running node: its services, and how it stops taking traffic."""

    def __init__(self, services: Services, server: ApiServer, drain_s: float) -> None:
        self.services = services
        self.draining = False
        self._server = server
        self._drain_s = drain_s

    @property
    def port(self) -> int:
        return self._server.port

    async def drain(self) -> None:
        """Turn readiness off, give balancers time to see it, and finish what is in flight."""
        self.draining = True
        log.info("draining: readiness is off, requests go on for %.1f s", self._drain_s)
        await asyncio.sleep(self._drain_s)
        await self._server.drain()


async def start_node(settings: Settings, stack: contextlib.AsyncExitStack, stop: asyncio.Event) -> Node:
    """Build and start every part; ``stack`` takes them down again, in reverse.

    Raises StorageError, BucketUnavailableError or OSError when the node cannot start.
    """
    started = time.perf_counter()
    directory = _data_directory(settings, stack)
    store = await asyncio.to_thread(
        RowStore.open,
        Path(settings.storage.l2_cache_path or directory / "rocksdb"),
        keys.FAMILIES,
        settings=RowStoreSettings(queued_commits=settings.limits.queued_commits),
    )
    stack.callback(store.close)
    identity = await take_identity(store, settings.cluster.node_id, settings.cluster.shards, wall_ms() // 1000)
    log.info("node %s, boot %d, data in %s", identity.node, identity.boot, directory)

    objects = _objects(settings, directory)
    stack.push_async_callback(objects.close)
    catalog = Catalog(objects, lambda: wall_ms() // 1000)
    await catalog.start()
    stack.push_async_callback(catalog.close)

    def view_settings(namespace: str) -> ViewSettings:
        metric, index_type = catalog.index_settings(namespace)
        retrieval = settings.retrieval
        return ViewSettings(metric, index_type, retrieval.flat_threshold, retrieval.bm25_k1, retrieval.bm25_b)

    keeps = settings.storage.kind is not StorageKind.MEMORY
    host_settings = HostSettings(
        views_directory=directory / "views" if keeps else None,
        view_bytes=settings.storage.l1_cache_bytes,
        lanes=settings.retrieval.index_threads,
        queued_calls=settings.limits.queued_searches,
        recall=part_settings.recall_settings(settings),
    )
    host = Host(store, view_settings, host_settings, wall_ms)
    host.start()
    stack.push_async_callback(host.close)

    clock = HybridClock(node_tag(identity.node))
    maps = Maps(store, identity.node, settings.cluster.shards)
    holdings = Holdings(store, identity.node)
    gate = Gate(identity.node, host, maps, holdings, clock, wall_ms, part_settings.tombstones(settings))
    runtime = await _member(settings, identity, store, objects, maps, gate, stop)
    replication: Replication | None = None
    if runtime is not None:
        replication = Replication(
            part_settings.replication_settings(settings),
            identity.node,
            identity.disk,
            store,
            objects,
            host,
            maps,
            holdings,
            runtime,
            clock,
            wall_ms,
        )
        stack.push_async_callback(runtime.close)
        stack.push_async_callback(replication.close)
    else:
        await be_alone(maps, holdings, ALONE, identity.node, identity.disk, settings.cluster.replication_factor)
    transport = runtime.transport if runtime is not None else LocalTransport(gate.handle)
    consistency = ReadLevel(settings.cluster.read_consistency.value)
    router = Router(maps, transport, catalog, consistency, settings.cluster.max_staleness_ms)
    if replication is not None:
        router.staleness_ms = replication.repair.staleness_ms
    hint = replication.hints.add if replication is not None else None
    replicator = Replicator(maps, router, transport, clock, wall_ms, part_settings.replicator_settings(settings), hint)
    stack.push_async_callback(replicator.close)

    if replication is None and settings.storage.kind.in_s3:
        segments = Segments(
            objects,
            host,
            maps,
            holdings,
            identity.node,
            identity.disk,
            lambda _: False,
            part_settings.segment_settings(settings),
        )
        segments.start()
        stack.push_async_callback(segments.close)

    embedder = await _embedder(settings)
    stack.push_async_callback(embedder.close)
    reranker = await _reranker(settings)
    stack.push_async_callback(reranker.close)
    shared = Shared(settings, runtime.cluster_id if runtime is not None else identity.node, stack)
    events = EventBus(wall_ms)
    shared.add_events(events)
    if isinstance(embedder, Embedder):
        shared.add_embeddings(embedder)
    memory_settings = MemorySettings(
        rrf_k=settings.retrieval.rrf_k,
        bm25_enabled=settings.retrieval.bm25_enabled,
    )
    core = Core(router, replicator, catalog, embedder, wall_ms, memory_settings, events)
    notes = UsageNotes(core, node_tag(identity.node))
    notes.start()
    stack.push_async_callback(notes.close)
    expiry = Expiry(core)
    expiry.start()
    stack.push_async_callback(expiry.close)

    status = NodeStatus(host, settings.cluster.shards)
    signs = VitalSigns(identity.node, status, maps, holdings)
    own_url = settings.cluster.api_advertise or f"http://{settings.server.host}:{settings.server.port}"
    alone = [MemberFacts(identity.node, "alive", own_url, "", 0.0, 0.0)]
    portrait = Portrait(
        identity.node,
        maps,
        signs,
        wall_ms,
        runtime.members if runtime is not None else lambda: alone,
        runtime.leadership if runtime is not None else None,
        runtime,
        replication.progress if replication is not None else None,
        shared.healthy,
    )
    if runtime is not None and replication is not None:
        _register_portrait(runtime.server, portrait)
        await runtime.start(replication.heard)
        replication.start()
        rescue = replication.rescue
        status.add_check("restore", lambda: (not rescue.waiting, f"{rescue.waiting} shards are being restored"))
        status.add_check("map", partial(_map_check, maps, holdings, identity.node))
    services = await _services(identity.node, core, reranker, notes, status, objects, portrait, stack)
    registry = CollectorRegistry()
    registry.register(shared.metrics)
    registry.register(WriteMeasures(replicator, store, embedder))
    server = ApiServer(services, part_settings.api_settings(settings), registry=registry, request_shutdown=stop.set)
    shared.add_limits(server.runtime.limiter, server.runtime.monotonic)
    if shared.configured:
        status.add_check("redis", shared.check)
    node = Node(services, server, settings.drain_s)
    status.add_check("storage", lambda: (store.state is StoreState.OPEN, store.failure))
    status.add_check("draining", lambda: (not node.draining, "the node is shutting down" if node.draining else None))
    await server.start()
    stack.push_async_callback(server.stop)
    log.info("serving on %s:%d after %.2f s", settings.server.host, server.port, time.perf_counter() - started)
    return node


def _tame_collector() -> None:
    """What stands at start stands for good: a collection need not look at it. And collect more rarely: rows, hits and answers
    are freed by their reference counts, so a collection finds next to nothing and takes a twentieth of a recall's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, *gc.get_threshold()[1:])


async def _member(
    settings: Settings,
    identity: Identity,
    store: RowStore,
    objects: ObjectStore,
    maps: Maps,
    gate: Gate,
    stop: asyncio.Event,
) -> Runtime | None:
    """What makes a node one of many, where the settings say so."""
    if not settings.cluster.enabled:
        return None
    cluster_id = await join_bucket(store, objects)
    runtime = Runtime(
        part_settings.runtime_settings(settings),
        cluster_id,
        identity.node,
        identity.boot,
        identity.disk,
        maps,
        gate,
        objects,
        stop.set,
    )
    runtime.register()
    return runtime


def _map_check(maps: Maps, holdings: Holdings, node: NodeId) -> tuple[bool, str | None]:
    if maps.current is None:
        return False, "no shard map yet: waiting for a leader"
    waiting = holdings.unknown(maps.current.holds(node))
    return waiting == 0, f"{waiting} shards are being taken over" if waiting else None


def _register_portrait(server: PeerServer, portrait: Portrait) -> None:
    async def vitals(payload: bytes, context: Context) -> bytes:
        return portrait.vitals()

    async def command(payload: bytes, context: Context) -> bytes:
        return await portrait.command(payload)

    async def maintenance(payload: bytes, context: Context) -> bytes:
        return portrait.keep_maintenance(payload)

    server.register(VITALS_METHOD, vitals, priority=Priority.CONTROL)
    server.register(COMMAND_METHOD, command, priority=Priority.CONTROL)
    server.register(MAINTENANCE_METHOD, maintenance, priority=Priority.CONTROL)


async def _services(
    node: str,
    core: Core,
    reranker: Reranker | UnavailableReranker,
    notes: UsageNotes,
    status: NodeStatus,
    objects: ObjectStore,
    portrait: Portrait,
    stack: contextlib.AsyncExitStack,
) -> Services:
    memories = Memories(core)
    vectors = Queries(core)
    api_keys = Keys(objects, node=node, clock=time.time)
    await api_keys.start()
    stack.push_async_callback(api_keys.close)
    return Services(
        memories=memories,
        recall=Recaller(core, notes, CrossEncoding(reranker)),
        feedback=Feedback(core, memories),
        sessions=Sessions(core),
        agents=Agents(core),
        namespaces=Namespaces(core),
        vectors=vectors,
        texts=Texts(core, vectors),
        consolidation=Consolidation(core, memories),
        keys=api_keys,
        status=ActivityStatus(core, status),
        cluster=portrait,
        events=core.events,
    )


def _data_directory(settings: Settings, stack: contextlib.AsyncExitStack) -> Path:
    if settings.storage.kind is StorageKind.MEMORY:
        # Rows still need a RocksDB: it lives in a directory that goes with the process.
        temporary = Path(tempfile.mkdtemp(prefix="dakera-"))
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        return temporary
    directory = Path(settings.storage.path)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _objects(settings: Settings, directory: Path) -> ObjectStore:
    storage = settings.storage
    if storage.kind.in_s3:
        # The S3 client costs 36 MB of memory: only who uses it pays.
        from dakera_cluster.storage.s3 import S3ObjectStore, S3Settings

        return S3ObjectStore(
            S3Settings(
                bucket=storage.s3_bucket,
                region=storage.s3_region,
                endpoint_url=storage.s3_endpoint,
                access_key=storage.s3_access_key,
                secret_key=storage.s3_secret_key.reveal() if storage.s3_secret_key is not None else None,
            )
        )
    if storage.bucket_path is None and storage.kind is StorageKind.MEMORY:
        return MemoryObjectStore()
    return DirectoryObjectStore(storage.bucket_path or directory / "bucket")


async def _embedder(settings: Settings) -> Embedder | UnavailableEmbedder:
    models = settings.models
    embedder = await asyncio.to_thread(
        open_embedder,
        models.embedding_model,
        Path(models.model_cache) if models.model_cache else None,
        Device(models.device.value),
        EmbedderSettings(threads=models.inference_threads),
    )
    if not embedder.available:
        log.warning("no embedding model: %s (keyword recall works without it)", embedder.reason)
    return embedder


async def _reranker(settings: Settings) -> Reranker | UnavailableReranker:
    models, retrieval = settings.models, settings.retrieval
    reranker = await asyncio.to_thread(
        open_reranker,
        models.reranker_model,
        Path(models.model_cache) if models.model_cache else None,
        Device(models.device.value),
        RerankerSettings(
            threads=models.inference_threads,
            candidates=retrieval.reranker_candidates,
            budget_ms=float(retrieval.reranker_budget_ms),
        ),
        enabled=retrieval.reranker_enabled,
    )
    log.info("cross-encoder: %s", reranker.name if reranker.available else reranker.reason)
    return reranker
