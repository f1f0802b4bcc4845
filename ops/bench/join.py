"""`python -m ops.bench.join [--memories 100000] [--json FILE]`: a fourth node joins a loaded cluster of three, and leaves it.

Clients store and recall all the time, each at one of the three first nodes, and repeat nothing: a request that fails is
counted. Measured are the shards that moved, the throughput while they moved beside that before, and whether every memory is
found afterwards. The process exits with 1 when a promise is broken: a failed request, a share of shards that is not within a
tenth of a quarter, a throughput under seven tenths while they move.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from ops.bench.cluster import Cluster
from ops.bench.load import Mixed
from ops.bench.plan import quantile
from ops.bench.report import print_machine
from ops.bench.rounds import Engine, Questions
from ops.bench.run import machine
from ops.bench.servers import machine_busy_s
from ops.bench.texts import Fact, facts

SEED = 20_264
REPLICAS = 3
WRITERS = 100
"""Agents that new memories are stored for: others than those that are asked, whose answers must stay the same."""
WARM_S = 5.0
"""Of the load, before it is measured."""
SLICE_S = 1.0
"""Length of one pass of the load: what a phase is made of."""
MOVE_TIMEOUT_S = 900.0
LEAST_THROUGHPUT = 0.7
SHARE_TOLERANCE = 0.1

Say = Callable[[str], None]


class JoinPlan(msgspec.Struct, frozen=True, kw_only=True):
    memories: int = 100_000
    agents: int = 1_000
    distinct: int = 1_000
    """Different texts and vectors; agents have them in turn."""
    clients: int = 4
    steady_s: float = 20.0
    """Length of the phases in which nothing happens."""
    checked: int = 200
    top_k: int = 10


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """What the clients saw between two events. ``rate`` is the median over seconds, in operations a second; ``relative`` to
    the first phase."""

    name: str
    seconds: float
    operations: int
    rate: float
    relative: float
    p50_ms: float
    p99_ms: float
    failed: int
    cores: float
    """Processor seconds of all nodes a second."""
    others: float
    """The same of everything else on this machine, the load generator included: what the nodes could not have."""


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """``held``: shards of which the node has a replica; ``ideal``: its even share; ``replicas_moved``: replicas that are
    somewhere else than before."""

    event: str
    held: int
    ideal: float
    replicas_moved: int
    took_s: float


class JoinResults(msgspec.Struct, kw_only=True):
    plan: JoinPlan
    machine: dict[str, Any]
    fill_rate: float = 0.0
    phases: list[Phase] = []
    moves: list[Moved] = []
    found: dict[str, float] = {}
    """Event -> share of questions whose memory is among the first answers."""
    problems: dict[str, int] = {}
    took_s: float = 0.0

    def broken(self) -> list[str]:
        """Promises that did not hold, in words."""
        out = [f"{count} requests failed: {text}" for text, count in self.problems.items()]
        out += [
            f"throughput fell to {phase.relative:.0%} while {phase.name}"
            for phase in self.phases
            if phase.name.startswith("shards move") and phase.relative < LEAST_THROUGHPUT
        ]
        out += [
            f"{moved.held} shards on the new node, expected about {moved.ideal:.0f}"
            for moved in self.moves
            if moved.ideal and abs(moved.held - moved.ideal) > SHARE_TOLERANCE * moved.ideal
        ]
        if len(set(self.found.values())) > 1:
            out.append(f"not every memory is found any more: {self.found}")
        return out


class Traffic:
    """Load without end in slices of a second, on a thread of its own, each remembered with the time at which it began."""

    def __init__(self, engine: Engine, plan: JoinPlan, groups: list[str], writers: list[str], texts: list[str]) -> None:
        self._engine = engine
        self._plan = plan
        self._groups = groups
        self._writers = writers
        self._texts = texts
        self._questions = Questions(SEED + 1).take(20_000)
        self._slices: list[tuple[float, Mixed]] = []
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def between(self, start: float, end: float) -> list[Mixed]:
        """The slices that lie wholly between two moments of the monotonic clock."""
        return [one for began, one in self._slices if start <= began and began + one.done.wall_s <= end]

    def problems(self) -> Counter[str]:
        return Counter(problem for _, one in self._slices for problem in one.problems)

    def _run(self) -> None:
        number = 0
        try:
            while not self._stopped.is_set():
                began = time.monotonic()
                answer = self._engine.load.call(
                    "mixed", groups=self._groups, writers=self._writers, questions=self._questions, texts=self._texts, start=number,
                    clients=self._plan.clients, seconds=SLICE_S, top_k=self._plan.top_k,
                )  # fmt: skip
                mixed = msgspec.convert(answer, Mixed)
                number += len(mixed.done.latencies_ms) + self._plan.clients
                self._slices.append((began, mixed))
        except BaseException as error:
            self._error = error


class Join:
    """One measurement. ``run`` starts and stops everything it needs."""

    def __init__(self, plan: JoinPlan, out: Path, say: Say) -> None:
        self.plan = plan
        self.results = JoinResults(plan=plan, machine=machine())
        self._say = say
        self._out = out
        out.mkdir(parents=True, exist_ok=True)
        self._cluster = Cluster(out / "cluster", out, REPLICAS)
        self._engine = Engine(self._cluster, out)
        self._facts: list[Fact] = facts(plan.distinct, SEED)
        self._groups = [f"agent-{number}" for number in range(plan.agents)]
        self._writers = [f"writer-{number}" for number in range(WRITERS)]

    def run(self) -> JoinResults:
        began = time.monotonic()
        cluster = self._cluster
        try:
            self._say("starting three nodes")
            cluster.discard()
            cluster.start()
            self._fill()
            self._check("three nodes")
            self._warm()
            texts = [fact.memory for fact in facts(self.plan.distinct, SEED + 2)]
            with Traffic(self._engine, self.plan, self._groups, self._writers, texts) as traffic:
                self._measure(traffic)
            self._check("three nodes again")
            self.results.problems = dict(traffic.problems())
        finally:
            self._engine.close()
            cluster.discard()
        self.results.took_s = time.monotonic() - began
        return self.results

    def _fill(self) -> None:
        plan = self.plan
        self._say(f"filling {plan.agents:,} agents with {plan.memories:,} memories")
        texts = [fact.memory for fact in self._facts]
        vectors = self._out / "texts.npy"
        load = self._engine.load
        load.timed("embed", texts=texts, size=100, to=str(vectors))
        each = plan.memories // plan.agents
        filled = load.timed("fill_groups", groups=self._groups, texts=texts, vectors=str(vectors), each=each, clients=3)
        self.results.fill_rate = plan.memories / filled.wall_s
        self._say(f"filled at {self.results.fill_rate:.0f} memories a second")

    def _warm(self) -> None:
        """Every node has been asked for every agent: what a first question costs belongs to no phase."""
        self._say("asking every node for every agent once")
        questions = Questions(SEED + 3).take(len(self._groups))
        for member in self._cluster.members:
            engine = Engine(member, self._out)
            try:
                engine.load.timed(
                    "recall_all", groups=self._groups, questions=questions, clients=2, top_k=self.plan.top_k
                )
            finally:
                engine.close()

    def _check(self, when: str) -> None:
        """Questions of the agents that only recall: what was there before must be found after."""
        each = self.plan.memories // self.plan.agents
        agents = range(0, self.plan.agents, max(1, self.plan.agents // self.plan.checked))
        shares = []
        for number in agents:
            fact = self._facts[number * each % len(self._facts)]
            shares.append(
                self._engine.load.call(
                    "found", group=self._groups[number], questions=[fact.question], expected=[fact.memory],
                    top_k=self.plan.top_k,
                )
            )  # fmt: skip
        self.results.found[when] = statistics.fmean(shares)

    def _measure(self, traffic: Traffic) -> None:
        cluster = self._cluster
        time.sleep(WARM_S)
        self._phase(traffic, "before", self._steady)
        before = cluster.holders()
        began = time.monotonic()
        self._say("the fourth node starts")
        self._phase(traffic, "the fourth node starts", lambda: cluster.join())
        self._phase(traffic, "shards move to it", self._until_balanced)
        joined = cluster.holders()
        newcomer = cluster.members[-1].node
        self._moved("joined", newcomer, before, joined, time.monotonic() - began)
        self._phase(traffic, "with four nodes", self._steady)
        began = time.monotonic()
        self._say("the fourth node is drained")
        cluster.ask("POST", f"/admin/cluster/nodes/{newcomer}", {"action": "drain"})
        self._phase(traffic, "shards move from it", lambda: self._until_drained(newcomer))
        self._moved("drained", newcomer, joined, cluster.holders(), time.monotonic() - began)
        cluster.ask("POST", f"/admin/cluster/nodes/{newcomer}", {"action": "remove"})
        cluster.members.pop().stop()
        self._phase(traffic, "without it", self._steady)

    def _steady(self) -> None:
        time.sleep(self.plan.steady_s)

    def _until_balanced(self) -> None:
        self._cluster.until("shards have moved", self._cluster.is_balanced, MOVE_TIMEOUT_S)

    def _until_drained(self, node: str) -> None:
        def is_empty() -> bool:
            return self._cluster.is_balanced() and not any(node in held for held in self._cluster.holders().values())

        self._cluster.until(f"{node} holds nothing", is_empty, MOVE_TIMEOUT_S)

    def _phase(self, traffic: Traffic, name: str, happens: Callable[[], object]) -> None:
        start, spent, busy = time.monotonic(), self._cluster.cpu_s(), machine_busy_s()
        happens()
        end, spent, busy = time.monotonic(), self._cluster.cpu_s() - spent, machine_busy_s() - busy
        # The slice under way ends within its second; what lies across the border belongs to no phase.
        time.sleep(2 * SLICE_S)
        slices = traffic.between(start, end)
        latencies = sorted(ms for one in slices for ms in one.done.latencies_ms)
        rate = statistics.median(one.done.rate for one in slices) if slices else 0.0
        first = self.results.phases[0].rate if self.results.phases else rate
        phase = Phase(
            name=name,
            seconds=end - start,
            operations=len(latencies),
            rate=rate,
            relative=rate / first if first else 0.0,
            p50_ms=quantile(latencies, 0.5) if latencies else 0.0,
            p99_ms=quantile(latencies, 0.99) if latencies else 0.0,
            failed=sum(len(one.problems) for one in slices),
            cores=spent / (end - start),
            others=max(0.0, busy - spent) / (end - start),
        )
        self.results.phases.append(phase)
        self._say(
            f"{name}: {phase.seconds:.0f} s, {phase.rate:.0f}/s, p99 {phase.p99_ms:.0f} ms, {phase.failed} failed"
        )

    def _moved(
        self,
        event: str,
        node: str,
        before: dict[int, tuple[str, ...]],
        after: dict[int, tuple[str, ...]],
        took_s: float,
    ) -> None:
        held = sum(node in nodes for nodes in after.values())
        ideal = REPLICAS * len(after) / (REPLICAS + 1) if event == "joined" else 0.0
        moved = sum(len(set(after[shard]) - set(before[shard])) for shard in after)
        self.results.moves.append(Moved(event=event, held=held, ideal=ideal, replicas_moved=moved, took_s=took_s))


def print_tables(results: JoinResults, console: Console) -> None:
    print_machine(results.machine, results.took_s, console)
    plan = results.plan
    table = Table(title=f"{plan.memories:,} memories of {plan.agents:,} agents, {plan.clients} clients, half stores")
    for heading in (
        "phase",
        "seconds",
        "operations",
        "rate /s",
        "of before",
        "p50 ms",
        "p99 ms",
        "failed",
        "cores",
        "others'",
    ):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for phase in results.phases:
        table.add_row(
            phase.name,
            f"{phase.seconds:.0f}",
            str(phase.operations),
            f"{phase.rate:.0f}",
            f"{phase.relative:.0%}",
            f"{phase.p50_ms:.1f}",
            f"{phase.p99_ms:.1f}",
            str(phase.failed),
            f"{phase.cores:.2f}",
            f"{phase.others:.2f}",
        )
    console.print(table)
    for moved in results.moves:
        share = f", an even share is {moved.ideal:.0f}" if moved.ideal else ""
        console.print(
            f"{moved.event}: it holds {moved.held} shards{share}; {moved.replicas_moved} replicas moved "
            f"in {moved.took_s:.0f} s"
        )
    found = ", ".join(f"{when}: {share:.1%}" for when, share in results.found.items())
    console.print(f"memories found by their own question: {found}; filled at {results.fill_rate:.0f} a second")
    for text in results.broken():
        console.print(f"BROKEN: {text}", style="bold red", markup=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.join", description=__doc__)
    parser.add_argument("--memories", type=int, default=JoinPlan().memories)
    parser.add_argument("--agents", type=int, default=JoinPlan().agents)
    parser.add_argument("--clients", type=int, default=JoinPlan().clients)
    parser.add_argument("--seconds", type=float, default=JoinPlan().steady_s, help="length of the quiet phases")
    parser.add_argument("--json", type=Path, default=Path("bench-out/join.json"))
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    plan = JoinPlan(
        memories=arguments.memories, agents=arguments.agents, clients=arguments.clients, steady_s=arguments.seconds
    )
    out = arguments.json.resolve().parent
    results = Join(plan, out / "join", lambda text: console.print(text, style="dim")).run()
    print_tables(results, console)
    arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    return 1 if results.broken() else 0


if __name__ == "__main__":
    sys.exit(main())
