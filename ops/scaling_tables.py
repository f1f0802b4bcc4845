"""Measure how a very large cluster would do: ``python -m ops.scaling_tables --out DIR`` prints tables and writes each of them as
``DIR/scaling-<name>.md``, and a picture, ``DIR/scaling.png``. ``--fill ops/SCALING.md`` puts the tables into that page, each
between its two markers; ``--only map loads`` measures some of them.

Placement, planning, encodings and sizes are measured by running the code itself; request rates follow from the intervals in
the code and from `ops.scaling.assumptions`. Times are processor seconds, everything else is the same at every run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from dakera_cluster.model.config.cluster import Cluster
from dakera_cluster.model.ids import NodeId
from dakera_cluster.model.shardmap import encode_map
from dakera_cluster.protocols.rebalance import LiveNode, RebalanceConfig, birth
from dakera_cluster.shard.views import DEFAULT_VIEW_BYTES
from dakera_cluster.storage.rocks import RowStoreSettings
from ops.scaling import footprint, placing, traffic
from ops.scaling.assumptions import Assumptions
from ops.scaling.scanning import scan_s

SIZES = (3, 5, 10, 50, 100, 500, 1000)
GIB = float(1 << 30)
DEFAULTS = Cluster()
THROTTLE = RebalanceConfig(moves_per_node=DEFAULTS.concurrent_moves)


class Page(msgspec.Struct, frozen=True):
    """One table."""

    head: Sequence[str]
    body: Sequence[Sequence[str]]


class Measured(msgspec.Struct):
    """What is measured once and used by several tables."""

    assumptions: Assumptions
    sizes: Sequence[int]
    agents: int
    """Agents written to measure the footprint."""
    maps: list[placing.MapCost] = []
    loads: list[placing.Load] = []
    bytes: footprint.Footprint | None = None

    def footprint(self) -> footprint.Footprint:
        if self.bytes is None:
            with tempfile.TemporaryDirectory() as directory:
                each = round(self.assumptions.memories_per_agent)
                self.bytes = footprint.measure(Path(directory) / "rows", self.agents, each)
        return self.bytes


def map_page(m: Measured) -> Page:
    a = m.assumptions
    sizes = [(nodes, 64 if nodes <= 50 else a.shards) for nodes in m.sizes]
    m.maps = [placing.map_cost(nodes, shards, a.replication_factor) for nodes, shards in sizes]
    head = [
        "nodes", "shards", "map, KB", "zlib, KB", "delta of a join, bytes", "of moves", "in memory, MB", "birth, s", "plan, s",
        "plan of a join, s", "encode, s", "decode, s",
    ]  # fmt: skip
    body = [
        [
            f"{c.nodes:,}", f"{c.shards:,}", f"{c.map_bytes / 1e3:.1f}", f"{c.packed_bytes / 1e3:.1f}",
            f"{c.join_delta_bytes:,}", f"{c.delta_bytes:,}",
            f"{c.resident_bytes / 1e6:.1f}", f"{c.birth_s:.2f}", f"{c.plan_s:.2f}", f"{c.join_plan_s:.2f}",
            f"{c.encode_s:.3f}", f"{c.decode_s:.3f}",
        ]
        for c in m.maps
    ]  # fmt: skip
    return Page(head, body)


def loads_page(m: Measured) -> Page:
    a = m.assumptions
    m.loads = [placing.load(nodes, 0, a.shards, a.replication_factor) for nodes in m.sizes]
    m.loads += [placing.load(n, a.racks, a.shards, a.replication_factor) for n in m.sizes if n >= 2 * a.racks]
    head = ["nodes", "racks", "replicas a node", "most", "least", "max/min", "ring alone: most", "least", "max/min"]
    body = [
        [
            f"{r.nodes:,}", str(r.racks or "none"), f"{r.mean:,.2f}", f"{r.most:,}", f"{r.least:,}",
            f"{r.most / r.least:.3f}", f"{r.ring_most:,}", f"{r.ring_least:,}",
            f"{r.ring_most / max(1, r.ring_least):.2f}",
        ]
        for r in m.loads
    ]  # fmt: skip
    return Page(head, body)


def _changes(a: Assumptions, racks: int) -> list[tuple[str, placing.Live, placing.Live]]:
    """(name, before, after) of a node and of a rack that joins or leaves. Without racks as many nodes of any place go."""
    before = placing.cluster(a.nodes, racks)
    homes = placing.cluster(a.nodes, a.racks)
    each = a.nodes // a.racks
    new = {
        node: LiveNode(said.disk, "rack-new" if racks else "")
        for node, said in placing.cluster(each, first=a.nodes).items()
    }
    kind = "a rack" if racks else f"{each} nodes, no racks,"
    one = "a node" if racks else "a node, no racks,"
    joins: placing.Live = before | placing.cluster(1, racks, first=a.nodes)
    leaves = {node: said for node, said in before.items() if node != NodeId(f"dakera-{a.nodes // 2:04d}")}
    rackless = {node: said for node, said in before.items() if homes[node].zone != "rack-01"}
    return [
        (f"{one} joins", before, joins),
        (f"{one} leaves", before, leaves),
        (f"{kind} joins", before, before | new),
        (f"{kind} leaves", before, rackless),
    ]


def shifts_page(m: Measured) -> Page:
    a = m.assumptions
    body = []
    for racks in (a.racks, 0):
        made = None
        for name, before, after in _changes(a, racks):
            made = made or birth("scaling", 1, before, a.shards, a.replication_factor)
            s = placing.shift(name, made, after)
            excess = s.copies / s.ideal - 1
            body.append(
                [name, f"{s.copies:,}", f"{s.ideal:,.1f}", f"{excess:+.1%}", f"{s.share:.3%}", f"{s.plan_s:.2f}"]
            )
    return Page(["change", "copies moved", "ideal", "against it", "of all copies", "placing, s"], body)


def rounds_page(m: Measured) -> Page:
    a = m.assumptions
    disk = m.footprint().disk * a.memories / a.shards
    body = []
    changes = _changes(a, a.racks)
    made = birth("scaling", 1, changes[0][1], a.shards, a.replication_factor)
    for name, _, after in changes:
        r, _ = placing.carry_out(name, made, after, THROTTLE)
        minutes = r.turns * disk / DEFAULTS.move_bytes_per_s / 60
        body.append([name, f"{r.copies:,}", str(r.rounds), str(r.most_joint), f"{minutes:.1f}", str(r.spread)])
    return Page(["change", "copies", "rounds", "shards at once", "minutes at the throttle", "max - min after"], body)


def control_page(m: Measured) -> Page:
    a = m.assumptions
    body = []
    for nodes in (n for n in m.sizes if n >= a.replication_factor):
        shards = 64 if nodes <= 50 else a.shards
        made = birth("scaling", 1, placing.cluster(nodes), shards, a.replication_factor)
        p = placing.peers_of(made)
        repair = traffic.repair_in_sync(p.held, p.peers, a.replication_factor)
        known = traffic.swim(nodes)
        body.append(
            [
                f"{nodes:,}", f"{shards:,}", f"{known.bytes_per_s / 2:.0f}", f"{known.bytes_per_s:.0f}",
                f"{traffic.push_pull_bytes(nodes) / 1e3:.1f}", f"{traffic.push_pull_per_s(nodes):.0f}",
                f"{known.known_p50_s:.1f} / {known.known_p99_s:.1f}", f"{p.peers:.0f}", f"{repair.bytes_per_s:.0f}",
                f"{repair.syncs_per_s:.1f}", f"{traffic.sweep_calls_per_s(nodes, shards) / nodes:.0f}",
            ]
        )  # fmt: skip
    head = [
        "nodes", "shards", "gossip, bytes a round", "gossip, B/s", "full state, KB", "full states, B/s",
        "death known p50 / p99, s", "repair partners", "repair in sync, B/s", "its disk syncs/s", "expiry calls/s",
    ]  # fmt: skip
    return Page(head, body)


def bucket_page(m: Measured) -> Page:
    a, f = m.assumptions, m.footprint()
    body, lines = [], []
    for nodes, shards in ((3, 64), (a.nodes, a.shards)):
        made = birth("scaling", 1, placing.cluster(nodes), shards, a.replication_factor)
        scaled = msgspec.structs.replace(
            a, agents=round(a.agents * nodes / a.nodes), namespaces=10 * nodes, api_keys=nodes
        )
        size = len(encode_map(made))
        lines.append((scaled, traffic.bucket(scaled, nodes, shards, size, f.segment, f.body)))
    for (small_a, small), (large_a, large) in zip(
        ((lines[0][0], line) for line in lines[0][1]), ((lines[1][0], line) for line in lines[1][1]), strict=True
    ):
        body.append(
            [
                large.what, large.interval, f"{small.puts_per_s + small.gets_per_s:,.1f}", f"{small.dollars(small_a):,.0f}",
                f"{large.puts_per_s:,.0f}", f"{large.gets_per_s:,.0f}", f"{large.bytes_per_s / 1e6:,.1f}",
                f"{large.dollars(large_a):,.0f}",
            ]
        )  # fmt: skip
    totals = [sum(line.dollars(x) for line in some) for x, some in lines]
    many = lines[1][1]
    body.append(
        [
            "all", "", f"{sum(x.puts_per_s + x.gets_per_s for x in lines[0][1]):,.1f}", f"{totals[0]:,.0f}",
            f"{sum(x.puts_per_s for x in many):,.0f}", f"{sum(x.gets_per_s for x in many):,.0f}",
            f"{sum(x.bytes_per_s for x in many) / 1e6:,.1f}", f"{totals[1]:,.0f}",
        ]
    )  # fmt: skip
    head = [
        "what", "each", "3 nodes: requests/s", "$/month", f"{a.nodes:,} nodes: PUT, LIST/s", "GET/s", "MB/s", "$/month",
    ]  # fmt: skip
    return Page(head, body)


def node_page(m: Measured) -> Page:
    """Bytes of a memory, and what a node of the large cluster holds."""
    a, f = m.assumptions, m.footprint()
    made = birth("scaling", 1, placing.cluster(a.nodes), a.shards, a.replication_factor)
    skew = placing.skew(made, a.agents, a.memories_sigma)
    stored = a.memories * a.replication_factor / a.nodes
    warm = a.warm_agents / a.nodes
    store = RowStoreSettings()
    rows = [
        ("body of a memory and its usage row", f"{f.body:,.0f} B"),
        ("the same on disk, with log, digests and books", f"{f.disk:,.0f} B"),
        ("in a segment in the bucket", f"{f.segment:,.0f} B"),
        ("in a loaded view, as accounted", f"{f.view:,.0f} B"),
        ("in a loaded view, as the process grew", f"{f.resident:,.0f} B"),
        (f"loading a view of {f.memories_per_agent} memories from rows", f"{f.load_ms:.1f} ms"),
        ("memories a node, three replicas", f"{stored / 1e6:,.1f} million"),
        ("disk a node", f"{stored * f.disk / GIB:,.1f} GiB"),
        ("largest node over the mean, agents of lognormal size", f"{skew.node_most:.3f}"),
        ("smallest node over the mean", f"{skew.node_least:.3f}"),
        ("largest shard over the mean", f"{skew.shard_most:.3f}"),
        ("a shard on disk", f"{a.memories / a.shards * f.disk / 1e9:,.2f} GB"),
        ("all views of a node, were they loaded", f"{stored * f.view / GIB:,.1f} GiB"),
        (
            f"views of agents active within {a.warm_minutes:g} minutes of the peak hour",
            f"{warm * f.view * a.memories_per_agent / GIB:.2f} GiB of {warm:,.0f} agents",
        ),
        ("bound on views (default)", f"{DEFAULT_VIEW_BYTES / GIB:.2f} GiB"),
        ("agents warm within that bound", f"{DEFAULT_VIEW_BYTES / (f.view * a.memories_per_agent):,.0f}"),
        (
            "row store: block cache and memtables",
            f"{(store.block_cache_bytes + store.total_write_buffer_bytes) / (1 << 20):.0f} MiB",
        ),
        ("whole cluster in the bucket", f"{a.memories * f.segment / 1e12:,.1f} TB"),
        ("storage of that", f"${a.memories * f.segment / 1e9 * a.storage_price:,.0f} a month"),
    ]
    return Page(["what", "value"], [list(row) for row in rows])


def scan_page(m: Measured) -> Page:
    a = m.assumptions
    sizes = [(n, 64 if n <= 50 else a.shards) for n in m.sizes if n in (3, 50, 100, 500, 1000)]
    body = []
    for nodes, shards in sizes:
        spent = scan_s(nodes, shards, a.replication_factor)
        body.append([f"{nodes:,}", f"{shards:,}", f"{1000 * spent:,.1f}"])
    return Page(["nodes", "shards", "event loop held, ms"], body)


def writes_page(m: Measured) -> Page:
    """How much is written to the bucket again, by size of the cluster."""
    a, f = m.assumptions, m.footprint()
    body = []
    for nodes in (3, 10, 50, 100, 1000):
        shards = 64 if nodes <= 50 else a.shards
        scaled = msgspec.structs.replace(a, agents=round(a.agents * nodes / a.nodes))
        fresh = traffic.delta_bytes_per_s(scaled, f.segment, traffic.USAGE_BYTES)
        anew = traffic.base_bytes_per_s(scaled, shards, f.segment)
        uploads = traffic.uploads_a_base(scaled, shards, f.segment)
        body.append(
            [
                f"{nodes:,}", f"{shards:,}", f"{scaled.agents:,}", f"{scaled.memories / shards * f.segment / 1e6:,.0f}",
                f"{fresh / nodes / 1e3:,.1f}", f"{anew / nodes / 1e3:,.1f}", f"{uploads:,.0f}",
            ]
        )  # fmt: skip
    rates = ["changed, KB/s and node", "written anew, KB/s and node"]
    head = ["nodes", "shards", "agents", "shard, MB", *rates, "uploads a base"]
    return Page(head, body)


PAGES: Mapping[str, tuple[str, Callable[[Measured], Page]]] = {
    "map": ("The map, and planning", map_page),
    "loads": ("Replicas per node after a birth", loads_page),
    "shifts": ("Moved when nodes come and go", shifts_page),
    "node": ("A node of the large cluster", node_page),
    "rounds": ("Moves under the throttle", rounds_page),
    "control": ("Control traffic of one node, nothing happening", control_page),
    "bucket": ("Requests to the bucket", bucket_page),
    "writes": ("Whole shards written anew to the bucket", writes_page),
    "scan": ("One look of the uploader at all shards", scan_page),
}


def markdown(page: Page) -> str:
    lines = [
        "| " + " | ".join(page.head) + " |",
        "|" + "|".join("---" if not i else "--:" for i in range(len(page.head))) + "|",
    ]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in page.body]) + "\n"


def show(title: str, page: Page, console: Console) -> None:
    table = Table(title=title)
    for position, column in enumerate(page.head):
        table.add_column(column, justify="right" if position else "left")
    for row in page.body:
        table.add_row(*row)
    console.print(table)


def fill(text: str, name: str, table: str) -> str:
    """``text`` with ``table`` between the markers of ``name``. Raises ValueError when it has none."""
    begin, end = f"<!-- {name}: by ops.scaling_tables -->\n", f"<!-- end of {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page must hold the markers of {name} once")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def plot(maps: Sequence[placing.MapCost], loads: Sequence[placing.Load], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (planning, spread) = plt.subplots(1, 2, figsize=(8.0, 3.0), layout="constrained")
    nodes = [cost.nodes for cost in maps]
    for field, label in (("birth_s", "birth"), ("join_plan_s", "a node joins"), ("plan_s", "nothing to do")):
        planning.plot(nodes, [getattr(cost, field) for cost in maps], "o-", label=label)
    planning.set(title="Planning", ylabel="processor seconds")
    flat = [one for one in loads if not one.racks]
    sizes = [one.nodes for one in flat]
    spread.plot(sizes, [one.most / one.least for one in flat], "o-", label="as placed")
    spread.plot(sizes, [one.ring_most / max(1, one.ring_least) for one in flat], "s--", label="the ring alone")
    spread.set(title="Replicas per node, max / min", ylim=(0.9, None))
    for axis in (planning, spread):
        axis.set_xscale("log")
        axis.set_xlabel("nodes")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure how a very large cluster would do.")
    parser.add_argument("--out", type=Path, required=True, help="directory for the tables and the picture")
    parser.add_argument("--fill", type=Path, help="page whose tables are renewed")
    parser.add_argument("--only", nargs="+", default=list(PAGES), choices=list(PAGES), metavar="TABLE")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), choices=SIZES, help="cluster sizes")
    parser.add_argument("--nodes", type=int, default=Assumptions().nodes, help="nodes of the large cluster")
    parser.add_argument("--shards", type=int, default=Assumptions().shards)
    parser.add_argument("--racks", type=int, default=Assumptions().racks)
    parser.add_argument("--agents", type=int, default=Assumptions().agents)
    parser.add_argument("--written", type=int, default=120, help="agents written to measure the footprint")
    options = parser.parse_args(arguments)
    console = Console()
    assumed = Assumptions(nodes=options.nodes, shards=options.shards, racks=options.racks, agents=options.agents)
    measured = Measured(assumed, options.sizes, options.written)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        title, build = PAGES[name]
        page = build(measured)
        show(title, page, console)
        (options.out / f"scaling-{name}.md").write_text(markdown(page))
        if options.fill is not None:
            options.fill.write_text(fill(options.fill.read_text(), name, markdown(page)))
    if measured.maps and measured.loads:
        plot(measured.maps, measured.loads, options.out / "scaling.png")


if __name__ == "__main__":
    main()
