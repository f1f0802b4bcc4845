"""`make bench-recall DATA=...`: how often a node brings back the turns that hold the answer, with confidence intervals.

Drives a fresh node over REST at default settings with the scorer of a separate benchmark kit (a directory with locomo.py,
and peers.py for other systems; both stay outside this repository, like their data). Intervals are bootstrapped over
questions. Peers named with --peers run in this Python, through the same scorer, when their packages are installed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from ops.bench.servers import Node

METRICS = ("hit@10", "recall@10", "all@20", "ndcg@10", "mrr@10")
RESAMPLES = 2000
STORE_CLIENTS = 4


class _Row(msgspec.Struct):
    id: str
    metrics: dict[str, float]


class _Result(msgspec.Struct):
    system: str
    rows: list[_Row]
    recall_ms: dict[str, dict[str, float]] = {}


def interval(values: list[float], seed: int = 1) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap interval."""
    rng = random.Random(seed)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return statistics.fmean(values), means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]


def run_node(kit: Path, data: list[Path], conversations: str | None, out: Path) -> Path:
    """Returns the scorer's result file. Raises CalledProcessError when the scorer fails."""
    result = out / "recall-dakera.json"
    node = Node(out / "recall-node", out / "recall-node.log")
    node.discard()
    node.start()
    try:
        command: list[Any] = [sys.executable, kit / "locomo.py", "rest", "--url", f"http://127.0.0.1:{node.port}"]
        command += ["--workers", str(STORE_CLIENTS), "--name", "dakera", "--out", result, "--data", *data]
        if conversations:
            command += ["--conversations", conversations]
        subprocess.run(command, check=True)
    finally:
        node.discard()
    return result


def run_peers(kit: Path, names: list[str], data: list[Path], conversations: str | None, out: Path) -> list[Path]:
    """Result files of the peers that ran; one that fails says why and is left out."""
    folder = out / "recall-peers"
    for old in folder.glob("*.json"):
        old.unlink()
    for name in names:
        command: list[Any] = [sys.executable, kit / "peers.py", name, "--out-dir", folder, "--data", *data]
        if conversations:
            command += ["--conversations", conversations]
        subprocess.run(command, check=False)
    return sorted(folder.glob("*.json"))


def table(results: list[_Result]) -> Table:
    shown = Table(title="Evidence retrieval, % (95 % interval over questions)")
    shown.add_column("system")
    shown.add_column("questions", justify="right")
    for metric in METRICS:
        shown.add_column(metric, justify="right")
    shown.add_column("recall p50 ms", justify="right")
    for result in results:
        cells = []
        for metric in METRICS:
            mean, low, high = interval([row.metrics[metric] for row in result.rows])
            cells.append(f"{100 * mean:.1f} ({100 * low:.1f}-{100 * high:.1f})")
        p50 = result.recall_ms.get("top_k=10", {}).get("p50")
        shown.add_row(result.system, str(len(result.rows)), *cells, "" if p50 is None else f"{p50:.1f}")
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.recall", description=__doc__)
    parser.add_argument("--kit", type=Path, required=True, help="directory with locomo.py and peers.py")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--conversations", help="as locomo.py takes them: 1-3, or 2,5")
    parser.add_argument("--peers", default="", help="names of peers.py, as in bm25,rrf,chroma")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    peers = [name for name in arguments.peers.split(",") if name]
    files = [run_node(arguments.kit, arguments.data, arguments.conversations, out)]
    files += run_peers(arguments.kit, peers, arguments.data, arguments.conversations, out)
    results = [msgspec.json.decode(file.read_bytes(), type=_Result) for file in files]
    Console(width=None if sys.stdout.isatty() else 160).print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
