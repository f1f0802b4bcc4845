"""`python -m ops.bench [--sizes 1k,10k,100k] [--full]`: measure, print, and write bench-out/results.json and results.png."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec
from rich.console import Console

from ops.bench.engines import CHROMA, NODE
from ops.bench.plan import FULL, QUICK
from ops.bench.report import print_tables, write_json, write_plot
from ops.bench.run import Bench

ENGINES = (NODE, CHROMA)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(float(part.lower().replace("k", "e3"))) for part in text.split(",") if part)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench", description=__doc__)
    parser.add_argument("--sizes", type=_sizes, help="memories of one agent, as in 1k,10k,100k")
    parser.add_argument("--agents", type=int, help="agents of 100 memories each; 0 leaves that part out")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="length of one timed pass")
    parser.add_argument("--full", action="store_true", help="up to 100k memories and 10k agents, longer passes")
    parser.add_argument("--only", choices=ENGINES, help="leave the other engine out")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    arguments = parser.parse_args()
    plan = FULL if arguments.full else QUICK
    given = {name: getattr(arguments, name) for name in ("sizes", "agents", "rounds", "seconds")}
    plan = msgspec.structs.replace(plan, **{name: value for name, value in given.items() if value is not None})
    console = Console(width=None if sys.stdout.isatty() else 140)
    out = arguments.out.resolve()
    engines = (arguments.only,) if arguments.only else ENGINES
    results = Bench(plan, out, lambda text: console.print(text, style="dim"), engines).run()
    print_tables(results, console)
    write_json(results, out / "results.json")
    write_plot(results, out / "results.png")
    console.print(f"Written: {out / 'results.json'}, {out / 'results.png'}", style="dim")
    return 0


if __name__ == "__main__":
    sys.exit(main())
