"""A whole simulated cluster over one seed: build it, hurt it, let it heal, check it.

Phases: **birth** (some nodes start, a leader places the shards), **safety** (clients work while the nemesis hurts the
cluster; every promise of safety is checked all the time), **liveness** (the faults stop: within bounds a leader leads, every
request succeeds, moves end and all replicas hold the same bytes). Everything random comes from the seed, everything timed
from one timeline: the same seed gives the same trace, byte for byte. Run by ``python -m chaos sim`` and by the tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from chaos.sim.bucket import Bucket
from chaos.sim.checkers import BrokenPromiseError, Checkers
from chaos.sim.clients import Clients, Kind, Outcome
from chaos.sim.nemesis import Nemesis
from chaos.sim.net import LinkProfile, Network, Timeline
from chaos.sim.node import Node
from dakera_cluster.model.shardmap import MemberState
from dakera_cluster.protocols.hints import HintsConfig
from dakera_cluster.protocols.lease_events import LeaseConfig
from dakera_cluster.protocols.rebalance import RebalanceConfig
from dakera_cluster.protocols.swim_config import SwimConfig
from dakera_cluster.protocols.tombstones import TombstoneConfig
from dakera_cluster.protocols.transfer import TransferConfig

BIRTH_MS = 30_000.0
QUIET_MS = 25_000.0
"""After the faults stopped, this long until every request must succeed."""
CALM_MS = 8_000.0
CONVERGENCE_MS = 120_000.0
SAMPLE_MS = 100.0
LEADER_MS = 700.0
REPAIR_MS = 1_500.0
LAZY_REPAIR_MS = 10_000.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The real cores' own settings, with times short enough for a minute to hold a life."""

    shards: int = 4
    rf: int = 3
    keys: int = 6
    clients: int = 3
    swim: SwimConfig = SwimConfig(probe_interval_ms=1_000.0, probe_timeout_ms=500.0, gossip_interval_ms=300.0)
    lease: LeaseConfig = LeaseConfig()
    rebalance: RebalanceConfig = RebalanceConfig(delay_ms=12_000.0, moves_per_node=4)
    transfer: TransferConfig = TransferConfig()
    hints: HintsConfig = HintsConfig(
        max_age_ms=6_000.0, target_max_bytes=1_500, total_max_bytes=4_000, batch_rows=8, retry_max_ms=3_000.0
    )
    tombstones: TombstoneConfig = TombstoneConfig(
        grace_ms=19_000.0,
        repair_lifetime_ms=1_500.0,
        max_skew_ms=2_000.0,
        quarantine_ms=5_500.0,
        confirm_timeout_ms=3_000.0,
    )


