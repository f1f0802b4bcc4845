"""`python -m ops.bench.replication [--rounds 3] [--seconds 4] [--json FILE]`: what three replicas cost beside one.

One node alone (replication factor 1) and three nodes with three replicas of everything, write quorum two, on this one machine,
in turns: single stores, batches, recalls. Both are what `make up` starts, without the balancer, and the idle one of the two
goes on gossiping meanwhile. Three nodes share the cores that the one has to itself: processor time per answer is the cost that
separate machines would have, the rates are those of this machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console

from ops.bench.cluster import Cluster, metrics
from ops.bench.load import Pass
from ops.bench.plan import Timing
from ops.bench.report import print_machine, steps_table, timings_table
from ops.bench.rounds import Engine, Questions, measure, recall_steps
from ops.bench.run import machine
from ops.bench.servers import Node, Server
from ops.bench.texts import facts

SEED = 20_263
STORE_PATH = "/v1/memory/store"
EXPLAINED = 50

Say = Callable[[str], None]


class ReplicationPlan(msgspec.Struct, frozen=True, kw_only=True):
    rounds: int = 3
    seconds: float = 4.0
    """Length of one timed pass."""
    clients: tuple[int, ...] = (1, 8)
    memories: int = 1_000
    """Of the agent that is asked."""
    batch: int = 100
    batches_each: int = 3
    """Batches of each client in one pass."""
    top_k: int = 10


class ReplicationResults(msgspec.Struct, kw_only=True):
    plan: ReplicationPlan
    machine: dict[str, Any]
    timings: list[Timing] = []
    stores: dict[str, dict[str, float]] = {}
    """"engine, clients" -> part of a store -> mean ms."""
    recalls: dict[str, dict[str, float]] = {}
    """Engine -> step of a recall -> median ms."""
    took_s: float = 0.0


class Replication:
    """One measurement. ``run`` starts and stops everything it needs."""

    def __init__(self, plan: ReplicationPlan, out: Path, say: Say) -> None:
        self.plan = plan
        self.results = ReplicationResults(plan=plan, machine=machine())
        self._say = say
        self._out = out
        self._vectors = out / "batch.npy"
        self._texts = [fact.memory for fact in facts(20_000, SEED)]
        self._questions = Questions(SEED + 1)
        out.mkdir(parents=True, exist_ok=True)
        one: Server = Node(out / "one", out / "1-node.log")
        one.name = "1 node"
        self._engines = [Engine(one, out), Engine(Cluster(out / "three", out, 3), out)]

    def run(self) -> ReplicationResults:
        began = time.monotonic()
        try:
            for engine in self._engines:
                self._say(f"starting: {engine.name}")
                engine.server.discard()
                engine.server.start()
            self._fill()
            for clients in self.plan.clients:
                self._store(clients)
                self._batches(clients, "store 100 texts", None)
                self._batches(clients, "store 100 texts with vectors", str(self._vectors))
                self._recall(clients)
            for engine in self._engines:
                asked = self._questions.take(EXPLAINED)
                self.results.recalls[engine.name] = recall_steps(engine, "asked", asked, self.plan.top_k)
        finally:
            for engine in self._engines:
                engine.close()
                engine.server.discard()
        self.results.took_s = time.monotonic() - began
        return self.results

    def _fill(self) -> None:
        self._say("filling")
        texts = self._texts[: self.plan.memories]
        embedded = self._out / "filled.npy"
        self._engines[0].load.timed("embed", texts=texts, size=self.plan.batch, to=str(embedded))
        np.save(self._vectors, np.tile(np.load(embedded)[: self.plan.batch], (max(self._batch_counts()), 1)))
        keys = [f"m{number}" for number in range(len(texts))]
        for engine in self._engines:
            engine.load.timed(
                "store_batches", group="asked", keys=keys, texts=texts, vectors=str(embedded), size=self.plan.batch,
                clients=2,
            )  # fmt: skip
            engine.load.timed(
                "recall", group="asked", questions=["warm?"], clients=max(self.plan.clients), seconds=0.5, top_k=3
            )

    def _batch_counts(self) -> list[int]:
        return [clients * self.plan.batches_each for clients in self.plan.clients]

    def _store(self, clients: int) -> None:
        self._say(f"storing one by one, {clients} clients")
        parts: dict[str, list[dict[str, float]]] = {engine.name: [] for engine in self._engines}

        def store(engine: Engine, number: int) -> Pass:
            keys = [f"{clients}-{number}-{index}" for index in range(len(self._texts))]
            offset = (clients * self.plan.rounds + number) * 997 % len(self._texts)
            before = metrics(engine.server)
            done = engine.load.timed(
                "store", group=f"stores-{clients}-{number}", keys=keys, texts=self._rotated(offset), clients=clients,
                seconds=self.plan.seconds,
            )  # fmt: skip
            parts[engine.name].append(store_parts(before, metrics(engine.server)))
            return done

        self._measure("store", 1, clients, store)
        for name, passes in parts.items():
            means = {part: sum(one[part] for one in passes) / len(passes) for part in passes[0]}
            self.results.stores[f"{name}, {clients} client{'s' if clients > 1 else ''}"] = means

    def _batches(self, clients: int, what: str, vectors: str | None) -> None:
        self._say(f"{what}, {clients} clients")
        count = clients * self.plan.batches_each * self.plan.batch

        def store(engine: Engine, number: int) -> Pass:
            offset = (clients * self.plan.rounds + number) * 1_499 % len(self._texts)
            group = f"{what}-{clients}-{number}".replace(" ", "-")
            return engine.load.timed(
                "store_batches", group=group, keys=[f"b{index}" for index in range(count)],
                texts=self._rotated(offset)[:count], vectors=vectors, size=self.plan.batch, clients=clients,
            )  # fmt: skip

        self._measure(what, self.plan.batch, clients, store)

    def _recall(self, clients: int) -> None:
        self._say(f"recall, {clients} clients")
        slices = self._questions.slices(self.plan.rounds, self.plan.seconds)

        def recall(engine: Engine, number: int) -> Pass:
            return engine.load.timed(
                "recall", group="asked", questions=slices[number], clients=clients, seconds=self.plan.seconds,
                top_k=self.plan.top_k,
            )  # fmt: skip

        self._measure("recall", self.plan.memories, clients, recall)

    def _measure(self, what: str, size: int, clients: int, one: Callable[[Engine, int], Pass]) -> None:
        self.results.timings += measure(self._engines, self.plan.rounds, what, size, clients, one)

    def _rotated(self, offset: int) -> list[str]:
        return self._texts[offset:] + self._texts[:offset]


def store_parts(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """The parts of a mean store between two looks at the metrics, in ms. Those of the write overlap: a write ends with the
    second of its replicas, and a replica's answer holds its sync."""

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    def mean_ms(name: str, labels: str = "") -> float:
        count = grown(f"{name}_count{labels}")
        return 1000 * grown(f"{name}_sum{labels}") / count if count else 0.0

    stores = grown(f"dakera_http_request_duration_seconds_count{{path={STORE_PATH}}}")
    request_ms = mean_ms("dakera_http_request_duration_seconds", f"{{path={STORE_PATH}}}")
    embedding_ms = 1000 * grown("dakera_embedding_seconds_sum") / stores
    write_ms = mean_ms("dakera_write_seconds", "{part=whole}")
    parts = {
        "request, as the node sees it": request_ms,
        "embedding": embedding_ms,
        "write until the quorum": write_ms,
        "  own replica": mean_ms("dakera_write_seconds", "{part=own_replica}"),
        "  one other replica": mean_ms("dakera_write_seconds", "{part=peer}"),
        "  one fsync": mean_ms("dakera_disk_sync_seconds"),
        "HTTP, JSON, waiting for the model and the event loop": request_ms - embedding_ms - write_ms,
        "fsyncs a store, all nodes": grown("dakera_disk_sync_seconds_count") / stores,
    }
    return parts if parts["  one other replica"] else {n: ms for n, ms in parts.items() if n != "  one other replica"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.replication", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ReplicationPlan().rounds)
    parser.add_argument("--seconds", type=float, default=ReplicationPlan().seconds, help="length of one timed pass")
    parser.add_argument("--json", type=Path, default=Path("bench-out/replication.json"))
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    plan = ReplicationPlan(rounds=arguments.rounds, seconds=arguments.seconds)
    out = arguments.json.resolve().parent
    results = Replication(plan, out / "replication", lambda text: console.print(text, style="dim")).run()
    print_machine(results.machine, results.took_s, console)
    console.print(timings_table(results.timings))
    console.print(steps_table("Where a store's time goes (mean ms)", results.stores))
    console.print(steps_table("Where a recall's time goes, by the node's own account (median ms)", results.recalls))
    arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
