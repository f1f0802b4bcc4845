"""The promised figures, measured on real processes: detection, succession, minorities, killed clusters, lost disks, an
absent bucket. Each measurement is one row: what was promised, what was seen, and whether it holds.

A measurement leaves the cluster whole, so the next can use it. Called by the command.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from chaos.live import failover
from chaos.live.checkers import check_history
from chaos.live.client import Answer, Client, Request
from chaos.live.cluster import ClusterOptions, LiveCluster
from chaos.live.copies import converge
from chaos.live.history import Kind, Operation, Outcome
from chaos.live.nemesis import Event
from chaos.live.network import both_ways
from chaos.live.run import Say, settle
from chaos.live.watch import Watch
from chaos.live.workload import perform

KILLS = 5
DETECTION_P50_MS = 3_500.0
NEW_LEADER_MS = 10_000.0
KILL_WAIT_S = 20.0
WRITES = 200
AGENT = "agent-figures"
SEGMENT_S = 5
CONVERGE_WITHIN_S = 30.0
OUTAGE_S = 10.0
QUIET_RATE = 20.0
RECOVERY_S = 30.0
SLOWER_AT_MOST = 3.0
"""p99 during an outage against p99 before it: the two are measured on a machine that others use too."""
SLOWER_MS = 250.0


class Figure(msgspec.Struct, frozen=True):
    """One row. ``holds`` None: could not be measured, ``seen`` says why."""

    name: str
    promised: str
    seen: str
    holds: bool | None
    values: dict[str, float] = {}


class Bench:
    """What measurements work with."""

    def __init__(self, cluster: LiveCluster, watch: Watch, client: Client, seed: int, say: Say) -> None:
        self.cluster = cluster
        self.watch = watch
        self.client = client
        self.rng = random.Random(f"figures/{seed}")
        self.say = say
        self.number = 0

    async def do(self, kind: Kind, key: str, node: str | None = None) -> Operation:
        self.number += 1
        return await perform(self.client, kind, key, self.number, 0, self.rng, node)

    async def store_some(self, tag: str, count: int) -> list[Operation]:
        """Stores, eight at a time; all of them, also those that failed."""
        waiting = [f"{AGENT}/{tag}-{number}" for number in range(count)]
        done: list[Operation] = []

        async def one() -> None:
            while waiting:
                done.append(await self.do(Kind.STORE, waiting.pop()))

        await asyncio.gather(*(one() for _ in range(8)))
        return done

    async def lost(self, stores: list[Operation]) -> tuple[int, int]:
        """(acknowledged, of these lost), by strong reads and the checkers."""
        acknowledged = [op for op in stores if op.outcome is Outcome.OK]
        reads = [await self.do(Kind.STRONG_GET, op.key) for op in acknowledged]
        unread = sum(read.outcome is not Outcome.OK for read in reads)
        return len(acknowledged), len(check_history([*stores, *reads])) + unread

    async def served(self, key: str, since: float) -> float:
        """Seconds from ``since`` until a strong read is answered, at most RECOVERY_S."""
        while True:
            read = await self.do(Kind.STRONG_GET, key)
            took_s = time.monotonic() - since
            if read.outcome is Outcome.OK or took_s > RECOVERY_S:
                return took_s
            await asyncio.sleep(0.5)

    def leader(self) -> str | None:
        named = [s.leader for s in map(self.watch.newest, self.cluster.names) if s is not None]
        return max(set(named), key=named.count) if named else None

    async def settled(self) -> None:
        await settle(self.cluster, self.watch)


Measurement = Callable[[Bench], Awaitable[list[Figure]]]


async def killed_nodes(bench: Bench) -> list[Figure]:
    """Kill nodes in turn, the leader every other time: when do the others know, when is there a new leader?"""
    detections: list[float] = []
    successions: list[float] = []
    for turn in range(KILLS):
        await bench.settled()
        leader = bench.leader()
        others = [name for name in bench.cluster.names if name != leader]
        target = leader if turn % 2 == 0 and leader is not None else bench.rng.choice(others)
        bench.say(f"kill -9 {target}{' (leader)' if target == leader else ''}")
        start = time.monotonic() * 1e3
        bench.cluster.nodes[target].kill()

        def known(target: str = target, start: float = start, led: bool = target == leader) -> bool:
            event = Event("kill", (target,), start, float("inf"), "")
            seen = bench.watch.sightings
            found = failover.detection_ms(event, seen) is not None
            return found and (not led or failover.succession_ms(event, seen) is not None)

        await bench.watch.wait_for(known, KILL_WAIT_S)
        event = Event("kill", (target,), start, time.monotonic() * 1e3, "")
        detections.append(failover.detection_ms(event, bench.watch.sightings) or float("inf"))
        if target == leader:
            successions.append(failover.succession_ms(event, bench.watch.sightings) or float("inf"))
        await bench.cluster.restart(target)
    p50 = statistics.median(detections)
    slowest = max(successions)
    return [
        Figure(
            "detection of a killed node",
            f"p50 <= {DETECTION_P50_MS / 1e3:g} s",
            f"p50 {p50 / 1e3:.2f} s, max {max(detections) / 1e3:.2f} s over {len(detections)} kills",
            p50 <= DETECTION_P50_MS,
            {"p50_ms": p50, "max_ms": max(detections)},
        ),
        Figure(
            "new leader after the leader is killed",
            f"within {NEW_LEADER_MS / 1e3:g} s",
            f"max {slowest / 1e3:.2f} s over {len(successions)} kills",
            slowest <= NEW_LEADER_MS,
            {"max_ms": slowest},
        ),
    ]


async def minority(bench: Bench) -> list[Figure]:
    """Cut a minority off: it refuses quorum writes, answers eventual reads, and agrees again once it is healed."""
    await bench.settled()
    names = bench.cluster.names
    few = names[: (len(names) - 1) // 2]
    before = await bench.do(Kind.STORE, f"{AGENT}/minority-before")
    await asyncio.sleep(1.0)
    bench.say(f"cut off {'+'.join(few)}")
    await bench.cluster.cut(both_ways(few, [name for name in names if name not in few]))
    try:
        start = time.monotonic()
        refused = await bench.client.ask(_store("minority-refused"), node=few[0], attempts=1)
        took_s = time.monotonic() - start
        read = await bench.client.ask(_get("minority-before"), node=few[0], attempts=1)
        majority = await bench.client.ask(_store("majority-served"), node=names[-1], attempts=1)
    finally:
        await bench.cluster.cut([])
    healed = time.monotonic()
    convergence = await converge(bench.cluster, [AGENT], healed, CONVERGE_WITHIN_S)
    code = refused.attempts[0].code
    is_refused = refused.status == 503 and code == "QUORUM_UNAVAILABLE"
    after = convergence.after_s
    return [
        Figure(
            "minority refuses quorum writes",
            "503 QUORUM_UNAVAILABLE",
            f"{refused.status} {code} after {took_s:.1f} s, ambiguous {_ambiguous(refused)}",
            is_refused,
        ),
        Figure(
            "minority answers eventual reads",
            "200",
            f"{read.status}",
            before.outcome is Outcome.OK and read.status == 200,
        ),
        Figure("majority goes on", "200", f"{majority.status}", majority.status == 200),
        Figure(
            "replicas the same after healing",
            f"within {CONVERGE_WITHIN_S:g} s",
            "never" if after is None else f"after {after:.1f} s",
            after is not None,
        ),
    ]


async def all_killed(bench: Bench) -> list[Figure]:
    """Kill every node at the same instant, in the middle of writes."""
    await bench.settled()
    load = asyncio.create_task(bench.store_some("killed", WRITES))
    await asyncio.sleep(1.0)
    bench.say("kill -9 of all nodes")
    for node in bench.cluster.nodes.values():
        node.signal_kill()
    for node in bench.cluster.nodes.values():
        node.kill()
    stores = await load
    start = time.monotonic()
    await bench.cluster.start_all()
    ready_s = time.monotonic() - start
    acknowledged, lost = await bench.lost(stores)
    return [
        Figure(
            "all nodes killed with -9 and restarted",
            "nothing acknowledged lost",
            f"{lost} of {acknowledged} acknowledged writes lost, all ready after {ready_s:.1f} s",
            lost == 0 and acknowledged > 0,
            {"lost": lost, "acknowledged": acknowledged},
        )
    ]


async def all_disks_lost(bench: Bench) -> list[Figure]:
    """Delete every disk: the cluster comes back from the bucket."""
    await bench.settled()
    stores = await bench.store_some("disks", WRITES)
    await asyncio.sleep(3 * SEGMENT_S)
    bench.say("kill -9 of all nodes, all disks deleted")
    for node in bench.cluster.nodes.values():
        node.signal_kill()
    for name, node in bench.cluster.nodes.items():
        node.kill()
        bench.cluster.empty_disk(name)
    start = time.monotonic()
    await bench.cluster.start_all()
    ready_s = time.monotonic() - start
    served_s = await bench.served(stores[0].key, start)
    acknowledged, lost = await bench.lost(stores)
    return [
        Figure(
            "all disks deleted, restored from the bucket",
            "nothing lost up to the last segment",
            f"{lost} of {acknowledged} lost, all ready after {ready_s:.1f} s, reads after {served_s:.1f} s",
            lost == 0 and acknowledged > 0,
            {"lost": lost, "acknowledged": acknowledged, "served_s": served_s},
        )
    ]


async def no_bucket(bench: Bench) -> list[Figure]:
    """Take the bucket away: stores and recalls do not notice, what needs it says so, and it is used again when it is back."""
    await bench.settled()
    if bench.cluster.bucket.skipped is not None:
        return [Figure("bucket stopped", "store and recall unaffected", bench.cluster.bucket.skipped, None)]
    before = await _steady(bench, "calm", OUTAGE_S)
    bench.say("bucket away")
    bench.cluster.bucket.take_away()
    try:
        during = await _steady(bench, "outage", OUTAGE_S)
        refused = await bench.client.ask(_namespace("during"), attempts=1)
    finally:
        bench.cluster.bucket.give_back()
    start = time.monotonic()
    while True:
        created = await bench.client.ask(_namespace(f"after{bench.number}"), attempts=1)
        recovered_s = time.monotonic() - start
        if created.outcome is Outcome.OK or recovered_s > RECOVERY_S:
            break
        bench.number += 1
        await asyncio.sleep(0.5)
    figures = []
    for kind in (Kind.STORE, Kind.RECALL):
        was, is_now = _p99(before, kind), _p99(during, kind)
        bad = sum(failover.unserved(op) for op in during if op.kind is kind)
        figures.append(
            Figure(
                f"{kind.value} while the bucket is stopped",
                "unaffected",
                f"{bad} failed; p99 {was:.0f} ms before, {is_now:.0f} ms during",
                bad == 0 and is_now <= max(SLOWER_MS, SLOWER_AT_MOST * was),
                {"failed": bad, "before_p99_ms": was, "during_p99_ms": is_now},
            )
        )
    text = str((refused.body or {}).get("error", ""))[:80]
    return [
        *figures,
        Figure("namespace creation meanwhile", "503, and why", f"{refused.status}: {text}", refused.status == 503),
        Figure(
            "namespace creation after the outage",
            "recovery without restart",
            f"{created.status} after {recovered_s:.1f} s",
            created.outcome is Outcome.OK,
        ),
    ]


async def _steady(bench: Bench, tag: str, seconds: float) -> list[Operation]:
    """Stores and recalls in turn at a fixed rate."""
    tasks: list[asyncio.Task[Operation]] = []
    for step in range(int(seconds * QUIET_RATE)):
        kind = Kind.STORE if step % 2 == 0 else Kind.RECALL
        tasks.append(asyncio.create_task(bench.do(kind, f"{AGENT}/{tag}-{step}")))
        await asyncio.sleep(1 / QUIET_RATE)
    return list(await asyncio.gather(*tasks))


def _p99(operations: list[Operation], kind: Kind) -> float:
    return failover.percentile([op.latency_ms for op in operations if op.kind is kind], 0.99) or 0.0


def _ambiguous(answer: Answer) -> bool:
    return isinstance(answer.body, dict) and bool(answer.body.get("ambiguous", False))


def _store(memory: str) -> Request:
    return Request(
        "POST", "/v1/memory/store", {"agent_id": AGENT, "id": memory, "content": "a word in season"}, is_write=True
    )


def _get(memory: str) -> Request:
    return Request("GET", f"/v1/agents/{AGENT}/memories/{memory}", headers={"X-Read-Consistency": "eventual"})


def _namespace(name: str) -> Request:
    return Request("POST", "/v1/namespaces", {"name": f"figures-{name}", "dimension": 8}, is_write=True)


MEASUREMENTS: dict[str, Measurement] = {
    "kills": killed_nodes,
    "minority": minority,
    "bucket": no_bucket,
    "all-killed": all_killed,
    "all-disks": all_disks_lost,
}


async def measure(names: list[str], options: ClusterOptions, seed: int, out: Path, say: Say) -> list[Figure]:
    """Take the named measurements on one cluster."""
    settings = {"DAKERA_SEGMENT_INTERVAL_SECS": str(SEGMENT_S), **options.env}
    options = msgspec.structs.replace(options, env=settings)
    figures: list[Figure] = []
    async with (
        LiveCluster(options, out / "cluster") as cluster,
        Watch(cluster.urls, lambda node: cluster.nodes[node].boots, out / "sightings.jsonl") as watch,
    ):
        client = Client(cluster.urls)
        bench = Bench(cluster, watch, client, seed, say)
        try:
            for name in names:
                say(f"measuring: {name}")
                try:
                    figures += await MEASUREMENTS[name](bench)
                except Exception as error:  # one measurement that cannot be taken does not cost the others
                    figures.append(Figure(name, "", f"not measured: {error}"[:200], False))
                    await cluster.restore()
        finally:
            await client.close()
    return figures
