"""The adversary of a simulated run: a seeded schedule of faults, all within what the promises allow.

The promises hold for the loss of any minority of a shard's replicas, so at most one disk is lost in a run, and only while
every shard has its full, complete set of holders. Everything else (crashes of all nodes at once, partitions, pauses, clocks,
the bucket) may happen at any time and together. Called by ``world``.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from chaos.sim.net import LinkProfile
from dakera_cluster.model.shardmap import MemberState

if TYPE_CHECKING:
    from chaos.sim.node import Node
    from chaos.sim.world import World

STEP_MIN_MS = 1_000.0
STEP_MAX_MS = 5_000.0
LOSS_MAX = 0.2
BRISK_MS = 55_000.0
AGEING_MS = 110_000.0
AGEING_PACE = 3.0
LONG_WEIGHT = 7
SLOW_DISK_MS = 150.0
SLOW_SOURCE_MS = 2_500.0
REFILL_MS = 1_500.0
"""After a disk was lost, rows are fetched this slowly: the time in which an empty replica must not be believed."""


class Mood(enum.Enum):
    """What a run is mostly about."""

    BRISK = "brisk"
    """Short faults of every kind, many at once."""
    MOVING = "moving"
    """Nodes come, drain and return all the time, transfers are slow, and the usual faults besides."""
    AGEING = "ageing"
    """Few faults, but long ones: nodes and pairs of nodes are apart for longer than tombstones live."""


class Nemesis:
    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.fork_rng()
        self.is_running = True
        self.mood = self._rng.choice([Mood.BRISK, Mood.MOVING, Mood.AGEING, Mood.AGEING])
        self._long_until_ms = 0.0
        self._may_lose_a_disk = self._rng.random() < 0.5
        self._may_delete_the_lease = self._rng.random() < 0.3
        self._nodes_max = 6 if self.mood is Mood.MOVING else 5
        if self.mood is Mood.AGEING and self._rng.random() < 0.6:
            # Nobody can take over for a node that is away: it comes back as a replica with old rows.
            self._nodes_max = len(world.nodes)
        faults = {
            self._crash: (3, 3, 1),
            self._crash_all: (1, 1, 0),
            self._crash_writers: (2, 2, 0),
            self._crash_adopter: (1, 3, 1),
            self._partition: (3, 3, 0),
            self._one_way: (2, 2, 0),
            self._part_pair: (1, 1, 4),
            self._pause: (2, 2, 0),
            self._jump: (2, 1, 1),
            self._bucket_outage: (2, 1, 1),
            self._bucket_faults: (2, 1, 1),
            self._weather: (2, 2, 1),
            self._long_crash: (1, 1, 5),
            self._lose_disk: (2, 1, 1),
            self._grow: (1, 4, 2),
            self._drain: (1, 6, 7),
            self._starve_move: (1, 6, 0),
            self._slow_source: (1, 3, 1),
            self._cut_leader: (2, 1, 0),
            self._delete_lease: (1, 1, 0),
        }
        column = list(Mood).index(self.mood)
        chosen = {fault: weights[column] for fault, weights in faults.items()}
        if self.mood is Mood.AGEING:
            # One kind of absence a run: two at once keep tombstones from being collected at all.
            theme = self._rng.choice([self._long_crash, self._part_pair, self._drain])
            for fault in (self._long_crash, self._part_pair, self._drain):
                chosen[fault] = LONG_WEIGHT if fault == theme else 0
            if theme == self._drain:
                self._nodes_max = 5
                while len(world.nodes) <= world.settings.rf:
                    world.add_node()
        self._faults = [fault for fault, weight in chosen.items() for _ in range(weight)]
        world.transfer_delay_ms = self._rng.choice([0.0, 0.0, 200.0, 700.0])
        if self.mood is Mood.MOVING:
            world.leader_every_ms = self._rng.choice([250.0, 700.0, 3_000.0])
        slow_disks = self._rng.random() < 0.3
        for node in world.nodes.values():
            node.disk.sync_max_ms = SLOW_DISK_MS if slow_disks else node.disk.sync_max_ms
        world.trace("nemesis", f"mood {self.mood.value}")
        world.timeline.after(self._rng.uniform(0, STEP_MAX_MS), self._step)

    @property
    def safety_ms(self) -> float:
        """How long this run's faults go on."""
        return AGEING_MS if self.mood is Mood.AGEING else BRISK_MS

    def _step(self) -> None:
        if not self.is_running:
            return
        self._rng.choice(self._faults)()
        pace = AGEING_PACE if self.mood is Mood.AGEING else 1.0
        self._world.timeline.after(pace * self._rng.uniform(STEP_MIN_MS, STEP_MAX_MS), self._step)

    def stop(self) -> None:
        """Heal everything; what crashed starts again."""
        self.is_running = False
        world = self._world
        world.net.heal()
        world.slow_sources.clear()
        world.net.profile = LinkProfile(delay_min_ms=0.5, delay_max_ms=5.0)
        world.bucket.is_out = False
        world.bucket.fault_share = 0.0
        for node in world.nodes.values():
            if node.is_paused:
                node.resume()
            if not node.is_up:
                node.start()

    # -- nodes

    def _running(self) -> list[Node]:
        return [node for node in self._world.nodes.values() if node.is_ready and not node.is_paused]

    def _restart_later(self, node: Node, delay_ms: float) -> None:
        life = node.life

        def restart() -> None:
            if node.life == life and not node.is_up and self.is_running:
                node.start()

        self._world.timeline.after(delay_ms, restart)

    def _crash(self, delay_ms: float | None = None) -> None:
        up = self._running()
        if up:
            node = self._rng.choice(up)
            self._world.checkers.counts["crashes"] += 1
            node.crash()
            self._restart_later(node, self._rng.uniform(300, 6_000) if delay_ms is None else delay_ms)

    def _long_crash(self) -> None:
        """Longer than the rebalance delay: its shards move away, and it comes back as a stranger to them."""
        if self._world.timeline.now_ms >= self._long_until_ms:
            self._crash(self._long_ms())

    def _long_ms(self) -> float:
        if self.mood is Mood.AGEING:
            # Long enough for a tombstone to be made, to grow old, and to be collected; one such fault at a time, or
            # nothing is.
            long_ms = self._rng.uniform(32_000, 48_000)
            self._long_until_ms = self._world.timeline.now_ms + long_ms
            return long_ms
        return self._world.settings.rebalance.delay_ms + self._rng.uniform(2_000, 25_000)

    def _crash_all(self) -> None:
        self._world.trace("nemesis", "power failure")
        for node in list(self._world.nodes.values()):
            if node.is_up and node.is_ready:
                node.crash()
                self._restart_later(node, self._rng.uniform(300, 3_000))

    def _crash_writers(self) -> None:
        """Power fails at several nodes in the very moment a write is acknowledged."""
        self._world.ack_trap = self._power_failure

    def _crash_adopter(self) -> None:
        """A node dies right after it first served a shard under a new version."""

        def die(node: Node) -> None:
            if node.is_ready:
                self._world.trace("nemesis", f"{node.name} dies with a new version")
                node.crash()
                self._restart_later(node, self._rng.uniform(100, 1_000))

        self._world.version_trap = die

    def _power_failure(self) -> None:
        self._world.trace("nemesis", "power failure at an acknowledgement")
        for node in list(self._world.nodes.values()):
            if node.is_ready:
                node.crash()
                self._restart_later(node, self._rng.uniform(300, 3_000))

    def _pause(self) -> None:
        up = self._running()
        if not up:
            return
        node = self._rng.choice(up)
        node.pause()
        self._world.trace(node.name, "paused")
        life = node.life

        def resume() -> None:
            if node.life == life and node.is_paused:
                self._world.trace(node.name, "resumed")
                node.resume()

        self._world.timeline.after(self._rng.uniform(500, 12_000), resume)

    def _jump(self) -> None:
        node = self._rng.choice(list(self._world.nodes.values()))
        skew_ms = node.clock.jump(self._rng)
        self._world.trace(node.name, f"wall clock is {skew_ms:.0f} ms off")

    def _lose_disk(self) -> None:
        """The disk whose loss hurts most, and then the node that holds what it held is cut off for a while."""
        world = self._world
        if not self._may_lose_a_disk or world.checkers.divergence_of_holdings() is not None:
            return
        up = self._running()
        if len(up) < 3:
            return
        self._may_lose_a_disk = False
        scarce = world.checkers.scarce_rows()
        node = max(up, key=lambda node: (len(scarce.get(node.name, ())), self._rng.random()))
        partners = sorted({partner for partners in scarce.get(node.name, ()) for partner in partners})
        node.crash()
        node.disk.destroy()
        world.transfer_delay_ms = max(world.transfer_delay_ms, REFILL_MS)
        world.checkers.counts["disks lost"] += 1
        world.trace(node.name, f"disk lost, new disk {node.disk.identity}")
        self._restart_later(node, self._rng.uniform(300, 3_000 if partners else 20_000))
        if partners:
            partner = self._rng.choice(partners)
            world.net.partition([partner], sorted(name for name in world.nodes if name != partner))
            world.trace("nemesis", f"{partner}, which holds what it held, is cut off")
            world.timeline.after(self._rng.uniform(6_000, 20_000), world.net.heal)

    def _starve_move(self) -> None:
        """Right after a joining node said that it is ready, it and one that stays hear nobody but each other."""
        world = self._world

        def starve(shard: int, joined: str) -> None:
            for state in world.checkers.joint_states(shard):
                kept = [name for name in state.replicas if name not in state.leaving]
                pair = [joined, *kept[-1:]]
                world.net.partition(pair, sorted(name for name in world.nodes if name not in pair))
                world.trace("nemesis", f"the move of shard {shard} to {joined} is starved")
                world.timeline.after(self._rng.uniform(1_000, 4_000), world.net.heal)

        world.ready_trap = starve

    def _grow(self) -> None:
        if len(self._world.nodes) < self._nodes_max:
            self._world.add_node()

    def _drain(self) -> None:
        """Drain a node, and have the last one back."""
        world = self._world
        ageing = self.mood is Mood.AGEING
        if ageing and MemberState.DRAINING in world.orders.values():
            return
        for name in world.orders:
            world.orders[name] = MemberState.ACTIVE
        if len(world.nodes) <= world.settings.rf:
            return
        name = self._rng.choice(sorted(world.nodes))
        world.orders[name] = MemberState.DRAINING

        def undo() -> None:
            world.orders[name] = MemberState.ACTIVE

        if ageing:
            # Away for as long as it takes to forget the dead, and back with whatever it kept.
            world.timeline.after(self._rng.uniform(32_000, 45_000), undo)

    # -- the network

    def _weather(self) -> None:
        """Loss, delay and duplicates for everybody."""
        world, rng = self._world, self._rng
        loss = rng.choice([0.0, 0.02, 0.1, LOSS_MAX])
        slow = rng.choice([5.0, 5.0, 50.0, 300.0])
        world.net.profile = LinkProfile(
            delay_min_ms=0.5, delay_max_ms=slow, loss=loss, duplicate=rng.choice([0.0, 0.05])
        )
        world.trace("nemesis", f"loss {loss} delay {slow}")

    def _part_pair(self) -> None:
        """Two nodes do not hear each other for longer than a tombstone lives, while both hear everybody else."""
        names = sorted(self._world.nodes)
        if len(names) < 2 or self._world.timeline.now_ms < self._long_until_ms:
            return
        left, right = self._rng.sample(names, 2)
        net = self._world.net
        net.block(left, right)
        net.block(right, left)
        self._world.trace("nemesis", f"{left} and {right} are apart")
        self._world.timeline.after(self._long_ms(), net.heal)

    def _slow_source(self) -> None:
        """What one node sends arrives late, each message by another delay, while it hears the others in time."""
        world = self._world
        name = self._rng.choice(sorted(world.nodes))
        world.slow_sources[name] = self._rng.uniform(500, SLOW_SOURCE_MS)
        world.trace("nemesis", f"{name} is heard late")
        world.timeline.after(self._rng.uniform(3_000, 12_000), world.slow_sources.pop, name, None)

    def _heal_later(self) -> None:
        def heal() -> None:
            self._world.net.heal()
            self._world.trace("nemesis", "network healed")

        self._world.timeline.after(self._rng.uniform(1_000, 12_000), heal)

    def _partition(self) -> None:
        names = sorted(self._world.nodes)
        self._rng.shuffle(names)
        cut = self._rng.randint(1, max(1, len(names) - 1))
        self._world.net.partition(names[:cut], names[cut:])
        self._world.trace("nemesis", f"partition {names[:cut]} | {names[cut:]}")
        self._heal_later()

    def _cut_leader(self) -> None:
        """The leader alone on one side; it still reaches the bucket."""
        leaders = [node for node in self._running() if node.leader.lease.can_act(node.now_ms)]
        if leaders:
            others = sorted(name for name in self._world.nodes if name != leaders[0].name)
            self._world.net.partition([leaders[0].name], others)
            self._world.trace("nemesis", f"leader {leaders[0].name} is cut off")
            self._heal_later()

    def _one_way(self) -> None:
        names = sorted(self._world.nodes)
        if len(names) < 2:
            return
        source = self._rng.choice(names)
        for target in self._rng.sample(
            [name for name in names if name != source], self._rng.randint(1, len(names) - 1)
        ):
            self._world.net.block(source, target)
            self._world.trace("nemesis", f"{source} does not reach {target}")
        self._heal_later()

    # -- the bucket

    def _bucket_outage(self) -> None:
        bucket = self._world.bucket
        bucket.is_out = True
        self._world.trace("nemesis", "bucket is out")

        def back() -> None:
            bucket.is_out = False

        self._world.timeline.after(self._rng.uniform(1_000, 12_000), back)

    def _bucket_faults(self) -> None:
        bucket = self._world.bucket
        bucket.fault_share = self._rng.choice([0.0, 0.2, 0.5])
        self._world.trace("nemesis", f"bucket fault share {bucket.fault_share}")

    def _delete_lease(self) -> None:
        """An operator's mistake, made once: an object that is created and deleted again unseen cannot be told from none."""
        if self._may_delete_the_lease:
            self._may_delete_the_lease = False
            self._world.bucket.delete("lease")
            self._world.trace("nemesis", "lease object deleted")
