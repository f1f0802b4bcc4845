"""The report of a live run: a table for people, JSON for machines. Called by the command."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from chaos.live.failover import percentile, unserved
from chaos.live.history import Kind, Outcome
from chaos.live.run import VERIFY_CLIENT, Result

SHOWN_VIOLATIONS = 20


def summary(result: Result) -> dict[str, Any]:
    """Everything that is worth keeping of a run, without its histories."""
    load = [op for op in result.history if op.client != VERIFY_CLIENT]
    kinds: dict[str, Any] = {}
    for kind in Kind:
        some = [op for op in load if op.kind is kind]
        latencies = [op.latency_ms for op in some]
        kinds[kind.value] = {
            "operations": len(some),
            **{outcome.value: sum(op.outcome is outcome for op in some) for outcome in Outcome},
            "p50_ms": percentile(latencies, 0.50),
            "p99_ms": percentile(latencies, 0.99),
        }
    return {
        "options": msgspec.to_builtins(result.options),
        "network": result.network,
        "passed": result.passed,
        "duration_s": (result.end_ms - result.start_ms) / 1e3,
        "operations": len(load),
        "memories": len({op.key for op in load if op.kind.is_write}),
        "acknowledged_writes": sum(op.kind.is_write and op.outcome is Outcome.OK for op in load),
        "retried": sum(len(op.attempts) > 1 for op in load),
        "unserved": sum(unserved(op) for op in load),
        "error_codes": collections.Counter(
            attempt.code for op in load for attempt in op.attempts if attempt.code
        ).most_common(12),
        "kinds": kinds,
        "nemeses": collections.Counter(event.nemesis for event in result.events),
        "skipped": result.skipped,
        "leader_epochs": max((s.epoch for s in result.sightings), default=0),
        "convergence": {"after_s": result.convergence.after_s, "copies": result.convergence.copies},
        "failovers": msgspec.to_builtins(result.failovers),
        "events": msgspec.to_builtins(result.events),
        "violations": msgspec.to_builtins(result.violations),
    }


def write_report(result: Result, out: Path) -> dict[str, Any]:
    """`report.json` in ``out``; returns what it holds."""
    made = summary(result)
    (out / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(made)))
    return made


def show(result: Result, made: dict[str, Any], console: Console) -> None:
    """The tables at the end of a run."""
    table = Table(title="operations", title_justify="left")
    for name in ("", "all", "ok", "failed", "ambiguous", "timeout", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right" if name else "left")
    for kind, row in made["kinds"].items():
        counts = (row[name] for name in ("operations", "ok", "failed", "ambiguous", "timeout"))
        table.add_row(kind, *map(str, counts), _ms(row["p50_ms"]), _ms(row["p99_ms"]))
    console.print(table)
    if result.failovers:
        console.print(_failover_table(result))
    after = result.convergence.after_s
    console.print(
        f"{made['acknowledged_writes']} acknowledged writes of {made['memories']} memories; "
        f"{made['retried']} operations retried, {made['unserved']} unserved; "
        f"replicas the same {'NEVER' if after is None else f'{max(after, 0.0):.1f} s after the end'} "
        f"({result.convergence.copies} copies of {result.convergence.memories} memories compared)"
    )
    codes = ", ".join(f"{code} {count}" for code, count in made["error_codes"])
    if codes:
        console.print(f"errors of single attempts: {codes}")
    for name, why in result.skipped.items():
        console.print(f"skipped: {name}: {why}")
    for violation in result.violations[:SHOWN_VIOLATIONS]:
        at_s = (violation.at_ms - result.start_ms) / 1e3
        console.print(
            f"VIOLATION {violation.promise} at {at_s:.1f} s: {violation.text}", style="bold red", markup=False
        )
    if len(result.violations) > SHOWN_VIOLATIONS:
        console.print(f"and {len(result.violations) - SHOWN_VIOLATIONS} more in report.json")
    held = "every promise held" if result.passed else f"{len(result.violations)} violations"
    console.print(held, style="bold green" if result.passed else "bold red")


def _failover_table(result: Result) -> Table:
    table = Table(title="failovers (the 10 s from the fault on)", title_justify="left")
    for name in (
        "fault",
        "node",
        "dead after",
        "new leader",
        "write p99",
        "recall p99",
        "operations",
        "retried",
        "failed",
    ):
        table.add_column(name, justify="left" if name in ("fault", "node") else "right")
    for one in result.failovers:
        times = (one.detected_ms, one.new_leader_ms, one.write_p99_ms, one.recall_p99_ms)
        counts = (one.operations, one.retried, one.failed)
        table.add_row(one.nemesis, "+".join(one.targets), *map(_ms, times), *map(str, counts))
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
