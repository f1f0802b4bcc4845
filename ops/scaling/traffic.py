"""Traffic that a cluster makes for itself: gossip, maps, repair, sweeps, and requests to the bucket.

Intervals, limits and page sizes are read from the code that uses them, message sizes are measured on encoded messages; what
a load must be assumed for comes from `assumptions`.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from dakera_cluster.cluster.calls import pack
from dakera_cluster.cluster.catalog import REFRESH_INTERVAL_S
from dakera_cluster.cluster.repair_wire import Compared, RootsAnswer, RootsAsk, ShardRoot
from dakera_cluster.cluster.runtime import POLL_BUCKET_S
from dakera_cluster.cluster.segments import SegmentSettings
from dakera_cluster.memory.expiry import SWEEP_INTERVAL_S
from dakera_cluster.memory.keys import FLUSH_S, REFRESH_S
from dakera_cluster.model.config.cluster import Cluster
from dakera_cluster.model.ids import BootId, NodeId, ShardId
from dakera_cluster.protocols.lease_events import LeaseConfig
from dakera_cluster.protocols.members import Address, NodeState, Update
from dakera_cluster.protocols.packets import ClusterState, Sync, encode_sync
from dakera_cluster.protocols.swim_config import SwimConfig
from dakera_cluster.storage.objects import LIST_LIMIT
from dakera_cluster.storage.segments import Manifest, SegmentEntry, encode_manifest
from ops.scaling.assumptions import MONTH_S, Assumptions

SWIM_TABLES = Path(__file__).resolve().parent.parent / "SWIM.md"
BASE_PAGE_BYTES = 64 << 20
"""Of bodies and keys in one segment of a base (`cluster.segments`)."""
DEFAULTS = Cluster()


class Swim(msgspec.Struct, frozen=True):
    """What `ops/SWIM.md` says of one cluster size."""

    bytes_per_s: float
    known_p50_s: float
    known_p99_s: float
    all_p50_s: float


def swim(nodes: int) -> Swim:
    """Raises KeyError when the simulation did not cover this size."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in SWIM_TABLES.read_text().splitlines()
        if line.startswith(f"| {nodes} |")
    ]
    if len(lines) < 2:
        raise KeyError(nodes)
    crash, quiet = lines[:2]
    return Swim(float(quiet[2]), float(crash[5]), float(crash[6]), float(crash[7]))


def push_pull_bytes(nodes: int) -> int:
    """One full state with addresses and the metadata a node sets."""
    members = tuple(
        Update(
            NodeId(f"dakera-{number:04d}"), BootId(7), 1, NodeState.ALIVE, NodeId(f"dakera-{number:04d}"),
            Address(f"10.12.{number // 256}.{number % 256}", 7946),
            {"url": f"http://10.12.{number // 256}.{number % 256}:3000", "disk": (1 << 62) + number, "v": "0.11.55"},
        )
        for number in range(nodes)
    )  # fmt: skip
    return len(encode_sync("0123456789abcdef", Sync(members[0].node, BootId(7), ClusterState(3, 4_000), members)))


def push_pull_per_s(nodes: int) -> float:
    """Bytes a second that one node sends in exchanges: it asks once an interval and is asked once."""
    return 2 * push_pull_bytes(nodes) / (SwimConfig().push_pull_ms(nodes) / 1000.0)


class RepairInSync(msgspec.Struct, frozen=True):
    """Of one node, nothing being different: comparisons it begins a second, bytes it sends, syncs of its disk."""

    comparisons_per_s: float
    bytes_per_s: float
    syncs_per_s: float


def repair_in_sync(held: float, peers: float, replication_factor: int) -> RepairInSync:
    """``held`` shards, shared with ``peers`` nodes."""
    shared = max(1, round(held * (replication_factor - 1) / max(1.0, peers)))
    roots = [ShardRoot(ShardId(16_000 + number), 12, (1 << 63) + number) for number in range(shared)]
    ask, answer = len(pack(RootsAsk(roots))), len(pack(RootsAnswer([Compared.EQUAL] * shared)))
    per_s = peers / DEFAULTS.repair_interval_s
    return RepairInSync(per_s, per_s * (ask + answer), 2 * per_s)


class Line(msgspec.Struct, frozen=True):
    """Requests of one kind to the bucket, by the whole cluster."""

    what: str
    interval: str
    puts_per_s: float = 0.0
    """PUT and LIST, which cost the same."""
    gets_per_s: float = 0.0
    bytes_per_s: float = 0.0

    def dollars(self, a: Assumptions) -> float:
        return MONTH_S * (self.puts_per_s * a.put_price + self.gets_per_s * a.get_price)


USAGE_BYTES = 150.0
"""A usage row with its key in a segment."""


def list_calls(objects: int) -> int:
    """Calls that a listing of ``objects`` takes: pages until an empty one."""
    return math.ceil(objects / LIST_LIMIT) + 1


def dirty_share(writes_per_s: float, shards: int, interval_s: float) -> float:
    """Shards that changed within an interval, when writes fall on shards at random."""
    return 1.0 - math.exp(-writes_per_s * interval_s / shards)


