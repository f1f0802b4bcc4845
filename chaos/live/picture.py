"""The picture of a live run over time: what was asked and answered, how long it took, what was done to whom, and who led.

Needs matplotlib; without it there is no picture, and the report says so. Called by the command.
"""

from __future__ import annotations

import collections
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chaos.live.failover import percentile, unserved
from chaos.live.history import Operation
from chaos.live.run import VERIFY_CLIENT, Result
from chaos.live.watch import Sighting

BIN_S = 1.0
_COLOURS = {
    "kill": "#d62728",
    "leader": "#8c1a1a",
    "all": "#000000",
    "wipe": "#7f3b08",
    "pause": "#ff7f0e",
    "partition": "#9467bd",
    "bucket": "#1f77b4",
    "redis": "#17becf",
    "clock": "#bcbd22",
    "disk": "#8c564b",
    "rolling": "#7f7f7f",
}


def draw(result: Result, path: Path) -> str | None:
    """Write the picture as PNG. Returns why there is none, or None."""
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed"
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        4, 1, figsize=(14, 10), sharex=True, height_ratios=(3, 3, 1.6, 1.6), constrained_layout=True
    )
    load = [op for op in result.history if op.client != VERIFY_CLIENT]
    _rates(axes[0], result, load)
    _latencies(axes[1], result, load)
    _leaders(axes[2], result)
    _strikes(axes[3], result)
    for axis in axes[:3]:
        for event in result.events:
            axis.axvspan(
                _s(result, event.start_ms), _s(result, event.end_ms), color=_COLOURS[event.nemesis], alpha=0.13
            )
    axes[-1].set_xlabel("seconds")
    axes[-1].set_xlim(0, _s(result, result.end_ms))
    options = result.options
    verdict = "every promise held" if result.passed else f"{len(result.violations)} violations"
    figure.suptitle(f"{options.nodes} nodes, {result.network}, bucket {options.bucket}, seed {options.seed}: {verdict}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return None


def _s(result: Result, at_ms: float) -> float:
    return (at_ms - result.start_ms) / 1e3


def _bins(result: Result, load: Sequence[Operation]) -> dict[int, list[Operation]]:
    bins: dict[int, list[Operation]] = collections.defaultdict(list)
    for op in load:
        bins[int(_s(result, op.end_ms) / BIN_S)].append(op)
    return bins


def _rates(axis: Any, result: Result, load: Sequence[Operation]) -> None:
    bins = _bins(result, load)
    times = list(range(int(_s(result, result.end_ms) / BIN_S) + 1))
    rows = {
        "answered": [sum(len(op.attempts) == 1 and not unserved(op) for op in bins.get(t, ())) for t in times],
        "answered after a retry": [
            sum(len(op.attempts) > 1 and not unserved(op) for op in bins.get(t, ())) for t in times
        ],
        "not answered": [sum(unserved(op) for op in bins.get(t, ())) for t in times],
    }
    axis.stackplot(
        [t * BIN_S for t in times],
        *rows.values(),
        labels=list(rows),
        colors=("#2ca02c", "#ffbf00", "#d62728"),
        step="post",
    )
    axis.set_ylabel("operations / s")
    axis.legend(loc="upper right", fontsize=8)


def _latencies(axis: Any, result: Result, load: Sequence[Operation]) -> None:
    bins = _bins(result, load)
    times = sorted(bins)
    for share, style in ((0.50, "-"), (0.99, ":")):
        for name, writes, colour in (("writes", True, "#d62728"), ("reads", False, "#1f77b4")):
            points = [
                (t * BIN_S, percentile([op.latency_ms for op in bins[t] if op.kind.is_write is writes], share))
                for t in times
            ]
            shown = [(t, value) for t, value in points if value is not None]
            axis.plot(*zip(*shown, strict=True), style, color=colour, linewidth=1.2, label=f"{name} p{share * 100:.0f}")
    axis.set_yscale("log")
    axis.set_ylabel("milliseconds")
    axis.legend(loc="upper right", fontsize=8, ncols=2)


def _leaders(axis: Any, result: Result) -> None:
    """Who each node says leads: one row a node, one colour a leader."""
    nodes = sorted({s.node for s in result.sightings})
    palette = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756")
    colours = {node: palette[index % len(palette)] for index, node in enumerate(nodes)}
    epochs: dict[int, Sighting] = {}
    for sight in result.sightings:
        at_s = _s(result, sight.end_ms)
        if at_s < 0:
            continue
        if sight.leader is not None:
            epochs.setdefault(sight.epoch, sight)
        colour = colours.get(sight.leader or "", "#dddddd")
        axis.plot(at_s, nodes.index(sight.node), marker="|", markersize=12, color=colour)
    for epoch, sight in epochs.items():
        at_s = _s(result, sight.end_ms)
        axis.axvline(at_s, color=colours.get(sight.leader or "", "#000000"), linewidth=0.8)
        axis.text(at_s, len(nodes) - 0.45, f" epoch {epoch}: {sight.leader}", fontsize=7, va="bottom")
    axis.set_yticks(range(len(nodes)), nodes, fontsize=8)
    axis.set_ylim(-0.6, len(nodes) + 0.1)
    axis.set_ylabel("leader, by node")


def _strikes(axis: Any, result: Result) -> None:
    names = sorted({event.nemesis for event in result.events})
    for event in result.events:
        start, end = _s(result, event.start_ms), _s(result, event.end_ms)
        axis.barh(names.index(event.nemesis), end - start, left=start, color=_COLOURS[event.nemesis], height=0.6)
        axis.text(
            start, names.index(event.nemesis), f" {event.text}", fontsize=7, va="center", color="black", clip_on=True
        )
    for violation in result.violations:
        axis.axvline(_s(result, violation.at_ms), color="red", linewidth=1.5)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylabel("faults")
