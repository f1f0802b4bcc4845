"""The tables of the scaling page: small clusters, the real code, and the page itself."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from dakera_cluster.cluster.catalog import Catalog, NamespaceRecord
from dakera_cluster.protocols.rebalance import RebalanceConfig, birth
from dakera_cluster.storage.memory_objects import MemoryObjectStore
from dakera_cluster.storage.objects import ObjectInfo
from ops.scaling import footprint, placing, traffic
from ops.scaling.assumptions import Assumptions
from ops.scaling.scanning import scan_s
from ops.scaling_tables import PAGES, Page, fill, main, markdown

ROOT = Path(__file__).resolve().parents[2]


class Counting(MemoryObjectStore):
    lists = 0

    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> tuple[ObjectInfo, ...]:
        self.lists += 1
        return tuple(await super().list(prefix, after=after, limit=limit))


def test_a_rack_that_leaves_is_carried_out_with_the_copies_the_placement_said() -> None:
    live = placing.cluster(20, 5)
    made = birth("c", 1, live, 120, 3)
    rest = {node: said for node, said in live.items() if said.zone != "rack-02"}
    said = placing.shift("a rack leaves", made, rest)
    done, final = placing.carry_out("a rack leaves", made, rest, RebalanceConfig(moves_per_node=2, moves_total=8))
    assert said.copies == done.copies == said.ideal == 72
    assert done.most_joint == 8
    assert done.rounds >= 9
    assert done.turns <= 2 * done.rounds
    assert {node for state in final.shards for node in state.write_set} == set(rest)


def test_a_join_moves_its_share() -> None:
    live = placing.cluster(9)
    made = birth("c", 1, live, 120, 3)
    said = placing.shift("a node joins", made, live | placing.cluster(1, first=9))
    assert said.ideal == 36.0
    assert said.copies == 36
    assert said.share == pytest.approx(0.1)


def test_what_is_placed_is_more_even_than_the_ring() -> None:
    found = placing.load(10, 0, 200, 3)
    assert found.most - found.least <= 1
    assert found.ring_most - found.ring_least > 5


def test_deltas_stay_small_while_the_map_grows() -> None:
    small, large = placing.map_cost(6, 32, 3), placing.map_cost(6, 512, 3)
    assert large.map_bytes > 3 * small.map_bytes
    assert large.delta_bytes < 2 * small.delta_bytes < large.map_bytes
    assert large.resident_bytes > large.map_bytes


def test_partners_are_those_that_hold_a_shard_too() -> None:
    found = placing.peers_of(birth("c", 1, placing.cluster(3), 30, 3))
    assert (found.held, found.peers, found.most_peers, found.first) == (30.0, 2.0, 2, 10.0)


def test_nodes_are_less_uneven_than_shards() -> None:
    made = birth("c", 1, placing.cluster(4), 64, 3)
    found = placing.skew(made, 20_000, 1.5)
    assert found.node_least < 1.0 < found.node_most < found.shard_most


@pytest.mark.parametrize("namespaces", [0, 3, 1000, 1001])
async def test_a_refresh_lists_as_often_as_is_charged_for(namespaces: int) -> None:
    store = Counting()
    writer = Catalog(store, lambda: 0)
    for number in range(namespaces):
        await writer.create(NamespaceRecord(name=f"n{number}"))
    store.lists = 0
    await Catalog(store, lambda: 0).refresh()
    assert store.lists == traffic.list_calls(namespaces)


def test_requests_to_the_bucket_grow_as_the_intervals_say() -> None:
    a = Assumptions()
    small, large = (traffic.bucket(a, nodes, 64, 1_000, 2_000.0, 2_500.0) for nodes in (10, 1_010))
    by_what = {one.what: (one, two) for one, two in zip(small, large, strict=True)}
    look = by_what["lease: everybody else looks"]
    assert look[1].gets_per_s - look[0].gets_per_s == 1_000.0
    lists = by_what["catalog: everybody lists 10,000 namespaces"]
    assert (lists[0].puts_per_s, lists[1].puts_per_s) == (22.0, 2_222.0)
    manifests = by_what["segments: manifests, which name every delta"]
    assert manifests[0] == manifests[1]
    assert manifests[0].puts_per_s == pytest.approx(64 / 30.0)
    quiet = msgspec.structs.replace(a, daily_share=0.0)
    assert traffic.bucket(quiet, 10, 64, 1_000, 2_000.0, 2_500.0)[-2].puts_per_s == 0.0


def test_figures_of_membership_are_those_of_its_page() -> None:
    assert traffic.swim(3).known_p50_s == 2.77
    assert traffic.swim(1000).bytes_per_s == 303.0
    with pytest.raises(KeyError):
        traffic.swim(7)


def test_a_memory_is_measured_on_disk_in_a_segment_and_in_a_view(tmp_path: Path) -> None:
    found = footprint.measure(tmp_path / "rows", 4, 10)
    vector_bytes = 4 * footprint.DIMENSION
    assert found.memories == 40
    assert vector_bytes < found.segment < found.disk
    assert vector_bytes < found.body < 10_000
    assert found.view > vector_bytes
    assert found.load_ms > 0.0


def test_a_look_at_more_shards_takes_longer() -> None:
    assert scan_s(20, 4_000, 3) > 3 * scan_s(20, 40, 3)


def test_tables_are_put_between_their_markers() -> None:
    page = "a\n<!-- map: by ops.scaling_tables -->\nold\n<!-- end of map -->\nb\n"
    table = markdown(Page(["x", "y"], [["1", "2"]]))
    assert table == "| x | y |\n|---|--:|\n| 1 | 2 |\n"
    filled = fill(page, "map", table)
    assert table in filled
    assert "old" not in filled
    assert fill(filled, "map", table) == filled
    with pytest.raises(ValueError, match="markers of loads"):
        fill(page, "loads", table)


def test_the_page_has_a_place_for_every_table() -> None:
    text = (ROOT / "ops" / "SCALING.md").read_text()
    for name in PAGES:
        assert "| " in fill(text, name, "| x |")
        assert text.split(f"<!-- {name}: by ops.scaling_tables -->")[1].split("<!-- end of")[0].count("\n|") > 3


def test_all_tables_of_a_small_cluster_are_written(tmp_path: Path) -> None:
    small = [
        "--nodes",
        "10",
        "--shards",
        "64",
        "--racks",
        "5",
        "--agents",
        "20000",
        "--sizes",
        "3",
        "10",
        "--written",
        "3",
    ]
    main(["--out", str(tmp_path), *small])
    assert {path.name for path in tmp_path.iterdir()} == {"scaling.png", *(f"scaling-{name}.md" for name in PAGES)}
    assert "| all |" in (tmp_path / "scaling-bucket.md").read_text()
