"""Settings of the cluster: identity, gossip, leadership, placement, replication, repair and movement."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from dakera_cluster.model.config.values import (
    NODE_ID,
    PORT,
    Bool,
    Choice,
    Duration,
    Endpoint,
    HostPort,
    Int,
    Many,
    Path,
    Secret,
    SecretKey,
    SecretText,
    Size,
    Url,
)
from dakera_cluster.model.config.variable import Var

GOSSIP_PORT = 7946


class Role(enum.StrEnum):
    PRIMARY = "primary"
    REPLICA = "replica"


class WriteLevel(enum.StrEnum):
    """How many replicas of a shard must hold a write durably before it is acknowledged."""

    ONE = "one"
    QUORUM = "quorum"
    ALL = "all"


class ReadConsistency(enum.StrEnum):
    """What a read may miss: nothing acknowledged, what is younger than a bound, or what one replica has not heard yet."""

    EVENTUAL = "eventual"
    BOUNDED_STALENESS = "bounded_staleness"
    STRONG = "strong"


_REDIS = Url(("redis", "rediss"))
_SEEDS = Many(Endpoint(GOSSIP_PORT))


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    enabled: Annotated[
        bool,
        Var(
            "DAKERA_CLUSTER_MODE",
            Bool(also_true=("ha",)),
            "one of many nodes; otherwise a cluster of one",
            relied_on=True,
            effect=True,
        ),
    ] = False
    node_id: Annotated[
        str | None,
        Var(
            "DAKERA_NODE_ID",
            NODE_ID,
            "name of the node, the same over restarts",
            aliases=("DAKERA_CLUSTER_NODE_ID",),
            unset="made at the first start and kept on disk",
            effect=True,
        ),
    ] = None
    role: Annotated[
        Role | None, Var("DAKERA_CLUSTER_ROLE", Choice(Role), "there is no static primary: leaders are elected")
    ] = None
    zone: Annotated[
        str | None,
        Var(
            "DAKERA_ZONE", NODE_ID, "rack or availability zone: replicas of a shard are spread over zones", effect=True
        ),
    ] = None
    seeds: Annotated[
        tuple[HostPort, ...],
        Var(
            "DAKERA_CLUSTER_SEEDS",
            _SEEDS,
            "nodes to join the cluster through",
            aliases=("DAKERA_GOSSIP_SEED", "DAKERA_SEED_NODES", "SEED_NODES"),
            effect=True,
        ),
    ] = ()
    gossip_port: Annotated[int, Var("DAKERA_GOSSIP_PORT", PORT, "gossip (UDP) and peer (TCP) port", effect=True)] = (
        GOSSIP_PORT
    )
    gossip_bind: Annotated[
        HostPort | None,
        Var(
            "DAKERA_GOSSIP_BIND",
            Endpoint(GOSSIP_PORT),
            "address gossip binds",
            aliases=("DAKERA_BIND_ADDR", "BIND_ADDR"),
            unset="the host and the gossip port",
            effect=True,
        ),
    ] = None
    gossip_advertise: Annotated[
        HostPort | None,
        Var(
            "DAKERA_GOSSIP_ADVERTISE",
            Endpoint(GOSSIP_PORT),
            "gossip address (an IP) told to peers",
            unset="the host of the advertised URL, else the bound address",
            effect=True,
        ),
    ] = None
    api_advertise: Annotated[
        str | None,
        Var("DAKERA_API_ADVERTISE", Url(), "own REST URL told to peers", unset="the bound address", effect=True),
    ] = None
    gossip_key: Annotated[
        Secret | None,
        Var("DAKERA_GOSSIP_KEY", SecretKey(), "seals gossip packets", unset="not sealed", relied_on=True, effect=True),
    ] = None
    gossip_key_previous: Annotated[
        Secret | None,
        Var(
            "DAKERA_GOSSIP_KEY_PREVIOUS", SecretKey(), "accepted beside the gossip key while it is rotated", effect=True
        ),
    ] = None
    secret: Annotated[
        Secret | None,
        Var(
            "DAKERA_CLUSTER_SECRET",
            SecretText(8),
            "shared by all nodes: peers prove that they know it",
            unset="the root key",
            relied_on=True,
            effect=True,
        ),
    ] = None
    peer_tls_cert: Annotated[
        str | None,
        Var(
            "DAKERA_PEER_TLS_CERT",
            Path(),
            "certificate for peer connections (PEM)",
            unset="no TLS",
            relied_on=True,
            effect=True,
        ),
    ] = None
    peer_tls_key: Annotated[str | None, Var("DAKERA_PEER_TLS_KEY", Path(), "its private key (PEM)", effect=True)] = None
    peer_tls_ca: Annotated[
        str | None, Var("DAKERA_PEER_TLS_CA", Path(), "authority that signs peers (PEM)", effect=True)
    ] = None

    redis_url: Annotated[
        str | None,
        Var(
            "DAKERA_REDIS_URL", _REDIS, "shared rate limits, events and cache; the node runs on without it", effect=True
        ),
    ] = None
    cache_redis_url: Annotated[
        str | None,
        Var("DAKERA_CACHE_REDIS_URL", _REDIS, "Redis of the cache alone", unset="the Redis URL", effect=True),
    ] = None

    shards: Annotated[
        int,
        Var(
            "DAKERA_SHARDS",
            Int(1, 65_536, "shards"),
            "fixed when the cluster is born: 64 serve tens of nodes",
            effect=True,
        ),
    ] = 64
    replication_factor: Annotated[
        int,
        Var(
            "DAKERA_REPLICATION_FACTOR",
            Int(1, 15, "replicas"),
            "replicas of a shard, as far as there are nodes",
            effect=True,
        ),
    ] = 3
    write_level: Annotated[
        WriteLevel,
        Var(
            "DAKERA_WRITE_LEVEL",
            Choice(WriteLevel),
            "replicas that must be durable before a write is acknowledged",
            effect=True,
        ),
    ] = WriteLevel.QUORUM
    read_consistency: Annotated[
        ReadConsistency,
        Var(
            "DAKERA_READ_CONSISTENCY", Choice(ReadConsistency), "consistency of reads that do not name one", effect=True
        ),
    ] = ReadConsistency.EVENTUAL
    max_staleness_ms: Annotated[
        int, Var("DAKERA_MAX_STALENESS_MS", Duration("ms", 1), "bound of bounded_staleness", effect=True)
    ] = 5000
    write_timeout_ms: Annotated[
        int, Var("DAKERA_WRITE_TIMEOUT_MS", Duration("ms", 10), "wait for the write quorum", effect=True)
    ] = 5000
    read_timeout_ms: Annotated[
        int, Var("DAKERA_READ_TIMEOUT_MS", Duration("ms", 10), "wait for the replicas a read needs")
    ] = 5000
    max_clock_offset_ms: Annotated[
        int, Var("DAKERA_MAX_CLOCK_OFFSET_MS", Duration("ms", 1), "stamps further in the future are refused")
    ] = 500

    probe_interval_ms: Annotated[
        int,
        Var(
            "DAKERA_GOSSIP_PROBE_INTERVAL_MS", Duration("ms", 10), "one member is probed in each interval", effect=True
        ),
    ] = 500
    probe_timeout_ms: Annotated[
        int,
        Var(
            "DAKERA_GOSSIP_PROBE_TIMEOUT_MS",
            Duration("ms", 5),
            "wait for a direct answer before others are asked",
            effect=True,
        ),
    ] = 250
    suspicion_multiplier: Annotated[
        int, Var("DAKERA_GOSSIP_SUSPICION_MULT", Int(1, 100), "probe intervals a suspect has to object", effect=True)
    ] = 4
    gossip_interval_ms: Annotated[
        int, Var("DAKERA_GOSSIP_INTERVAL_MS", Duration("ms", 10), "least time between two bursts of news", effect=True)
    ] = 200
    push_pull_interval_ms: Annotated[
        int, Var("DAKERA_GOSSIP_PUSH_PULL_MS", Duration("ms", 100), "time between two full exchanges", effect=True)
    ] = 30_000

    lease_ttl_ms: Annotated[
        int, Var("DAKERA_LEASE_TTL_MS", Duration("ms", 500), "life of the leader's lease", effect=True)
    ] = 6000
    rebalance_delay_s: Annotated[
        int,
        Var(
            "DAKERA_REBALANCE_DELAY_SECS",
            Duration("s"),
            "a node that is back within this time moves nothing",
            effect=True,
        ),
    ] = 60
    move_bytes_per_s: Annotated[
        int, Var("DAKERA_MOVE_BYTES_PER_SEC", Size(64 * 1024), "throttle of shard moves, per node", effect=True)
    ] = 32 * 1024**2
    concurrent_moves: Annotated[
        int, Var("DAKERA_CONCURRENT_MOVES", Int(1, 64, "shards"), "shards a node receives at once", effect=True)
    ] = 2

    hint_max_bytes: Annotated[
        int, Var("DAKERA_HINT_MAX_BYTES", Size(1024), "hints kept on disk for each absent peer", effect=True)
    ] = 256 * 1024**2
    hint_max_age_s: Annotated[
        int, Var("DAKERA_HINT_MAX_AGE_SECS", Duration("s", 1), "older hints are left to anti-entropy", effect=True)
    ] = 10_800
    repair_interval_s: Annotated[
        int,
        Var("DAKERA_REPAIR_INTERVAL_SECS", Duration("s", 1), "time between two comparisons with a peer", effect=True),
    ] = 2
    tombstone_grace_s: Annotated[
        int,
        Var(
            "DAKERA_TOMBSTONE_GRACE_SECS",
            Duration("s", 1),
            "deletions are remembered this long; a node absent for longer starts over from its peers",
            effect=True,
        ),
    ] = 864_000
    segment_interval_s: Annotated[
        int,
        Var("DAKERA_SEGMENT_INTERVAL_SECS", Duration("s", 1), "time between two uploads of changed rows", effect=True),
    ] = 30
    peer_frame_bytes: Annotated[
        int, Var("DAKERA_PEER_FRAME_BYTES", Size(64 * 1024), "largest frame between peers", effect=True)
    ] = 64 * 1024**2
    peer_inflight: Annotated[
        int, Var("DAKERA_PEER_INFLIGHT", Int(1, 1_000_000, "calls"), "calls of one peer worked on at once", effect=True)
    ] = 1024

    @property
    def gossip_keys_text(self) -> str:
        """`key` or `key,previous`, empty without a key."""
        keys = [key.reveal() for key in (self.gossip_key, self.gossip_key_previous) if key is not None]
        return ",".join(keys)
