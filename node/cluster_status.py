"""`dakera cluster status [--watch]`: what one node believes about the cluster, as tables for people.

Everything shown is a belief of the node that answered, so the picture names that node and gives the age of each belief: how
long a member has been in its state, when it was last heard, and since when the leader has been known. Figures of a member
that is not alive are those it told last, and are marked so. Asks the three admin routes over HTTP; needs no part of a node.

Exit status: 0 healthy, 1 degraded, 2 a wrong command line, 3 nobody answered, or not with what was asked.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

EXIT_HEALTHY = 0
EXIT_DEGRADED = 1
EXIT_NO_ANSWER = 3
TIMEOUT_S = 5.0
WATCH_INTERVAL_S = 1.0
PLAIN_WIDTH = 140
MAX_SHARD_ROWS = 20
"""Shards shown one by one; all that are not as they should be come first."""
_STYLES = {
    "alive": "green",
    "active": "green",
    "healthy": "green",
    "suspect": "yellow",
    "dead": "red",
    "degraded": "red",
}


class Picture(NamedTuple):
    """The answers of one round, as they came."""

    status: dict[str, Any]
    nodes: list[dict[str, Any]]
    shards: list[dict[str, Any]]

    @property
    def healthy(self) -> bool:
        return bool(self.status.get("healthy"))


class NoAnswerError(Exception):
    """Nobody answered, or not with what was asked; the text says so."""


def default_url(environ: Mapping[str, str]) -> str:
    return environ.get("DAKERA_URL") or f"http://127.0.0.1:{environ.get('DAKERA_PORT') or 3300}"


def default_key(environ: Mapping[str, str]) -> str | None:
    return environ.get("DAKERA_API_KEY") or environ.get("DAKERA_ROOT_API_KEY") or None


def show_status(url: str | None, key: str | None, *, watch: bool, interval_s: float = WATCH_INTERVAL_S) -> int:
    """Print the cluster once, or, with ``watch``, again and again until interrupted. Returns the exit status."""
    url = (url or default_url(os.environ)).rstrip("/")
    key = key or default_key(os.environ)
    if watch:
        return _watch(url, key, interval_s, sys.stdout)
    try:
        picture = fetch(url, key)
    except NoAnswerError as error:
        print(f"dakera: {error}", file=sys.stderr)
        return EXIT_NO_ANSWER
    console = _console(sys.stdout)
    console.print(render(picture, url, console.width))
    return EXIT_HEALTHY if picture.healthy else EXIT_DEGRADED


def fetch(url: str, key: str | None) -> Picture:
    """Ask one node, or a balancer. Raises NoAnswerError."""
    status = _get(f"{url}/admin/cluster/status", key)
    nodes = _get(f"{url}/admin/cluster/nodes", key)
    shards = _get(f"{url}/admin/cluster/shards", key)
    if not isinstance(status, dict) or "node_count" not in status:
        raise NoAnswerError(f"{url} answers, but not as a node of Dakera does")
    return Picture(status, nodes["nodes"] if isinstance(nodes, dict) else nodes, shards["shards"])


def _get(url: str, key: str | None) -> Any:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        hint = ": give a key with --key or DAKERA_API_KEY" if error.code in (401, 403) else ""
        raise NoAnswerError(f"{url} answers {error.code}{hint}") from None
    except (urllib.error.URLError, OSError) as error:
        raise NoAnswerError(f"{url} does not answer: {getattr(error, 'reason', error)}") from None
    except ValueError:
        raise NoAnswerError(f"{url} answers, but not with JSON") from None


def _watch(url: str, key: str | None, interval_s: float, out: TextIO) -> int:
    """The live view; without a terminal, one block after another. Interrupting it ends it with the last status."""
    console = _console(out)
    outcome = EXIT_NO_ANSWER
    last: RenderableType = Text(f"asking {url} ...")
    last_at: float | None = None
    try:
        with Live(last, console=console, auto_refresh=False, screen=False) as live:
            while True:
                try:
                    picture = fetch(url, key)
                    last, last_at = render(picture, url, console.width), time.monotonic()
                    shown = last
                    outcome = EXIT_HEALTHY if picture.healthy else EXIT_DEGRADED
                except NoAnswerError as error:
                    age = "" if last_at is None else f"; below is {_age(time.monotonic() - last_at)} old"
                    shown, outcome = Group(Text(f"{error}{age}", style="bold red"), last), EXIT_NO_ANSWER
                if console.is_terminal:
                    live.update(shown, refresh=True)
                else:
                    console.print(shown)
                time.sleep(interval_s)
    except KeyboardInterrupt:
        return outcome


def _console(out: TextIO) -> Console:
    """A terminal's own width and colours; a fixed width and plain text for a pipe, so that lines do not break."""
    return Console(file=out) if out.isatty() else Console(file=out, width=PLAIN_WIDTH, color_system=None)


# -- the picture


def render(picture: Picture, url: str, width: int) -> RenderableType:
    """The whole picture for a terminal of ``width`` columns."""
    now_s = float(picture.status.get("timestamp", 0))
    return Group(_head(picture, url), _nodes_table(picture, now_s, width), *_shards_part(picture))


