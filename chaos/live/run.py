"""One live run: bring a cluster up, load it, strike it, let it heal, and judge what was seen.

Invariant: the judgement rests on the recorded files alone (history, sightings, events), which stay in the output directory.
Called by the command and by the smoke test.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from chaos.live import checkers, copies, failover, nemesis
from chaos.live.checkers import Violation
from chaos.live.client import Client
from chaos.live.cluster import ClusterOptions, LiveCluster
from chaos.live.history import Kind, Operation, encode, read_history
from chaos.live.nemesis import Arena, Event
from chaos.live.process import ROOT
from chaos.live.watch import Sighting, Watch
from chaos.live.workload import Load, perform

CALM_BEFORE_S = 2.0
CALM_AFTER_S = 3.0
CONVERGE_WITHIN_S = 30.0
READERS = 8
VERIFY_CLIENT = 10_000
"""Client number of the reads that verify the end."""
SETTLE_S = 20.0

Say = Callable[[str], None]


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    nodes: int = 3
    nemeses: tuple[str, ...] = ("kill", "pause", "leader")
    duration_s: float = 60.0
    seed: int = 0
    rate: float = 30.0
    clients: int = 32
    bucket: str = "dir"
    network: str = "auto"
    each_once: bool = False
    """Go on past the duration until every nemesis has had its turn."""
    env: dict[str, str] = {}


class Result(msgspec.Struct, kw_only=True):
    """Everything the report and the picture need."""

    options: RunOptions
    network: str
    start_ms: float
    calm_ms: float
    """When the last fault had ended and every node was ready."""
    end_ms: float
    """When the load had ended."""
    history: list[Operation]
    sightings: list[Sighting]
    events: list[Event]
    skipped: dict[str, str]
    convergence: copies.Convergence
    violations: list[Violation]
    failovers: list[failover.Failover]

    @property
    def passed(self) -> bool:
        return not self.violations


async def run_live(options: RunOptions, out: Path, say: Say) -> Result:
    """Run and judge. Files go to ``out``, a directory that holds no other run."""
    wanted = options.nemeses
    cluster_options = ClusterOptions(
        nodes=options.nodes,
        bucket=options.bucket,
        network=options.network,
        redis="redis" in wanted,
        clocks="clock" in wanted,
        disks="disk" in wanted,
        env=options.env,
    )
    say(f"starting {options.nodes} nodes")
    async with LiveCluster(cluster_options, out / "cluster") as cluster:
        return await _run(options, cluster, out, say)


async def _run(options: RunOptions, cluster: LiveCluster, out: Path, say: Say) -> Result:
    rng = random.Random(f"chaos/{options.seed}")
    names, skipped = nemesis.usable(options.nemeses, cluster)
    for name, why in skipped.items():
        say(f"skipped: {name}: {why}")
    async with Watch(cluster.urls, lambda node: cluster.nodes[node].boots, out / "sightings.jsonl") as watch:
        arena = Arena(cluster, watch, rng, say)
        await settle(cluster, watch)
        load = await start_load(options, cluster, out)
        start = time.monotonic()
        try:
            await asyncio.sleep(CALM_BEFORE_S)
            if names:
                await nemesis.torment(
                    arena, names, start + options.duration_s - CALM_AFTER_S, each_once=options.each_once
                )
            await asyncio.sleep(max(0.0, start + options.duration_s - time.monotonic()))
            say("healing")
            crashed = [node.name for node in cluster.nodes.values() if node.has_crashed]
            problems = arena.problems + await cluster.restore()
            problems += [f"{name} had ended by itself:\n{cluster.nodes[name].last_lines()}" for name in crashed]
            calm = time.monotonic()
            await asyncio.sleep(CALM_AFTER_S)
        finally:
            await stop_load(load)
        end = time.monotonic()
        history = read_history(out / "history.jsonl")
        say(f"{len(history)} operations; comparing the copies")
        agents = {op.key.partition("/")[0] for op in history if op.kind is Kind.STORE and op.changes}
        convergence = await copies.converge(cluster, agents, calm, CONVERGE_WITHIN_S)
        await settle(cluster, watch)
        keys = sorted({op.key for op in history if op.kind.is_write})
        say(f"reading all {len(keys)} memories back")
        finals = await read_back(cluster, keys, 1 + max((op.number for op in history), default=0))
    with (out / "history.jsonl").open("ab") as file:
        file.writelines(encode(op) for op in finals)
    history += finals
    lists = checkers.check_lists(finals, convergence.held, end * 1e3)
    violations = judge(history, watch.sightings, convergence.violations + lists)
    violations += [Violation("nodes start and stop", text, end * 1e3) for text in problems]
    result = Result(
        options=options,
        network=cluster.network.kind,
        start_ms=start * 1e3,
        calm_ms=calm * 1e3,
        end_ms=end * 1e3,
        history=history,
        sightings=watch.sightings,
        events=arena.events,
        skipped=skipped,
        convergence=convergence,
        violations=violations,
        failovers=failover.failovers(arena.events, watch.sightings, history),
    )
    (out / "events.json").write_bytes(msgspec.json.format(msgspec.json.encode(arena.events)))
    return result


def judge(history: Sequence[Operation], sightings: Sequence[Sighting], others: list[Violation]) -> list[Violation]:
    """All checkers over one run's records."""
    violations = checkers.check_history(history) + checkers.check_forgets(history) + checkers.check_leaders(sightings)
    unread = [op for op in history if op.client == VERIFY_CLIENT and failover.unserved(op)]
    if unread:
        code = unread[0].attempts[-1].code
        text = f"{len(unread)} memories cannot be read after the end, first {unread[0].key}: {code}"
        violations.append(Violation("readable after the end", text, unread[0].end_ms))
    return violations + others


