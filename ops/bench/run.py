"""Carries out a plan: fills both engines with the same texts, then lets them answer the same questions in turns.

Used by `python -m ops.bench`.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ops.bench.engines import CHROMA, CHROMA_WITH_OURS, NODE
from ops.bench.load import Pass
from ops.bench.plan import Fill, Found, Plan, Results, Weight
from ops.bench.rounds import Engine, Questions, measure, recall_steps
from ops.bench.servers import Chroma, Node, Server
from ops.bench.texts import Fact, facts

Say = Callable[[str], None]


class Bench:
    def __init__(self, plan: Plan, out: Path, say: Say, engines: tuple[str, ...]) -> None:
        self.plan = plan
        self.results = Results(plan=plan, machine=machine())
        self._out = out
        self._say = say
        self._cache = out / "cache"
        self._cache.mkdir(parents=True, exist_ok=True)
        for log in out.glob("*.log"):
            log.unlink()
        servers: dict[str, Server] = {
            NODE: Node(out / "dakera", out / "dakera-server.log"),
            CHROMA: Chroma(out / "chromadb", out / "chromadb-server.log"),
        }
        self._engines = [Engine(servers[name], out) for name in engines]
        self._asked = list(self._engines)
        if CHROMA in engines:
            self._asked.append(Engine(servers[CHROMA], out, CHROMA_WITH_OURS))
        needed = sum(plan.sizes)
        self._stored = facts(needed, plan.seed)
        self._questions = Questions(plan.seed + 2)

    def run(self) -> Results:
        began = time.monotonic()
        try:
            self._cold_starts()
            self._single_stores()
            start = 0
            for size in self.plan.sizes:
                part = self._stored[start : start + size]
                start += size
                self._fill(f"agent-{size}", part)
                self._check(f"agent-{size}", part)
                self._recalls(f"agent-{size}", size)
                self._weigh(f"{size:,} memories of one agent", start)
            if self.plan.agents:
                self._many_agents()
            self._warm_starts()
        finally:
            for engine in self._asked:
                engine.close()
                engine.server.discard()
        self.results.took_s = time.monotonic() - began
        return self.results

    def _cold_starts(self) -> None:
        for engine in self._engines:
            self._say(f"{engine.name}: starting")
            times = []
            for _ in range(self.plan.starts):
                engine.server.discard()
                times.append(engine.server.start())
            engine.load.call("store", group="warm-up", keys=["w0"], texts=["A first memory."], clients=1, seconds=60)
            engine.load.call("recall", group="warm-up", questions=["first?"], clients=1, seconds=0.2, top_k=3)
            self._weigh("idle, model loaded", 1, [engine], statistics.median(times))

    def _warm_starts(self) -> None:
        """Stop and start with everything stored; ready means answering, so the clock stops at the first recall."""
        for engine in self._engines:
            engine.close()
            engine.server.stop()
            began = time.perf_counter()
            engine.server.start()
            engine.load.call(
                "recall", group=f"agent-{self.plan.sizes[-1]}", questions=["first?"], clients=1, seconds=0.01, top_k=3
            )
            self._weigh("after a restart", self._stored_count(), [engine], time.perf_counter() - began)

    def _stored_count(self) -> int:
        return sum(self.plan.sizes) + self.plan.agents * self.plan.agent_memories

    def _single_stores(self) -> None:
        texts = [fact.memory for fact in facts(20_000, self.plan.seed + 1)]
        for clients in self.plan.clients:
            self._say(f"storing one by one, {clients} clients")

            def store(engine: Engine, number: int, clients: int = clients) -> Pass:
                offset = (clients * self.plan.rounds + number) * 400 % len(texts)
                part = texts[offset:] + texts[:offset]
                keys = [f"{clients}-{number}-{index}" for index in range(len(part))]
                group = f"stores-{clients}-{number}"
                return engine.load.timed(
                    "store", group=group, keys=keys, texts=part, clients=clients, seconds=self.plan.seconds
                )

            self._measure("store", 0, clients, store)

    def _fill(self, group: str, part: list[Fact]) -> None:
        size = len(part)
        ready = size > self.plan.store_text_limit
        self._say(f"filling {group}" + (" with ready vectors" if ready else ""))
        spent: dict[str, list[float]] = {engine.name: [] for engine in self._engines}
        bare: list[float] = []
        for start in range(0, size, self.plan.chunk):
            texts = [fact.memory for fact in part[start : start + self.plan.chunk]]
            keys = [f"m{start + index}" for index in range(len(texts))]
            vectors = self._cache / f"{self.plan.seed}-{size}-{start}.npy"
            if not ready or not vectors.exists():
                embedded = self._engines[0].load.timed("embed", texts=texts, size=self.plan.embed_size, to=str(vectors))
                bare.append(embedded.wall_s / len(texts))
            for engine in self._engines:
                own = engine.name == NODE and not ready
                stored = engine.load.timed(
                    "store_batches",
                    group=group,
                    keys=keys,
                    texts=texts,
                    vectors=None if own else str(vectors),
                    size=self.plan.embed_size,
                    clients=2,
                )
                spent[engine.name].append(stored.wall_s / len(texts))
        for name, seconds in spent.items():
            own = name == NODE and not ready
            self.results.fills.append(
                Fill(
                    engine=name,
                    size=size,
                    with_vectors=not own,
                    rate=1 / statistics.fmean(seconds),
                    bare_rate=1 / statistics.fmean(bare) if own else None,
                    ratio=statistics.median(b / s for b, s in zip(bare, seconds, strict=True)) if own else None,
                )
            )

    def _check(self, group: str, part: list[Fact]) -> None:
        sample = random.Random(self.plan.seed).sample(part, min(self.plan.checked, len(part)))
        questions, expected = [fact.question for fact in sample], [fact.memory for fact in sample]
        for engine in self._engines:
            share = engine.load.call(
                "found", group=group, questions=questions, expected=expected, top_k=self.plan.top_k
            )
            self.results.found.append(Found(engine=engine.name, size=len(part), share=share))

    def _recalls(self, group: str, size: int) -> None:
        for clients in (*self.plan.clients, self.plan.crowd):
            self._say(f"recall at {size:,}, {clients} clients")
            slices = self._questions.slices(self.plan.rounds, self.plan.seconds)

            def recall(engine: Engine, number: int, clients: int = clients, slices: Any = slices) -> Pass:
                return engine.load.timed(
                    "recall",
                    group=group,
                    questions=slices[number],
                    clients=clients,
                    seconds=self.plan.seconds,
                    top_k=self.plan.top_k,
                )

            engines = [engine for engine in self._asked if clients != self.plan.crowd or engine.name == NODE]
            self.results.timings += measure(engines, self.plan.rounds, "recall", size, clients, recall)
        self._steps(group, size)

    def _steps(self, group: str, size: int) -> None:
        """Where a recall's time goes, by the node's own account."""
        node = next((engine for engine in self._engines if engine.name == NODE), None)
        if node is None:
            return
        steps = recall_steps(node, group, self._questions.take(50), self.plan.top_k)
        self.results.steps[f"{size}"] = steps

    def _many_agents(self) -> None:
        plan = self.plan
        groups = [f"one-of-many-{number}" for number in range(plan.agents)]
        self._say(f"filling {plan.agents:,} agents with {plan.agent_memories} memories each")
        texts = [fact.memory for fact in self._stored[: plan.sizes[0]]]
        vectors = self._cache / "agents.npy"
        chunks = range(0, plan.sizes[0], plan.chunk)
        np.save(
            vectors, np.concatenate([np.load(self._cache / f"{plan.seed}-{plan.sizes[0]}-{at}.npy") for at in chunks])
        )
        for engine in self._engines:
            filled = engine.load.timed(
                "fill_groups", groups=groups, texts=texts, vectors=str(vectors), each=plan.agent_memories, clients=2
            )
            rate = plan.agents * plan.agent_memories / filled.wall_s
            self.results.fills.append(
                Fill(engine=engine.name, size=plan.agents * plan.agent_memories, with_vectors=True, rate=rate)
            )
        rng = random.Random(plan.seed)
        for clients in plan.clients:
            self._say(f"recall over {plan.agents:,} agents, {clients} clients")
            slices = self._questions.slices(self.plan.rounds, self.plan.seconds)
            asked = [rng.choices(groups, k=len(questions)) for questions in slices]

            def recall(
                engine: Engine, number: int, clients: int = clients, slices: Any = slices, asked: Any = asked
            ) -> Pass:
                return engine.load.timed(
                    "recall_each",
                    groups=asked[number],
                    questions=slices[number],
                    clients=clients,
                    seconds=plan.seconds,
                    top_k=plan.top_k,
                )

            size = plan.agents * plan.agent_memories
            self.results.timings += measure(self._asked, plan.rounds, "recall over agents", size, clients, recall)
        self._weigh(f"and {plan.agents:,} agents x {plan.agent_memories}", self._stored_count())

    def _measure(self, what: str, size: int, clients: int, one: Callable[[Engine, int], Pass]) -> None:
        self.results.timings += measure(self._engines, self.plan.rounds, what, size, clients, one)

    def _weigh(
        self, when: str, memories: int, engines: list[Engine] | None = None, start_s: float | None = None
    ) -> None:
        for engine in engines or self._engines:
            self.results.weights.append(
                Weight(
                    engine=engine.name,
                    when=when,
                    memories=memories,
                    resident_mib=engine.server.resident_bytes() / 2**20,
                    disk_mib=engine.server.disk_bytes() / 2**20,
                    start_s=start_s,
                )
            )


def machine() -> dict[str, Any]:
    """What the figures were taken on. The load average tells how much else the machine was doing."""
    cpu = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    versions = {}
    for package in ("dakera-cluster", "chromadb", "onnxruntime", "faiss-cpu", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_average_at_start": os.getloadavg()[0],
        "versions": versions,
    }