class World:
    """One simulated cluster."""

    def __init__(self, seed: int, settings: Settings | None = None) -> None:
        self.seed = seed
        self._rng = Random(seed)
        self.settings = settings or Settings()
        self._is_lazy = self._rng.random() < 0.5
        if self._is_lazy:
            # Replicas that stay different for long: what quorums have to cope with, and quick repair would hide.
            hints = msgspec.structs.replace(self.settings.hints, target_max_bytes=0)
            self.settings = msgspec.structs.replace(self.settings, hints=hints)
        self.timeline = Timeline()
        self._digest = hashlib.sha256()
        self.lines: list[str] | None = None
        self.net: Network[str] = Network(
            self.timeline, self.fork_rng(), LinkProfile(delay_min_ms=0.5, delay_max_ms=5.0)
        )
        self.bucket = Bucket(self.timeline, self.fork_rng())
        self.checkers = Checkers(self)
        self.bucket.watch = self.checkers.bucket_written
        self.nodes: dict[str, Node] = {}
        self.orders: dict[str, MemberState] = {}
        self.is_winding_up = False
        self.transfer_delay_ms = 0.0
        self.slow_sources: dict[str, float] = {}
        """Nodes whose messages to peers are late, and by how much at most."""
        self.repair_every_ms = REPAIR_MS
        self.leader_every_ms = LEADER_MS
        self.version_trap: Callable[[Node], None] | None = None
        """What the nemesis does to the next node that serves a shard under a new version."""
        self.ready_trap: Callable[[int, str], None] | None = None
        """What the nemesis does when the next joining node reports to the leader."""
        self.ack_trap: Callable[[], None] | None = None
        """What the nemesis does in the moment the next write is acknowledged."""
        count = self._rng.choice([3, 3, 3, 4, 5])
        self.seeds = tuple(f"n{index}" for index in range(count))
        for _ in range(count):
            self.add_node()

    @property
    def replay(self) -> str:
        return f"replay: python -m chaos sim --seed {self.seed} --trace"

    def fork_rng(self) -> Random:
        """An independent generator: what one part draws does not shift what another sees."""
        return Random(self._rng.getrandbits(64))

    def trace(self, who: str, text: str) -> None:
        line = f"{self.timeline.now_ms:10.3f} {who:8} {text}"
        self._digest.update(line.encode())
        if self.lines is not None:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        """Digest of the whole trace."""
        return self._digest.hexdigest()

    # -- wires between nodes

    def deliver(self, source: str, target: str, payload: Any) -> None:
        node = self.nodes[target]
        if node.is_up and self.net.reaches(source, target):
            node._arrived(source, payload)

    def peer(self, source: str, target: str) -> Node | None:
        """Who answers a stream from ``source``, were it opened now."""
        node = self.nodes.get(target)
        if node is None or not node.is_ready or node.is_paused:
            return None
        return node if self.net.reaches(source, target) and self.net.reaches(target, source) else None

    def add_node(self) -> None:
        name = f"n{len(self.nodes)}"
        node = self.nodes[name] = Node(self, name)
        node.start()

    # -- phases

    def run(self) -> Checkers:
        """All phases. Raises BrokenPromiseError."""
        self.timeline.after(SAMPLE_MS, self._sample)
        if self._rng.random() < 0.04:
            return self._run_with_a_broken_bucket()
        self._until(self._is_born, BIRTH_MS, "no cluster was born")
        clients = Clients(self, self.settings.clients, self.settings.keys)
        if self._rng.random() < 0.15:
            self._run_calm(clients)
        else:
            nemesis = Nemesis(self)
            self.repair_every_ms = LAZY_REPAIR_MS if self._is_lazy else REPAIR_MS
            self.timeline.run_until(self.timeline.now_ms + nemesis.safety_ms)
            nemesis.stop()
            self.ack_trap = None
            self.version_trap = None
            self.ready_trap = None
            self.transfer_delay_ms = 0.0
            self.repair_every_ms = REPAIR_MS
            self.leader_every_ms = LEADER_MS
            self.orders = dict.fromkeys(self.orders, MemberState.ACTIVE)
            self.trace("world", "the faults stop")
            self.timeline.run_until(self.timeline.now_ms + QUIET_MS)
        calm_since_ms = self.timeline.now_ms
        self.timeline.run_until(self.timeline.now_ms + CALM_MS)
        self.checkers.check_all_succeeded(
            clients.history, calm_since_ms, "a request failed after the faults had stopped"
        )
        clients.is_running = False
        self.is_winding_up = True
        self._until(lambda: self.checkers.divergence() is None, CONVERGENCE_MS, "replicas do not converge")
        self._read_everything(clients)
        self.checkers.check_history(clients.history)
        self.checkers.counts["operations"] += len(clients.history)
        self.checkers.counts["acknowledged"] += sum(op.outcome is Outcome.OK for op in clients.history)
        return self.checkers

    def _run_calm(self, clients: Clients) -> None:
        """Nodes come, restart and go, and nothing else is wrong: no request may fail at any time."""
        since_ms = self.timeline.now_ms
        self.trace("world", "a calm run")
        self.timeline.run_until(self.timeline.now_ms + 3_000)
        self.add_node()
        self.timeline.run_until(self.timeline.now_ms + 25_000)
        name = self._rng.choice(sorted(self.nodes))
        self.orders[name] = MemberState.DRAINING
        self.timeline.run_until(self.timeline.now_ms + 25_000)
        if len(self.nodes) > self.settings.rf:
            self._expect_empty(name)
        self.checkers.check_all_succeeded(clients.history, since_ms, "a request failed while shards moved")
        self.orders[name] = MemberState.ACTIVE
        self.checkers.counts["calm runs"] += 1

    def _expect_empty(self, name: str) -> None:
        node = self.nodes[name]
        if node.map is None or node.map.holds(node.id):
            self.checkers.fail(f"{name} was drained and still holds shards")

    def _run_with_a_broken_bucket(self) -> Checkers:
        """A store that accepts conditions and ignores them: nobody may ever lead."""
        self.bucket.ignores_conditions = True
        self.trace("world", "the bucket ignores conditions")
        self.timeline.run_until(BIRTH_MS)
        self.checkers.counts["broken buckets"] += 1
        return self.checkers

    def _is_born(self) -> bool:
        return all(node.is_ready and node.map is not None for node in self.nodes.values())

    def _until(self, condition: Any, limit_ms: float, what: str) -> None:
        end_ms = self.timeline.now_ms + limit_ms
        while not condition():
            if self.timeline.now_ms >= end_ms:
                why = self.checkers.divergence() or ""
                self.checkers.fail(f"{what} within {limit_ms:.0f} ms: {why}")
            self.timeline.run_until(self.timeline.now_ms + 200.0)

    def _sample(self) -> None:
        self.checkers.one_actor()
        self.timeline.after(SAMPLE_MS, self._sample)

    def _read_everything(self, clients: Clients) -> None:
        """The final word of every row, from a majority."""
        node = next(node for node in self.nodes.values() if node.is_ready)
        reads = [clients.run(Kind.STRONG_READ, key, node) for key in clients.keys]
        self.timeline.run_until(self.timeline.now_ms + 5_000)
        for read in reads:
            if read.outcome is not Outcome.OK:
                self.checkers.fail(f"the final read of k{read.key} {read.outcome.value}")


def run_seed(seed: int, *, keep_trace: bool = False) -> tuple[World, BrokenPromiseError | None]:
    """Run one seed; the world holds the trace and the counts."""
    world = World(seed)
    if keep_trace:
        world.lines = []
    try:
        world.run()
    except BrokenPromiseError as violation:
        return world, violation
    return world, None
