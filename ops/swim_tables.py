"""Measure the membership protocol by simulation: ``python -m ops.swim_tables --out DIR`` prints a table and writes
``SWIM.md`` and ``swim.png``.

For clusters of 3 to 1,000 members, default timing, 0.5 to 2 ms one-way delay: how soon a crash is noticed and known to
all, how news spreads, what it costs when nothing happens, and how often healthy members are believed dead while one
member is slow or the network loses 20 % of all datagrams. The last two compare plain SWIM, Lifeguard as published, and
this implementation: the same code with other ``Feature`` flags, so only the measures differ.

Seeded: the same arguments give the same table. Nothing here is a wall-clock time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec
from rich.console import Console
from rich.table import Table

from chaos.sim.net import LinkProfile
from chaos.sim.swim_world import SwimWorld, count_changes
from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.members import Address
from dakera_cluster.protocols.packets import Packet, PacketCodec, Ping
from dakera_cluster.protocols.swim_config import Feature, SwimConfig
from dakera_cluster.protocols.swim_events import Change, Effect, MemberEvent, UpdateMeta

VARIANTS = {"SWIM": Feature.SWIM, "Lifeguard": Feature.LIFEGUARD, "Dakera": Feature.FULL}
SIZES = (3, 5, 10, 50, 100, 500, 1000)
# Worlds and crashes in each: large worlds give many observations at once, small ones must be many.
CRASHES = {3: (400, 1), 5: (300, 1), 10: (200, 1), 50: (40, 2), 100: (25, 3), 500: (3, 8), 1000: (2, 10)}
SLOW_MINUTES = {3: 30.0, 5: 30.0, 10: 30.0, 50: 10.0, 100: 5.0, 500: 2.0, 1000: 1.0}
LOSS_MINUTES = {3: 60.0, 5: 40.0, 10: 15.0, 50: 2.0, 100: 1.0, 500: 0.25, 1000: 0.12}
SLOW_TURN_MS = (200.0, 8_000.0)
LOSS = 0.2
CONFIRMED_FROM = 5
"""Smallest size of the table at which there is somebody to confirm a suspicion: below, Lifeguard has only its local health."""
SPREADS = 5


class Crashes(msgspec.Struct, frozen=True):
    """What was seen of crashes in clusters of one size. Times in ms after the crash."""

    first_period: float
    """Mean number of the protocol period in which somebody first pings the crashed member."""
    suspect_ms: list[float]
    """First suspicion, per crash."""
    known_ms: list[float]
    """Death believed, per crash and member."""
    all_ms: list[float]
    """Death believed by the last member, per crash."""


class Quiet(msgspec.Struct, frozen=True):
    """Cost and speed of a healthy cluster."""

    messages: float
    """Per member and period, sent."""
    bytes_per_s: float
    """Per member, sent, sealed, without UDP and IP headers."""
    half_ms: float
    all_ms: float


class FalseDeaths(msgspec.Struct, frozen=True):
    """Healthy members believed dead by anybody, and suspected by anybody, per minute in the whole cluster."""

    deaths: float
    suspicions: float
    deaths_seen: int
    minutes: float


class Row(msgspec.Struct, frozen=True):
    n: int
    crashes: Crashes
    quiet: Quiet
    slow: dict[str, FalseDeaths]
    loss: dict[str, FalseDeaths]


def first_period_theory(n: int) -> float:
    """Mean period in which a crashed member is first probed when all n - 1 others choose at random: the geometric law
    with p = 1 - (1 - 1/(n-1))^(n-1), which tends to e/(e-1) = 1.58 (SWIM, section 3.1)."""
    others = n - 1
    return 1.0 / (1.0 - (1.0 - 1.0 / others) ** others)


def measure_crashes(n: int, scale: float) -> Crashes:
    worlds, victims = CRASHES[n]
    config = SwimConfig()
    periods: list[float] = []
    suspect_ms: list[float] = []
    known_ms: list[float] = []
    all_ms: list[float] = []
    for seed in range(max(1, round(worlds * scale))):
        world = SwimWorld(config, seed=1000 * n + seed)
        names = world.settle(n)
        rng = Random(seed)
        crashed: dict[NodeId, float] = {}
        pinged: dict[NodeId, float] = {}
        suspected: dict[NodeId, float] = {}
        known: dict[NodeId, list[float]] = {}

        def tap(now_ms: float, _: NodeId, __: Address, packet: Packet) -> None:
            body = packet.body
            if isinstance(body, Ping) and body.target in crashed:  # noqa: B023
                pinged.setdefault(body.target, now_ms)  # noqa: B023

        def watch(now_ms: float, _: NodeId, effect: Effect) -> None:
            if isinstance(effect, MemberEvent) and effect.member.node in crashed:  # noqa: B023
                if effect.change is Change.SUSPECT:
                    suspected.setdefault(effect.member.node, now_ms)  # noqa: B023
                elif effect.change is Change.DEAD:
                    known.setdefault(effect.member.node, []).append(now_ms)  # noqa: B023

        world.packet_taps.append(tap)
        world.watchers.append(watch)
        world.run_for(config.probe_interval_ms * (1.0 + rng.random()))
        for victim in rng.sample(names, victims):
            crashed[victim] = world.now_ms
            world.crash(victim)
            world.run_for(config.probe_interval_ms * rng.uniform(0.5, 1.5))
        alive = n - victims
        complete = world.run_until(lambda: all(len(known.get(v, ())) >= alive for v in crashed), 120_000.0)  # noqa: B023
        if not complete:
            raise RuntimeError(f"a crash among {n} members stayed unknown to somebody for two minutes")
        for victim, at_ms in crashed.items():
            periods.append(math.ceil((pinged[victim] - at_ms) / config.probe_interval_ms))
            suspect_ms.append(suspected[victim] - at_ms)
            # Members that crashed themselves in the meantime may have known it as well.
            seen = sorted(when - at_ms for when in known[victim])
            known_ms += seen
            all_ms.append(seen[-1])
    return Crashes(statistics.fmean(periods), suspect_ms, known_ms, all_ms)


def measure_quiet(n: int) -> Quiet:
    config = SwimConfig()
    world = SwimWorld(config, seed=n)
    names = world.settle(n)
    codec = PacketCodec("table", (bytes(32),), bytes(16))
    sizes: list[int] = []
    world.packet_taps.append(lambda _, __, ___, packet: sizes.append(len(codec.encode(packet))))
    periods = max(4, 200 // n)
    world.run_for(periods * config.probe_interval_ms)
    messages = world.packets_sent / n / periods
    bytes_per_s = sum(sizes) / n / (periods * config.probe_interval_ms / 1000.0)
    world.packet_taps.clear()
    half_ms: list[float] = []
    all_ms: list[float] = []
    told: list[float] = []

    def watch(now_ms: float, _: NodeId, effect: Effect) -> None:
        if isinstance(effect, MemberEvent) and effect.change is Change.UPDATED:
            told.append(now_ms)

    world.watchers.append(watch)
    for spread in range(SPREADS):
        told.clear()
        start_ms = world.now_ms
        world.feed(world.processes[names[spread % n]], UpdateMeta({"step": spread}))
        if not world.run_until(lambda: len(told) == n - 1, 60_000.0):
            raise RuntimeError(f"news did not reach all {n} members within a minute")
        half_ms.append(told[(n - 1) // 2] - start_ms)
        all_ms.append(told[-1] - start_ms)
        world.run_for(5_000.0)
    return Quiet(messages, bytes_per_s, statistics.fmean(half_ms), statistics.fmean(all_ms))


def measure_false_deaths(n: int, features: Feature, minutes: float, *, slow: bool) -> FalseDeaths:
    """One slow member (its event loop takes 0.2 to 8 s for each turn), or 20 % loss on every link."""
    profile = LinkProfile() if slow else LinkProfile(loss=LOSS)
    world = SwimWorld(SwimConfig(features=features), seed=n, profile=profile)
    names = world.settle(n)
    victim = names[0]
    counts: dict[str, int] = {}
    count_changes(world, counts, lambda _, event: not slow or event.member.node != victim)
    if slow:
        rng = Random(n)

        def stall() -> None:
            world.pause(victim)
            world.timeline.after(rng.uniform(*SLOW_TURN_MS), turn)

        def turn() -> None:
            world.resume(victim)
            world.timeline.after(1.0, stall)

        world.timeline.after(1_000.0, stall)
    world.run_for(minutes * 60_000.0)
    deaths = counts.get("dead", 0)
    return FalseDeaths(deaths / minutes, counts.get("suspect", 0) / minutes, deaths, minutes)


def measure(n: int, scale: float) -> Row:
    slow = {
        name: measure_false_deaths(n, features, SLOW_MINUTES[n] * scale, slow=True)
        for name, features in VARIANTS.items()
    }
    loss = {
        name: measure_false_deaths(n, features, LOSS_MINUTES[n] * scale, slow=False)
        for name, features in VARIANTS.items()
    }
    return Row(n, measure_crashes(n, scale), measure_quiet(n), slow, loss)


def measure_all(sizes: Sequence[int], scale: float, jobs: int, console: Console) -> list[Row]:
    """One process per size, the largest first, as it takes longest."""
    started = time.monotonic()
    rows: list[Row] = []
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        waiting = [pool.submit(measure, n, scale) for n in sorted(sizes, reverse=True)]
        for done in concurrent.futures.as_completed(waiting):
            rows.append(done.result())
            console.print(f"N = {rows[-1].n} after {time.monotonic() - started:.0f} s")
    return sorted(rows, key=lambda row: row.n)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def seconds(value_ms: float) -> str:
    return f"{value_ms / 1000:.2f}"


def detection_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    head = ["N", "crashes", "first probe, periods", "theory", "suspect, s", "known p50, s", "p99, s", "to all p50, s"]
    body = [
        [
            str(row.n),
            str(len(row.crashes.all_ms)),
            f"{row.crashes.first_period:.2f}",
            f"{first_period_theory(row.n):.2f}",
            seconds(statistics.fmean(row.crashes.suspect_ms)),
            seconds(percentile(row.crashes.known_ms, 0.5)),
            seconds(percentile(row.crashes.known_ms, 0.99)),
            seconds(percentile(row.crashes.all_ms, 0.5)),
        ]
        for row in rows
    ]
    return head, body


def cost_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    head = [
        "N",
        "messages / member / period",
        "bytes/s / member",
        "news to half, ms",
        "to all, ms",
        "to all / ln N, ms",
    ]
    body = [
        [
            str(row.n),
            f"{row.quiet.messages:.2f}",
            f"{row.quiet.bytes_per_s:.0f}",
            f"{row.quiet.half_ms:.0f}",
            f"{row.quiet.all_ms:.0f}",
            f"{row.quiet.all_ms / math.log(row.n):.0f}",
        ]
        for row in rows
    ]
    return head, body


def false_table(rows: Sequence[Row], fault: str) -> tuple[list[str], list[list[str]]]:
    head = ["N", "minutes"]
    head += [f"{name}: deaths/min" for name in VARIANTS] + [f"{name}: suspicions/min" for name in VARIANTS]
    body = []
    for row in rows:
        measured: dict[str, FalseDeaths] = getattr(row, fault)
        minutes = next(iter(measured.values())).minutes
        deaths = [f"{measured[name].deaths:.2f}" for name in VARIANTS]
        suspicions = [f"{measured[name].suspicions:.1f}" for name in VARIANTS]
        body.append([str(row.n), f"{minutes:g}", *deaths, *suspicions])
    for label, some in (("all", rows), (f"from {CONFIRMED_FROM}", [row for row in rows if row.n >= CONFIRMED_FROM])):
        seen = [sum(getattr(row, fault)[name].deaths_seen for row in some) for name in VARIANTS]
        body.append([label, "deaths seen", *map(str, seen), *[""] * len(VARIANTS)])
        body.append(
            [label, "times fewer", "1", *(times_fewer(seen[0], few) for few in seen[1:]), *[""] * len(VARIANTS)]
        )
    return head, body


def times_fewer(many: int, few: int) -> str:
    """How many times rarer an event was; when it was not seen at all, what holds with 95 % certainty (the rule of three)."""
    return f"{many / few:.0f}" if few else f"over {many // 3}"


TABLES = (
    (
        "A crash: noticed and known",
        "Default timing (period 0.5 s, time-out 0.25 s, suspicion multiplier 4). *First probe*: mean number of the period "
        "in which somebody first pings the crashed member; *theory*: that mean for targets chosen at random, 1.33 at N = 3 "
        "and 1.58 for large N. Round robin probes each member once a pass, so it may be a little faster. *Known*: believed "
        "dead, over all members and crashes. The standard error of the first probe is about 0.96 / sqrt(crashes) periods.",
        detection_table,
    ),
    (
        "A quiet cluster: cost, and the spread of one piece of news",
        "Two messages per member and period whatever N is: a ping and an ack. News travels in bursts as well as on probes, "
        "so it needs about ln N bursts.",
        cost_table,
    ),
    (
        "Healthy members believed dead while one member is slow",
        f"Every turn of one member's event loop takes {SLOW_TURN_MS[0] / 1000:g} to {SLOW_TURN_MS[1] / 1000:g} s. Counted: "
        "deaths and suspicions of the *other* members, as believed by anybody. *Times fewer*: than SWIM; where none was seen, "
        f"what holds with 95 % certainty. Of three members nobody can confirm a suspicion, so Lifeguard is counted from N = "
        f"{CONFIRMED_FROM} as well; its authors report 50 times fewer.",
        lambda rows: false_table(rows, "slow"),
    ),
    (
        f"Members believed dead while every link loses {LOSS:.0%}",
        "Nobody is dead; streams fail too when one of four datagrams in a row is lost. With 500 members and more the run "
        "is little longer than the shortest suspicion (5.4 and 6 s): there a zero says less than in the smaller clusters.",
        lambda rows: false_table(rows, "loss"),
    ),
)


def render(rows: Sequence[Row], console: Console) -> str:
    """Print the tables, return them as Markdown."""
    text = [
        "# Membership by simulation",
        "",
        "Written by `python -m ops.swim_tables --out ops`. Virtual time, seeded, one-way delay 0.5 to 2 ms; the code under "
        "test is the code that runs. *SWIM* is the protocol with round robin, bursts and suspicion of fixed length; "
        "*Lifeguard* adds local health, confirmations and the buddy system as published; *Dakera* adds what this "
        "implementation does beyond that: deaths by hearsay are doubted, time stolen from our own loop is given back, TCP is "
        "tried, and a suspect is asked for its last word.",
        "",
        "![Detection, spread, cost and false deaths by cluster size](swim.png)",
    ]
    for title, note, build in TABLES:
        head, body = build(rows)
        table = Table(title=title)
        for column in head:
            table.add_column(column, justify="right")
        for line in body:
            table.add_row(*line)
        console.print(table)
        text += ["", f"## {title}", "", note, "", "| " + " | ".join(head) + " |", "|" + "--:|" * len(head)]
        text += ["| " + " | ".join(line) + " |" for line in body]
    return "\n".join(text) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sizes = [row.n for row in rows]
    figure, axes = plt.subplots(2, 2, figsize=(9.0, 6.2), layout="constrained")
    detect, spread, cost, false = axes.flat
    detect.plot(sizes, [row.crashes.first_period for row in rows], "o-", label="measured")
    detect.plot(sizes, [first_period_theory(n) for n in sizes], "k--", label="theory, random targets")
    detect.set(title="First probe of a crashed member", ylabel="period", ylim=(0, 2))
    spread.plot(sizes, [row.quiet.all_ms for row in rows], "o-", label="news to all")
    spread.plot(sizes, [row.quiet.half_ms for row in rows], "s-", label="news to half")
    spread.set(title="Spread of news", ylabel="ms", ylim=(0, None))
    cost.plot(sizes, [row.quiet.messages for row in rows], "o-", label="messages sent")
    cost.set(title="Cost of a quiet cluster", ylabel="per member and period", ylim=(0, 4))
    for name, marker in zip(VARIANTS, "os^", strict=True):
        false.plot(sizes, [row.slow[name].deaths for row in rows], marker + "-", label=f"{name}, one slow member")
        false.plot(sizes, [row.loss[name].deaths for row in rows], marker + ":", label=f"{name}, 20 % loss")
    false.set(title="Healthy members believed dead", ylabel="per minute, whole cluster")
    false.set_yscale("symlog", linthresh=0.1)
    for axis in axes.flat:
        axis.set_xscale("log")
        axis.set_xlabel("members")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the membership protocol by simulation.")
    parser.add_argument("--out", type=Path, required=True, help="directory for SWIM.md and swim.png")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), choices=SIZES, help="cluster sizes")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of crashes and minutes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    console = Console()
    rows = measure_all(options.sizes, options.scale, options.jobs, console)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "SWIM.md").write_text(render(rows, console))
    plot(rows, options.out / "swim.png")


if __name__ == "__main__":
    main()