def _head(picture: Picture, url: str) -> Text:
    status = picture.status
    state = str(status.get("state"))
    text = Text()
    text.append(state, style=f"bold {_STYLES.get(state, '')}")
    text.append(
        f"  cluster {status.get('cluster_id')}, {status.get('alive_nodes', '?')} of {status['node_count']} nodes alive, "
        f"{status.get('total_vectors', 0):,} memories and vectors in {status.get('namespace_count', 0)} namespaces\n"
    )
    leadership = status.get("leadership") or {}
    if status.get("leader") is None:
        text.append("no leader known", style="bold red")
    else:
        text.append(f"leader {status['leader']}")
        if leadership:
            text.append(f", epoch {leadership.get('epoch')}, believed for {_age(leadership.get('age_ms', 0) / 1000)}")
    at = status.get("map") or {}
    text.append(f"; map {at.get('epoch', '?')}.{at.get('version', '?')}")
    if status.get("redis_healthy") is not None:
        text.append("; Redis " + ("reached" if status["redis_healthy"] else "not reached"))
    if leadership.get("bucket_proved") is False:
        text.append(f"\nthe bucket is refused: {leadership.get('bucket_problem')}", style="bold red")
    elif leadership.get("bucket_problem"):
        text.append(f"\nbucket: {leadership['bucket_problem']}", style="yellow")
    when = time.strftime("%H:%M:%S", time.localtime(status.get("timestamp", 0)))
    text.append(
        f"\nas {status.get('answered_by', url)} believes it at {when}, release {status.get('version')}\n", style="dim"
    )
    return text


def _nodes_table(picture: Picture, now_s: float, width: int) -> Table:
    rows = [_node_cells(row, now_s) for row in picture.nodes]
    kept = _fitting(rows, width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in kept:
        table.add_column(name, no_wrap=True, justify="right" if name in _FIGURES else "left")
    for cells in rows:
        table.add_row(*(cells[name] for name in kept))
    return table


_FIGURES = ("shards", "documents", "memory", "cpu", "map")
_LEAST_WANTED = ("release", "map", "cpu", "memory", "up", "address", "documents", "shards")
"""What goes first when the terminal is narrow; the others stay."""


def _fitting(rows: list[dict[str, Text]], width: int) -> list[str]:
    """Columns that fit side by side: a name that is cut off helps nobody."""
    names = list(rows[0]) if rows else []
    needed = {name: max(len(name), *(len(cells[name]) for cells in rows)) + 2 for name in names}
    for name in _LEAST_WANTED:
        if sum(needed.values()) - 2 <= width:
            break
        needed.pop(name, None)
    return list(needed)


def _node_cells(row: Mapping[str, Any], now_s: float) -> dict[str, Text]:
    """Column name -> cell, in the order of the columns."""
    state = str(row.get("status"))
    alive = state == "active"
    figures = {
        "shards": f"{int(row.get('shards', 0))}",
        "documents": f"{row.get('vector_count', 0):,}",
        "memory": _bytes(row.get("memory_bytes", 0)),
        "cpu": f"{row.get('cpu_percent', 0):.0f} %",
        "map": str(row.get("map_version") or "-"),
    }
    return {
        "node": Text(str(row.get("node_id"))),
        "role": Text(str(row.get("role"))),
        "state": Text("alive" if alive else state, style=_STYLES.get(state, "")),
        "for": Text(_age(row["belief_age_ms"] / 1000) if "belief_age_ms" in row else ""),
        "heard": Text(_heard(now_s - float(row.get("last_heartbeat", now_s)))),
        "address": Text(str(row.get("address"))),
        "release": Text(str(row.get("version"))),
        "up": Text(_age(row.get("uptime_seconds", 0)) if alive else "-"),
        # What a member that is gone said last is not what it holds now.
        **{name: Text(figure if alive else f"({figure})") for name, figure in figures.items()},
    }


def _shards_part(picture: Picture) -> list[RenderableType]:
    shards = picture.shards
    dead = {str(row.get("node_id")) for row in picture.nodes if row.get("status") != "active"}
    sound = [row for row in shards if row.get("state") == "active" and not _missing(row, dead)]
    moving = picture.status.get("moving_shards", 0)
    short = picture.status.get("under_replicated_shards", 0)
    line = Text(f"\n{len(shards)} shards: {len(sound)} sound, {moving} moving, ")
    line.append(f"{short} with a replica missing", style="yellow" if short else "")
    others = [row for row in shards if row not in sound][:MAX_SHARD_ROWS]
    if not others:
        return [line]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("shard", "state", "replicas", "joining", "leaving"):
        table.add_column(name, no_wrap=True)
    for name in ("documents", "size", "version"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in others:
        replicas = Text(" ")
        for node in (row.get("primary_node", ""), *row.get("replica_nodes", [])):
            replicas.append(f"{node} ", style="red strike" if node in dead else "")
        table.add_row(
            str(row.get("shard_id")),
            str(row.get("state")),
            replicas,
            " ".join(row.get("joining_nodes", [])),
            " ".join(row.get("leaving_nodes", [])),
            f"{row.get('vector_count', 0):,}",
            _bytes(row.get("size_bytes", 0)),
            str(row.get("version", "")),
        )
    left = len(shards) - len(sound) - len(others)
    more = [Text(f"and {left} more", style="dim")] if left else []
    return [line, table, *more]


def _missing(row: Mapping[str, Any], dead: set[str]) -> list[str]:
    return [node for node in (row.get("primary_node", ""), *row.get("replica_nodes", [])) if node in dead]


def _heard(age_s: float) -> str:
    return "now" if age_s <= 1.0 else f"{_age(age_s)} ago"


def _age(seconds: float) -> str:
    """Two units at most: 3 s, 4 min 10 s, 2 h 5 min, 3 d 1 h."""
    whole = int(max(seconds, 0.0))
    for size, name, smaller, smaller_name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole} s"


def _bytes(count: float) -> str:
    for name in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {name}"
        count /= 1024
    return f"{count:.1f} TiB"
