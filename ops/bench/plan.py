"""What is measured, how often and for how long; and the figures that come out, as plain data."""

from __future__ import annotations

import statistics
from typing import Any

import msgspec


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    sizes: tuple[int, ...] = (1_000, 10_000)
    """Memories of one agent."""
    agents: int = 200
    agent_memories: int = 100
    clients: tuple[int, ...] = (1, 8)
    crowd: int = 32
    """Clients that ask the node at once, to see whether its throughput holds beyond its peak."""
    rounds: int = 3
    """Each engine is measured this often, in turns, so that a busy moment of the machine hits both."""
    seconds: float = 3.0
    """Length of one timed pass."""
    starts: int = 2
    top_k: int = 10
    embed_size: int = 100
    """Texts of one batch store, and of one pass of the bare model."""
    chunk: int = 1_000
    """Texts between two turns while filling."""
    store_text_limit: int = 10_000
    """Above, the node is filled with ready vectors: the rate of storing texts is known by then."""
    checked: int = 200
    """Questions with a known answer, asked untimed."""
    seed: int = 20_261


QUICK = Plan()
FULL = Plan(sizes=(1_000, 10_000, 100_000), agents=10_000, rounds=5, seconds=8.0, starts=5)


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Passes of one measurement, pooled. Latencies in ms; ``rate`` is the median over rounds, in operations a second."""

    engine: str
    what: str
    size: int
    clients: int
    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    rate: float
    rate_low: float
    rate_high: float
    server_cpu_ms: float
    """Processor time of the server per operation."""
    client_cpu_ms: float


def timing(engine: str, what: str, size: int, clients: int, passes: list[Any], server_cpu_s: float) -> Timing:
    latencies = sorted(latency for one in passes for latency in one.latencies_ms)
    if not latencies:
        raise RuntimeError(f"{engine}: {what} at {size} finished nothing in its time")
    rates = [one.rate for one in passes]
    return Timing(
        engine=engine,
        what=what,
        size=size,
        clients=clients,
        count=len(latencies),
        p50_ms=quantile(latencies, 0.50),
        p95_ms=quantile(latencies, 0.95),
        p99_ms=quantile(latencies, 0.99),
        rate=statistics.median(rates),
        rate_low=min(rates),
        rate_high=max(rates),
        server_cpu_ms=1000 * server_cpu_s / len(latencies),
        client_cpu_ms=1000 * sum(one.cpu_s for one in passes) / len(latencies),
    )


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Fill(msgspec.Struct, frozen=True, kw_only=True):
    """Texts a second while filling. ``ratio``: the engine's own rate over the bare model's, median of chunks taken in
    turns; None where the texts came with ready vectors."""

    engine: str
    size: int
    with_vectors: bool
    rate: float
    bare_rate: float | None = None
    ratio: float | None = None


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    engine: str
    when: str
    memories: int
    resident_mib: float
    disk_mib: float
    start_s: float | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    engine: str
    size: int
    share: float


class Results(msgspec.Struct, kw_only=True):
    plan: Plan
    machine: dict[str, Any]
    timings: list[Timing] = []
    fills: list[Fill] = []
    weights: list[Weight] = []
    found: list[Found] = []
    steps: dict[str, dict[str, float]] = {}
    """Memories -> step of a recall -> median ms, from the node's own explain output."""
    took_s: float = 0.0
