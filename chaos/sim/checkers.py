"""What must hold in every simulated run, whatever went wrong: checked while it runs and on the history at its end.

* no lost acknowledged write, no resurrection: every read shows, per field, a write that may be the last one at that time;
* no value out of thin air;
* at most one holder per epoch, at most one node that may act at any instant, acts only by the holder;
* epochs, map versions and shard versions never go back, in the bucket and at every node;
* all replicas of a shard hold the same bytes when the faults have stopped.

A broken promise raises BrokenPromiseError with what was expected and the seed's replay command. Called by the nodes, the
world and tests.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from chaos.sim.clients import FOREVER, Kind, Operation, Outcome
from chaos.sim.replica import KIND
from dakera_cluster.model.rows import version_of
from dakera_cluster.model.shardmap import ShardMap, ShardState, decode_map, majority

if TYPE_CHECKING:
    from chaos.sim.node import Node
    from chaos.sim.world import World


class BrokenPromiseError(AssertionError):
    """A promise was broken."""


class Checkers:
    def __init__(self, world: World) -> None:
        self._world = world
        self._holders: dict[int, tuple[str, int]] = {}
        self._bucket_map: ShardMap | None = None
        self._epoch_at: dict[str, int] = {}
        self._map_at: dict[str, ShardMap] = {}
        self._served_at: dict[tuple[str, int, int], int] = {}
        self.counts: Counter[str] = Counter()
        """How often interesting things happened: a run in which nothing happens proves nothing."""

    def fail(self, text: str) -> None:
        raise BrokenPromiseError(f"{text} (at {self._world.timeline.now_ms:.0f} ms; {self._world.replay})")

    # -- leadership

    def became_leader(self, node: Node, epoch: int) -> None:
        self.counts["elections"] += 1
        if self._world.bucket.ignores_conditions:
            self.fail(f"{node.name} leads over a bucket that ignores conditions")
        holder = self._holders.setdefault(epoch, (node.name, node.boot))
        if holder != (node.name, node.boot):
            self.fail(f"epoch {epoch} has two holders: {holder[0]} and {node.name}")
        if epoch < max(self._holders):
            self.fail(f"{node.name} became leader in epoch {epoch} after epoch {max(self._holders)}")
        self.one_actor()

    def one_actor(self) -> None:
        """At most one node may act: sampled all the time, paused nodes included."""
        acting = [
            node.name for node in self._world.nodes.values() if node.is_ready and node.leader.lease.can_act(node.now_ms)
        ]
        if len(acting) > 1:
            self.fail(f"{' and '.join(acting)} may act as leader at once")

    def leader_acts(self, node: Node, epoch: int) -> None:
        self.counts["map writes"] += 1
        if self._holders.get(epoch) != (node.name, node.boot):
            self.fail(f"{node.name} acts in epoch {epoch}, which it does not hold")

    def command_obeyed(self, node: Node, epoch: int) -> None:
        """A node carried out a leader's command: never one of an older epoch than before, restarts included."""
        key = f"{node.name}/{node.disk.identity}"
        if epoch < self._epoch_at.get(key, 0):
            self.fail(f"{node.name} obeyed epoch {epoch} after epoch {self._epoch_at[key]}")
        self._epoch_at[key] = epoch

    # -- maps

    def bucket_written(self, name: str, data: bytes) -> None:
        if name != "map":
            return
        newer = decode_map(data)
        before = self._bucket_map
        if before is not None:
            if newer.epoch < before.epoch:
                self.fail(f"the bucket's map went from epoch {before.epoch} to {newer.epoch}")
            if newer.version <= before.version:
                self.fail(f"the bucket's map went from version {before.version} to {newer.version}")
        self._bucket_map = newer

    def map_adopted(self, node: Node, before: ShardMap | None, newer: ShardMap) -> None:
        self.counts["maps adopted"] += 1
        self.command_obeyed(node, newer.epoch)
        key = f"{node.name}/{node.disk.identity}"
        before = self._map_at.get(key)
        if before is not None:
            if newer.version < before.version:
                self.fail(f"{node.name} went from map version {before.version} to {newer.version}")
            for shard, (old, new) in enumerate(zip(before.shards, newer.shards, strict=True)):
                if new.version < old.version:
                    self.fail(f"{node.name} went from shard {shard} version {old.version} to {new.version}")
                if new.version != old.version:
                    self.counts["shard changes"] += 1
        self._map_at[key] = newer

    def served(self, node: Node, shard: int, version: int) -> None:
        """A node served a request under a shard version: never under an older one than before, restarts included. All moves
        rest on that."""
        key = (node.name, node.disk.identity, shard)
        if version < self._served_at.get(key, 0):
            self.fail(f"{node.name} served shard {shard} under version {version} after {self._served_at[key]}")
        if version > self._served_at.get(key, version):
            trap, self._world.version_trap = self._world.version_trap, None
            if trap is not None:
                self._world.timeline.after(0.0, trap, node)
        self._served_at[key] = version

    def booted(self, node: Node) -> None:
        """What a node has served it must remember: the version is durable before the first request under it."""
        for shard in range(self._world.settings.shards):
            served = self._served_at.get((node.name, node.disk.identity, shard), 0)
            known = 0 if node.map is None else node.map.shards[shard].version
            if known < served:
                self.fail(f"{node.name} served shard {shard} under version {served} and woke up with version {known}")

    def collected(self, rows: int) -> None:
        self.counts["tombstones collected"] += rows

    def wiped_for_age(self) -> None:
        self.counts["wiped for age"] += 1

    # -- histories

    def check_history(self, history: list[Operation]) -> None:
        by_key: dict[int, list[Operation]] = {}
        for operation in history:
            by_key.setdefault(operation.key, []).append(operation)
        for operations in by_key.values():
            self._check_key(operations)

    def _check_key(self, operations: list[Operation]) -> None:
        writes = [op for op in operations if not op.kind.is_read and op.outcome is not Outcome.FAILED]
        by_value = {op.value: op for op in operations if op.kind in (Kind.PUT, Kind.PATCH)}
        wholes = [op for op in writes if op.kind is not Kind.PATCH]
        patches = [op for op in writes if op.kind is Kind.PATCH]
        settled = self._settled(operations, wholes)
        for read in operations:
            if not read.kind.is_read or read.outcome is not Outcome.OK:
                continue
            self.counts[f"{read.kind.value} reads"] += 1
            self._check_origin(read, by_value)
            if read.kind is Kind.STRONG_READ:
                base = self._check_whole(read, wholes, settled, by_value)
                if read.seen is not None and base is not None:
                    self._check_patch(read, base, wholes, patches, by_value)

    def _settled(self, operations: list[Operation], wholes: list[Operation]) -> dict[int, float]:
        """Whole writes that have certainly taken effect, and by when: acknowledged, or seen by a strong read. What was seen
        once may not be unseen."""
        settled = {op.number: op.end_ms for op in wholes if op.outcome is Outcome.OK}
        restamped = {op.number for op in wholes if op.restamped}
        for read in operations:
            if read.kind is Kind.STRONG_READ and read.outcome is Outcome.OK and read.seen is not None:
                number = read.seen.get("v", -1)
                if number in restamped:
                    continue
                settled[number] = min(settled.get(number, FOREVER), read.end_ms)
        return settled

    def _check_origin(self, read: Operation, by_value: dict[int, Operation]) -> None:
        for field, value in (read.seen or {}).items():
            origin = by_value.get(value)
            wanted = Kind.PUT if field == "v" else Kind.PATCH
            if origin is None or origin.kind is not wanted or origin.start_ms > read.end_ms:
                self.fail(f"read {read.number} of k{read.key} saw {field}={value}, which nobody had written")
            elif origin.outcome is Outcome.FAILED:
                self.fail(f"read {read.number} of k{read.key} saw write {value}, which had certainly failed")
        if read.seen is not None and "v" not in read.seen:
            self.fail(f"read {read.number} of k{read.key} saw {read.seen}: a patch brought a row to life")

    def _check_whole(
        self,
        read: Operation,
        wholes: list[Operation],
        settled: dict[int, float],
        by_value: dict[int, Operation],
    ) -> Operation | None:
        """What was seen must have a writer that no settled whole write has certainly overwritten before the read."""
        before = [op for op in wholes if settled.get(op.number, FOREVER) < read.start_ms]

        def overwriters(op: Operation) -> list[Operation]:
            effect_by_ms = settled.get(op.number, FOREVER)
            return [later for later in before if later.start_ms > effect_by_ms]

        if read.seen is not None:
            writer = by_value[read.seen["v"]]
            later = overwriters(writer)
            if later:
                word = "resurrection" if any(op.kind is Kind.DELETE for op in later) else "lost acknowledged write"
                told = ", ".join(f"{op.kind.value} {op.number}" for op in later)
                self.fail(
                    f"{word}: read {read.number} of k{read.key} saw write {writer.number} after {told} was settled"
                )
            return writer
        puts = [op for op in before if op.kind is Kind.PUT]
        deletes = [op for op in wholes if op.kind is Kind.DELETE and op.start_ms < read.end_ms]
        if puts and not any(not overwriters(delete) for delete in deletes):
            last = max(puts, key=lambda op: settled[op.number])
            self.fail(f"lost acknowledged write: read {read.number} of k{read.key} saw no row after put {last.number}")
        return None

    def _check_patch(
        self,
        read: Operation,
        base: Operation,
        wholes: list[Operation],
        patches: list[Operation],
        by_value: dict[int, Operation],
    ) -> None:
        """An acknowledged patch that came after the row's put, and before no other whole write, must show, or a later one."""
        assert read.seen is not None
        seen = by_value.get(read.seen["p"]) if "p" in read.seen else None
        for patch in patches:
            if patch.outcome is not Outcome.OK or patch.end_ms >= read.start_ms:
                continue
            if patch.start_ms <= base.takes_effect_until_ms:
                continue
            disturbed = any(
                op is not base and op.takes_effect_until_ms >= base.start_ms and op.start_ms < read.end_ms
                for op in wholes
                if not op.takes_effect_until_ms < base.start_ms
            )
            if disturbed:
                continue
            if seen is None or patch.start_ms > seen.takes_effect_until_ms:
                shows = "no patch" if seen is None else f"patch {seen.number}"
                self.fail(
                    f"lost acknowledged write: read {read.number} of k{read.key} showed {shows} "
                    f"after patch {patch.number} had been acknowledged"
                )

    def check_all_succeeded(self, history: list[Operation], since_ms: float, what: str) -> None:
        """In quiet times no request fails."""
        for op in history:
            if op.start_ms >= since_ms and op.end_ms < FOREVER and op.outcome is not Outcome.OK:
                self.fail(f"{what}: {op.kind.value} {op.number} of k{op.key} at {op.node} {op.outcome.value}")

    # -- replicas

    def divergence_of_holdings(self) -> str | None:
        """Why the loss of one more disk would be more than was promised, or None: every shard must be stable, and every
        holder up and complete."""
        data = self._world.bucket.peek("map")
        if data is None:
            return "there is no map"
        truth = decode_map(data)
        if truth.joint_shards():
            return "shards are moving"
        for shard, state in enumerate(truth.shards):
            for name in state.replicas:
                node = self._world.nodes[name]
                if len(state.replicas) < 3 or not node.is_ready or not node.replica.is_complete(shard):
                    return f"shard {shard} is short of a holder"
        return None

    def joint_states(self, shard: int) -> list[ShardState]:
        """The shard as the bucket has it, if it is moving."""
        data = self._world.bucket.peek("map")
        states = [] if data is None else [decode_map(data).shards[shard]]
        return [state for state in states if state.is_joint]

    def scarce_rows(self) -> dict[str, list[tuple[str, ...]]]:
        """For each node the rows of which it is one of a bare majority of holders: who the other holders are."""
        found: dict[str, list[tuple[str, ...]]] = {}
        data = self._world.bucket.peek("map")
        for shard, state in enumerate(decode_map(data).shards if data is not None else ()):
            copies = {name: self._world.nodes[name].disk.table(("rows", shard)) for name in state.replicas}
            for key in sorted({key for rows in copies.values() for key in rows}):
                newest = max((version_of(KIND, rows[key]), rows[key]) for rows in copies.values() if key in rows)[1]
                holders = tuple(name for name, rows in copies.items() if rows.get(key) == newest)
                if len(holders) == majority(len(copies)) < len(copies):
                    for name in holders:
                        found.setdefault(name, []).append(tuple(other for other in holders if other != name))
        return found

    def divergence(self) -> str | None:
        """Why the replicas do not agree yet, or None."""
        world = self._world
        data = world.bucket.peek("map")
        if data is None:
            return "there is no map"
        truth = decode_map(data)
        if truth.joint_shards():
            return f"shards {list(truth.joint_shards())} are still moving"
        for shard, state in enumerate(truth.shards):
            copies = []
            for name in state.replicas:
                node = world.nodes[name]
                if not node.is_ready:
                    return f"{name} is down and holds shard {shard}"
                if node.map is None or node.map.version != truth.version:
                    return f"{name} has not the newest map"
                if not node.replica.is_complete(shard):
                    return f"{name} has not all of shard {shard}"
                copies.append((name, dict(node.replica.rows(shard))))
            first_name, first = copies[0]
            for name, rows in copies[1:]:
                if rows != first:
                    keys = sorted(key for key in {*rows, *first} if rows.get(key) != first.get(key))
                    return f"{name} and {first_name} differ in shard {shard}, rows {keys}"
        return None
