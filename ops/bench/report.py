"""Results as tables on the terminal, as JSON and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from ops.bench.engines import CHROMA, CHROMA_WITH_OURS, NODE
from ops.bench.plan import Results, Timing

COLOURS = {NODE: "#2a6f97", CHROMA: "#e09f3e", CHROMA_WITH_OURS: "#9e2a2b"}


def print_tables(results: Results, console: Console) -> None:
    machine = results.machine
    print_machine(machine, results.took_s, console)
    versions = (f"{name} {number}" for name, number in machine["versions"].items())
    console.print(", ".join(versions), style="dim")
    console.print(timings_table(results.timings))
    console.print(_fills(results))
    console.print(_weights(results))
    console.print(_found(results))
    if results.steps:
        by_size = {f"{int(size):,}": steps for size, steps in results.steps.items()}
        console.print(steps_table("Where a recall's time goes, by the node's own account (median ms)", by_size))


def timings_table(timings: Sequence[Timing]) -> Table:
    """A line a measurement; what is compared stands together, in the order in which the engines were first measured."""
    order = list(dict.fromkeys(one.engine for one in timings))
    table = Table(title="Answers (ms; rate and its range over rounds; processor ms of server and client per answer)")
    for heading in (
        "what",
        "memories",
        "clients",
        "engine",
        "p50",
        "p95",
        "p99",
        "rate /s",
        "range",
        "server",
        "client",
    ):
        table.add_column(heading, justify="left" if heading in ("what", "engine") else "right")
    last: tuple[str, int, int] | None = None
    for one in sorted(timings, key=lambda t: (t.what, t.size, t.clients, order.index(t.engine))):
        key = (one.what, one.size, one.clients)
        if last is not None and key != last:
            table.add_section()
        last = key
        table.add_row(
            one.what,
            f"{one.size:,}" if one.size else "",
            str(one.clients),
            one.engine,
            f"{one.p50_ms:.1f}",
            f"{one.p95_ms:.1f}",
            f"{one.p99_ms:.1f}",
            f"{one.rate:.0f}",
            f"{one.rate_low:.0f}-{one.rate_high:.0f}",
            f"{one.server_cpu_ms:.2f}",
            f"{one.client_cpu_ms:.2f}",
        )
    return table


def _fills(results: Results) -> Table:
    table = Table(title="Batch stores (texts a second)")
    for heading in ("memories", "engine", "embeds", "rate /s", "bare model /s", "ratio"):
        table.add_column(heading, justify="left" if heading in ("engine", "embeds") else "right")
    for fill in results.fills:
        table.add_row(
            f"{fill.size:,}",
            fill.engine,
            "no, vectors given" if fill.with_vectors else "yes",
            f"{fill.rate:.0f}",
            "" if fill.bare_rate is None else f"{fill.bare_rate:.0f}",
            "" if fill.ratio is None else f"{fill.ratio:.2f}",
        )
    return table


def _weights(results: Results) -> Table:
    table = Table(title="Memory, disk and start")
    for heading in ("when", "engine", "memories", "resident MiB", "disk MiB", "start s"):
        table.add_column(heading, justify="left" if heading in ("when", "engine") else "right")
    for weight in results.weights:
        table.add_row(
            weight.when,
            weight.engine,
            f"{weight.memories:,}",
            f"{weight.resident_mib:.0f}",
            f"{weight.disk_mib:.0f}",
            "" if weight.start_s is None else f"{weight.start_s:.2f}",
        )
    return table


def _found(results: Results) -> Table:
    table = Table(title=f"Questions whose memory is among the first {results.plan.top_k}")
    for heading in ("memories", "engine", "found"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    for found in results.found:
        table.add_row(f"{found.size:,}", found.engine, f"{found.share:.1%}")
    return table


def steps_table(title: str, steps: Mapping[str, Mapping[str, float]]) -> Table:
    """A column for each key of ``steps``, a line for each step of any of them, in the order of the one with the most."""
    table = Table(title=title)
    table.add_column("step")
    for heading in steps:
        table.add_column(heading, justify="right")
    for name in dict.fromkeys(name for column in sorted(steps.values(), key=len, reverse=True) for name in column):
        table.add_row(name, *(f"{column[name]:.2f}" if name in column else "" for column in steps.values()))
    return table


def print_machine(machine: Mapping[str, Any], took_s: float, console: Console) -> None:
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, "
        f"load average at start {machine['load_average_at_start']:.1f}, took {took_s:.0f} s"
    )


def write_json(results: Results, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")


def write_plot(results: Results, path: Path) -> None:
    """Latency by size (p50 as bar, p99 as tick) and throughput by clients, engines side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    recalls = [one for one in results.timings if one.what.startswith("recall")]
    stores = [one for one in results.timings if one.what == "store"]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), constrained_layout=True)
    fewest, most = min(results.plan.clients), max(results.plan.clients)
    _bars(axes[0], [one for one in recalls if one.clients == fewest], "p50_ms", "p99_ms")
    axes[0].set_title(f"recall, {fewest} client: p50 (bar) and p99 (tick), ms")
    _bars(axes[1], [one for one in recalls if one.clients == most], "rate", None)
    axes[1].set_title(f"recall, {most} clients: answers a second")
    _bars(axes[2], stores, "rate", None)
    axes[2].set_title("single durable stores a second")
    figure.suptitle(f"{results.machine['cpu']}, {results.machine['cores']} cores")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _label(one: Timing) -> str:
    if one.what == "store":
        return f"{one.clients} client" + ("s" if one.clients > 1 else "")
    return f"{one.size:,}" + ("\nover agents" if one.what != "recall" else "")


def _bars(axis: object, timings: list[Timing], height: str, tick: str | None) -> None:
    labels = list(dict.fromkeys(_label(one) for one in timings))
    engines = list(dict.fromkeys(one.engine for one in timings))
    width = 0.8 / max(1, len(engines))
    for number, engine in enumerate(engines):
        for one in (one for one in timings if one.engine == engine):
            x = labels.index(_label(one)) + (number - (len(engines) - 1) / 2) * width
            first = labels.index(_label(one)) == 0
            axis.bar(x, getattr(one, height), width * 0.95, color=COLOURS[engine], label=engine if first else None)  # type: ignore[attr-defined]
            if tick is not None:
                axis.plot([x - width / 3, x + width / 3], [getattr(one, tick)] * 2, color="black")  # type: ignore[attr-defined]
    axis.set_xticks(range(len(labels)), labels)  # type: ignore[attr-defined]
    axis.legend()  # type: ignore[attr-defined]
