"""The commands `live` and `figures` of ``python -m chaos``. Called by `chaos.__main__`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from chaos.live import nemesis
from chaos.live.cluster import ClusterOptions
from chaos.live.figures import MEASUREMENTS, measure
from chaos.live.picture import draw
from chaos.live.report import show, write_report
from chaos.live.run import RunOptions, run_live

DEFAULT_NEMESES = "kill,leader,pause,partition,bucket,redis,clock,disk,rolling,all"
EXIT_BROKEN = 1
PLAIN_WIDTH = 140


def add_commands(commands: Any) -> None:
    """Add the commands to the program's."""
    live = commands.add_parser("live", help="real processes, real faults, a checked history")
    _common(live)
    live.add_argument(
        "--nemesis", default=DEFAULT_NEMESES, help=f"of {', '.join(nemesis.NEMESES)} (default all but wipe)"
    )
    live.add_argument("--duration", type=float, default=60.0, metavar="S", help="seconds of load (default 60)")
    live.add_argument("--rate", type=float, default=30.0, help="operations a second (default 30)")
    live.add_argument("--clients", type=int, default=32, help="clients (default 32)")
    live.add_argument("--each-once", action="store_true", help="go on until every nemesis has had its turn")
    live.set_defaults(run=_live)
    measured = commands.add_parser(
        "figures", help="detection, failover, minorities, lost disks, an absent bucket: measured"
    )
    _common(measured)
    measured.add_argument("--only", default=",".join(MEASUREMENTS), help=f"of {', '.join(MEASUREMENTS)} (default all)")
    measured.set_defaults(run=_figures)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, default=3, help="nodes (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule and the load (default 0)")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="default: chaos-out/TIME")
    parser.add_argument("--bucket", choices=("dir", "minio", "moto"), default="dir", help="default dir")
    parser.add_argument("--network", choices=("auto", "namespaces", "relay"), default="auto", help="default auto")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a setting of all nodes")


def _fresh(asked: Path | None) -> Path:
    out: Path = asked or Path("chaos-out") / time.strftime("%Y%m%d-%H%M%S")
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out} is not empty")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _live(options: argparse.Namespace) -> int:
    names = tuple(name for name in options.nemesis.split(",") if name)
    strangers = [name for name in names if name not in nemesis.NEMESES]
    if strangers:
        raise SystemExit(f"no such nemesis: {', '.join(strangers)}; there are {', '.join(nemesis.NEMESES)}")
    console = _console()
    run = RunOptions(
        nodes=options.nodes,
        nemeses=names,
        duration_s=options.duration,
        seed=options.seed,
        rate=options.rate,
        clients=options.clients,
        each_once=options.each_once,
        bucket=options.bucket,
        network=options.network,
        env=_settings(options),
    )
    out = _fresh(options.out)
    with _telling(console) as say:
        result = asyncio.run(run_live(run, out, say))
    made = write_report(result, out)
    show(result, made, console)
    without = draw(result, out / "timeline.png")
    if without is not None:
        console.print(f"no picture: {without}")
    console.print(f"files: {out}")
    return 0 if result.passed else EXIT_BROKEN


def _figures(options: argparse.Namespace) -> int:
    names = [name for name in options.only.split(",") if name]
    strangers = [name for name in names if name not in MEASUREMENTS]
    if strangers:
        raise SystemExit(f"no such measurement: {', '.join(strangers)}; there are {', '.join(MEASUREMENTS)}")
    cluster = ClusterOptions(
        nodes=options.nodes, bucket=options.bucket, network=options.network, env=_settings(options)
    )
    out = _fresh(options.out)
    console = _console()
    with _telling(console) as say:
        figures = asyncio.run(measure(names, cluster, options.seed, out, say))
    (out / "figures.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures)))
    table = Table()
    for name in ("figure", "promised", "seen", ""):
        table.add_column(name)
    words = {True: "[green]holds[/]", False: "[bold red]BROKEN[/]", None: "not measured"}
    for figure in figures:
        table.add_row(figure.name, figure.promised, escape(figure.seen), words[figure.holds])
    console.print(table)
    console.print(f"files: {out}")
    return EXIT_BROKEN if any(figure.holds is False for figure in figures) else 0


def _settings(options: argparse.Namespace) -> dict[str, str]:
    return dict(item.split("=", 1) for item in options.env)


@contextlib.contextmanager
def _telling(console: Console) -> Iterator[Callable[[str], None]]:
    """A function that prints what happens now, with the time; on a terminal the last of it also stands under a clock."""
    began = time.monotonic()
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def say(text: str) -> None:
            console.print(f"{time.monotonic() - began:7.1f} s  {text}", markup=False)
            progress.update(task, description=text)

        yield say


def _console() -> Console:
    # Without a terminal nobody knows the width; tables shall not be squeezed into a log.
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PLAIN_WIDTH)