def shard_writes_per_s(a: Assumptions) -> float:
    """Batches of rows: every store is one, and every recall notes its hits as used a little later."""
    return a.requests_per_s


def distinct_keys(a: Assumptions, nodes: int, interval_s: float) -> float:
    """API keys that one node sees in an interval."""
    return a.api_keys * (1.0 - math.exp(-a.requests_per_s * interval_s / nodes / a.api_keys))


def uploads_per_s(a: Assumptions, shards: int) -> float:
    interval_s = float(DEFAULTS.segment_interval_s)
    return shards * dirty_share(shard_writes_per_s(a), shards, interval_s) / interval_s


def uploads_a_base(a: Assumptions, shards: int, segment_bytes: float) -> float:
    """Uploads of a shard until all of it is written anew: as many as weigh what it weighs, within the bounds of their number."""
    settings, fresh = SegmentSettings(), delta_bytes_per_s(a, segment_bytes, USAGE_BYTES)
    if not fresh:
        return math.inf
    needed = a.memories / shards * segment_bytes * uploads_per_s(a, shards) / fresh
    return min(settings.max_deltas, max(settings.min_deltas, needed)) + 1


def manifest_bytes(segments: int) -> int:
    """Of a shard with so many."""
    key = f"{'memory-of-an-agent-0123456789':64}".encode()
    entry = SegmentEntry(
        object_key=f"segments/00001/node-1-{0:016x}.seg", digest="0" * 64, size_bytes=20_000, rows=60,
        first_key=key, last_key=key, meta={"shard": 1, "node": "node-1"},
    )  # fmt: skip
    manifest = Manifest(name="segments/00001/manifest", sequence=1, segments=(entry,) * segments, meta={})
    return len(encode_manifest(manifest))


def base_bytes_per_s(a: Assumptions, shards: int, segment_bytes: float) -> float:
    """Of shards that are written anew, all of them."""
    return uploads_per_s(a, shards) / uploads_a_base(a, shards, segment_bytes) * a.memories / shards * segment_bytes


def delta_bytes_per_s(a: Assumptions, segment_bytes: float, usage_bytes: float) -> float:
    return a.stores_per_s * segment_bytes + a.recalls_per_s * a.hits * usage_bytes


def bucket(
    a: Assumptions, nodes: int, shards: int, map_bytes: int, segment_bytes: float, body_bytes: float
) -> list[Line]:
    """All that goes to the bucket while nothing fails and nothing moves."""
    lease = LeaseConfig()
    uploads = uploads_per_s(a, shards)
    a_base = uploads_a_base(a, shards, segment_bytes)
    bases = uploads / a_base
    pages = math.ceil(a.memories / shards * body_bytes / BASE_PAGE_BYTES)
    base_bytes = base_bytes_per_s(a, shards, segment_bytes)
    every = f"{DEFAULTS.segment_interval_s} s and changed shard"
    return [
        Line("lease: the leader renews", f"{lease.renew_ms / 1000:g} s", puts_per_s=1000 / lease.renew_ms),
        Line(
            "lease: everybody else looks", f"{lease.poll_ms / 1000:g} s and node",
            gets_per_s=(nodes - 1) * 1000 / lease.poll_ms,
        ),
        Line(
            "map: everybody looks, the whole object", f"{POLL_BUCKET_S:g} s and node",
            gets_per_s=nodes / POLL_BUCKET_S, bytes_per_s=nodes / POLL_BUCKET_S * map_bytes,
        ),
        Line(
            f"catalog: everybody lists {a.namespaces:,} namespaces", f"{REFRESH_INTERVAL_S:g} s and node",
            puts_per_s=nodes * list_calls(a.namespaces) / REFRESH_INTERVAL_S,
        ),
        Line(
            f"keys: everybody lists {a.api_keys:,} keys", f"{REFRESH_S:g} s and node",
            puts_per_s=nodes * list_calls(a.api_keys) / REFRESH_S,
        ),
        Line(
            "keys: usage written", f"{FLUSH_S:g} s, node and key it saw",
            puts_per_s=nodes * distinct_keys(a, nodes, FLUSH_S) / FLUSH_S,
        ),
        Line(
            "segments: changed rows", every, puts_per_s=uploads - bases,
            bytes_per_s=delta_bytes_per_s(a, segment_bytes, USAGE_BYTES),
        ),
        Line(
            "segments: manifests, which name every delta", every, puts_per_s=uploads,
            bytes_per_s=uploads * manifest_bytes(SegmentSettings().max_deltas // 2),
        ),
        Line(
            "segments: whole shards anew", f"every {a_base:,.0f} uploads of a shard",
            puts_per_s=bases * pages, bytes_per_s=base_bytes,
        ),
    ]  # fmt: skip


def sweep_calls_per_s(nodes: int, shards: int) -> float:
    """Of the whole cluster: every node asks every shard for what has expired."""
    return nodes * shards / SWEEP_INTERVAL_S


def map_spread_bytes(nodes: int, map_bytes: int, versions: int) -> float:
    """Every node fetches every version whole."""
    return float(nodes) * map_bytes * versions
