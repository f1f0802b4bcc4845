"""The commands `live` and `figures` of ``python -m chaos``. Called by `chaos.__main__`."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from chaos.live import nemesis
from chaos.live.picture import draw
from chaos.live.report import show, write_report
from chaos.live.run import RunOptions, run_live

DEFAULT_NEMESES = "kill,leader,pause,partition,bucket,redis,clock,disk,rolling,all"
EXIT_BROKEN = 1


def add_commands(commands: Any) -> None:
    """Add the commands to the program's."""
    live = commands.add_parser("live", help="real processes, real faults, a checked history")
    _common(live)
    live.add_argument(
        "--nemesis", default=DEFAULT_NEMESES, help=f"of {', '.join(nemesis.NEMESES)} (default all but wipe)"
    )
    live.add_argument("--duration", type=float, default=60.0, metavar="S", help="seconds of load (default 60)")
    live.add_argument("--rate", type=float, default=30.0, help="operations a second (default 30)")
    live.add_argument("--clients", type=int, default=8, help="clients (default 8)")
    live.set_defaults(run=_live)


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
    run = RunOptions(
        nodes=options.nodes,
        nemeses=names,
        duration_s=options.duration,
        seed=options.seed,
        rate=options.rate,
        clients=options.clients,
        bucket=options.bucket,
        network=options.network,
        env=dict(item.split("=", 1) for item in options.env),
    )
    out = _fresh(options.out)
    console = Console(highlight=False)
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:7.1f} s  {text}", markup=False)

    result = asyncio.run(run_live(run, out, say))
    made = write_report(result, out)
    show(result, made, console)
    without = draw(result, out / "timeline.png")
    if without is not None:
        console.print(f"no picture: {without}")
    console.print(f"files: {out}")
    return 0 if result.passed else EXIT_BROKEN