async def settle(cluster: LiveCluster, watch: Watch) -> None:
    """Wait until every node sees every node alive and they name one leader; at most SETTLE_S."""

    def settled() -> bool:
        seen = [watch.newest(name) for name in cluster.names]
        if any(s is None or s.end_ms < since or len(s.states) < len(cluster.names) for s in seen):
            return False
        leaders = {s.leader for s in seen if s is not None}
        alive = all(state == "alive" for s in seen if s is not None for state, _ in s.states.values())
        return alive and len(leaders) == 1 and None not in leaders

    since = time.monotonic() * 1e3
    await watch.wait_for(settled, SETTLE_S)


async def start_load(options: RunOptions, cluster: LiveCluster, out: Path) -> asyncio.subprocess.Process:
    """The workload in its own process, writing `history.jsonl`; it outlives the planned time until it is stopped."""
    load = Load(
        urls=cluster.urls,
        out=str(out / "history.jsonl"),
        seed=options.seed,
        clients=options.clients,
        rate=options.rate,
        duration_s=10 * options.duration_s + 600.0,
    )
    with (out / "workload.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "chaos.live.workload",
            msgspec.json.encode(load).decode(),
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


async def stop_load(process: asyncio.subprocess.Process) -> None:
    """End the workload in order, so that what is under way is recorded."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), 30.0)
        except TimeoutError:
            process.kill()
            await process.wait()


async def read_back(cluster: LiveCluster, keys: Sequence[str], first: int) -> list[Operation]:
    """A strong read of every memory, spread over the nodes."""
    client = Client(cluster.urls)
    rng = random.Random(0)
    waiting = list(enumerate(keys, first))
    done: list[Operation] = []

    async def reader() -> None:
        while waiting:
            number, key = waiting.pop()
            done.append(await perform(client, Kind.STRONG_GET, key, number, VERIFY_CLIENT, rng))

    await asyncio.gather(*(reader() for _ in range(READERS)))
    await client.close()
    return sorted(done, key=lambda op: op.start_ms)
