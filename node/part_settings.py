"""What each part is told: the settings of a node in the words of its parts.

A part knows nothing of `model.config`; its bounds and times are its own, and here is said which setting each comes from. Called
by `wiring`.
"""

from __future__ import annotations

import base64
import ssl
from pathlib import Path

from dakera_cluster.api.settings import ApiSettings
from dakera_cluster.cluster.collector import CollectorSettings
from dakera_cluster.cluster.leader import LeaderSettings
from dakera_cluster.cluster.mover import MoverSettings
from dakera_cluster.cluster.peer_settings import PeerSettings, peer_tls
from dakera_cluster.cluster.repair import RepairSettings
from dakera_cluster.cluster.replication import ReplicationSettings
from dakera_cluster.cluster.replicator import ReplicatorSettings
from dakera_cluster.cluster.runtime import RuntimeSettings
from dakera_cluster.cluster.segments import SegmentSettings
from dakera_cluster.model.config import Settings
from dakera_cluster.model.config.values import Secret
from dakera_cluster.protocols.hints import HintsConfig
from dakera_cluster.protocols.lease_events import LeaseConfig
from dakera_cluster.protocols.members import Address
from dakera_cluster.protocols.quorum import WriteLevel
from dakera_cluster.protocols.rebalance import RebalanceConfig
from dakera_cluster.protocols.swim_config import SwimConfig
from dakera_cluster.protocols.tombstones import TombstoneConfig
from dakera_cluster.retrieval.options import Settings as RecallSettings


def api_settings(settings: Settings) -> ApiSettings:
    server, limits = settings.server, settings.limits
    return ApiSettings(
        host=server.host,
        port=server.port,
        root_key=server.root_api_key.reveal() if server.root_api_key is not None else None,
        auth_enabled=server.auth_enabled,
        cors_origins=server.cors_origins,
        rate_limit_rps=limits.rate_limit_rps,
        rate_limit_burst=limits.rate_limit_burst,
        max_body_bytes=limits.max_body_bytes,
        request_timeout_s=float(server.request_timeout_s),
        max_in_flight=limits.max_inflight_requests,
    )


def recall_settings(settings: Settings) -> RecallSettings:
    retrieval, memory = settings.retrieval, settings.memory
    return RecallSettings(
        rrf_k=retrieval.rrf_k,
        name_boost=retrieval.name_boost,
        ml_classifier=retrieval.ml_classifier,
        temporal_inference=retrieval.temporal_inference,
        temporal_mult_beta=retrieval.temporal_mult_beta,
        entity_vector_search=retrieval.entity_vector_search,
        half_life_s=float(memory.decay_half_life_s) if memory.decay_enabled else None,
    )


def replicator_settings(settings: Settings) -> ReplicatorSettings:
    cluster = settings.cluster
    return ReplicatorSettings(WriteLevel(cluster.write_level.value), cluster.write_timeout_ms)


def replication_settings(settings: Settings) -> ReplicationSettings:
    cluster = settings.cluster
    return ReplicationSettings(
        hints=HintsConfig(max_age_ms=1000.0 * cluster.hint_max_age_s, target_max_bytes=cluster.hint_max_bytes),
        repair=RepairSettings(interval_ms=1000.0 * cluster.repair_interval_s),
        mover=MoverSettings(shards_at_once=cluster.concurrent_moves, bytes_per_s=float(cluster.move_bytes_per_s)),
        collector=CollectorSettings(tombstones=tombstones(settings)),
        segments=segment_settings(settings),
    )


def segment_settings(settings: Settings) -> SegmentSettings:
    return SegmentSettings(interval_s=float(settings.cluster.segment_interval_s))


def tombstones(settings: Settings) -> TombstoneConfig:
    return TombstoneConfig(grace_ms=1000.0 * settings.cluster.tombstone_grace_s)


def runtime_settings(settings: Settings) -> RuntimeSettings:
    cluster, server = settings.cluster, settings.server
    bind = settings.gossip_bind
    keys_ = [_key_bytes(secret) for secret in (cluster.gossip_key, cluster.gossip_key_previous) if secret is not None]
    advertise = cluster.gossip_advertise
    secret = cluster.secret or server.root_api_key
    seeds = tuple(Address(seed.host, seed.port) for seed in cluster.seeds)
    return RuntimeSettings(
        bind=Address(bind.host, bind.port),
        advertise=Address(advertise.host, advertise.port) if advertise is not None else None,
        api_url=cluster.api_advertise or f"http://{server.host}:{server.port}",
        zone=cluster.zone or "",
        seeds=seeds,
        secret=secret.reveal() if secret is not None else None,
        gossip_keys=tuple(keys_),
        peers=PeerSettings(message_bytes=cluster.peer_frame_bytes, inflight=cluster.peer_inflight),
        tls=_peer_tls(settings),
        swim=SwimConfig(
            probe_interval_ms=float(cluster.probe_interval_ms),
            probe_timeout_ms=float(cluster.probe_timeout_ms),
            suspicion_multiplier=cluster.suspicion_multiplier,
            gossip_interval_ms=float(cluster.gossip_interval_ms),
            push_pull_interval_ms=float(cluster.push_pull_interval_ms),
        ),
        leader=LeaderSettings(
            lease=LeaseConfig(ttl_ms=cluster.lease_ttl_ms),
            rebalance=RebalanceConfig(
                delay_ms=1000.0 * cluster.rebalance_delay_s, moves_per_node=cluster.concurrent_moves
            ),
            shards=cluster.shards,
            replication_factor=cluster.replication_factor,
            birth_members=min(cluster.replication_factor, len(set(seeds)) + 1),
        ),
    )


def _peer_tls(settings: Settings) -> tuple[ssl.SSLContext, ssl.SSLContext] | None:
    cluster = settings.cluster
    if cluster.peer_tls_cert is None or cluster.peer_tls_key is None or cluster.peer_tls_ca is None:
        return None
    return peer_tls(Path(cluster.peer_tls_cert), Path(cluster.peer_tls_key), Path(cluster.peer_tls_ca))


def _key_bytes(secret: Secret) -> bytes:
    text = secret.reveal()
    return bytes.fromhex(text) if len(text) == 64 else base64.b64decode(text)
