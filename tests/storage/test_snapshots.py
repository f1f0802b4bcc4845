"""Snapshots come back as they were written, or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.model.errors import CorruptionError, StorageError
from dakera_cluster.storage import snapshots
from tests.support.powerloss import lose_power, make_powerloss_env

META = {"model": "m", "rows": 3, "watermark": [1, 2], "nested": {"x": None, "y": 1.5, "z": b"\x00"}}


def test_sections_and_meta_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "view.snap"
    sections = {"vectors": b"\x01" * 1000, "empty": b"", "names": bytearray(b"abc"), "view": memoryview(b"xyz")}
    size = snapshots.write(path, sections, META)
    assert path.stat().st_size == size
    meta, found = snapshots.read(path)
    assert meta == META
    assert {name: bytes(found[name]) for name in found} == {name: bytes(data) for name, data in sections.items()}
    assert list(found) == list(sections) and len(found) == 4
    with pytest.raises(KeyError):
        found["other"]
    found.close()
    found.close()


def test_arrays_can_be_laid_over_sections_without_a_copy(tmp_path: Path) -> None:
    vectors = np.arange(3 * 384, dtype=np.float32).reshape(3, 384)
    snapshots.write(tmp_path / "s", {"odd": b"12345", "vectors": vectors.data, "ids": np.arange(5).data}, {})
    _, found = snapshots.read(tmp_path / "s")
    array = np.frombuffer(found["vectors"], dtype=np.float32).reshape(3, 384)
    assert (array == vectors).all()
    assert array.ctypes.data % snapshots.ALIGNMENT == 0
    assert not array.flags.writeable
    found.close()
    assert array[2, 383] == vectors[2, 383], "a view in use outlives close"


def test_a_snapshot_may_be_empty(tmp_path: Path) -> None:
    snapshots.write(tmp_path / "s", {}, {})
    meta, found = snapshots.read(tmp_path / "s")
    assert meta == {} and dict(found) == {}


def test_no_file_is_no_corruption(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        snapshots.read(tmp_path / "none")


def test_views_of_a_replaced_snapshot_stay_readable(tmp_path: Path) -> None:
    path = tmp_path / "s"
    snapshots.write(path, {"a": b"old" * 5000}, {"n": 1})
    _, old = snapshots.read(path)
    snapshots.write(path, {"a": b"new"}, {"n": 2})
    assert bytes(old["a"]) == b"old" * 5000
    meta, new = snapshots.read(path)
    assert meta == {"n": 2} and bytes(new["a"]) == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def read_all(path: Path) -> tuple[dict[str, object], dict[str, bytes]]:
    meta, found = snapshots.read(path)
    return meta, {name: bytes(data) for name, data in found.items()}


def test_every_flipped_bit_outside_the_padding_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s"
    snapshots.write(path, {"a": b"alpha" * 20, "b": b"beta"}, META)
    good, content = path.read_bytes(), read_all(path)
    undetected = []
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            assert read_all(path) == content
            undetected.append(position)
        except CorruptionError:
            pass
    assert all(good[position] == 0 for position in undetected), "only padding may be damaged unseen"
    assert len(undetected) < 4 * snapshots.ALIGNMENT


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10_000), extra=st.binary(max_size=5))
def test_cut_or_grown_files_are_found(tmp_path_factory: pytest.TempPathFactory, cut: int, extra: bytes) -> None:
    path = tmp_path_factory.mktemp("cut") / "s"
    size = snapshots.write(path, {"a": b"alpha" * 20, "b": b"beta"}, META)
    content = path.read_bytes()
    damaged = content[: cut % size] + extra
    if damaged == content:
        return
    path.write_bytes(damaged)
    with pytest.raises(CorruptionError):
        read_all(path)


def test_damage_in_one_section_leaves_the_others_readable(tmp_path: Path) -> None:
    path = tmp_path / "s"
    snapshots.write(path, {"a": b"alpha" * 20, "b": b"betabeta"}, {})
    path.write_bytes(path.read_bytes().replace(b"betabeta", b"betabetb"))
    _, found = snapshots.read(path)
    assert bytes(found["a"]) == b"alpha" * 20
    with pytest.raises(CorruptionError, match="'b'"):
        found["b"]


def test_a_disk_that_refuses_is_a_storage_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        snapshots.write(tmp_path / "file" / "s", {}, {})


def test_sweep_removes_what_a_crashed_writer_left(tmp_path: Path) -> None:
    snapshots.write(tmp_path / "s", {}, {})
    (tmp_path / f"s.1234{snapshots.TEMPORARY_SUFFIX}").write_bytes(b"half")
    snapshots.sweep(tmp_path)
    snapshots.sweep(tmp_path / "not-there")
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


REPLACE_FOR_EVER = """
import sys
from dakera_cluster.storage import snapshots
n = 0
while True:
    n += 1
    snapshots.write(sys.argv[1], {"a": b"%d." % n * 3000}, {"n": n})
    print(n, flush=True)
"""


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_power_loss_leaves_the_last_acknowledged_snapshot_or_the_one_after(tmp_path: Path, seed: int | None) -> None:
    path = tmp_path / "data" / "s"
    env = make_powerloss_env(tmp_path / "data", sync_delay_ms=1)
    command = [sys.executable, "-c", REPLACE_FOR_EVER, str(path)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as child:
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(5 + (seed or 0))]
        child.kill()
        told += [int(line) for line in child.stdout.readlines() if line.endswith(b"\n")]
    lose_power(tmp_path / "data", seed=seed)
    meta, found = snapshots.read(path)
    assert meta["n"] in (told[-1], told[-1] + 1)
    assert bytes(found["a"]) == b"%d." % meta["n"] * 3000


def test_a_section_in_parts_reads_back_as_one(tmp_path: Path) -> None:
    sections = {"parts": [b"one", b"", memoryview(np.arange(5)), bytearray(b"two")], "none": [], "whole": b"x"}
    snapshots.write(tmp_path / "s", sections, {})
    _, found = snapshots.read(tmp_path / "s")
    assert bytes(found["parts"]) == b"one" + np.arange(5).tobytes() + b"two"
    assert (bytes(found["none"]), bytes(found["whole"])) == (b"", b"x")


def test_a_staged_snapshot_is_seen_when_it_is_published_and_holds_what_was_staged(tmp_path: Path) -> None:
    path, array = tmp_path / "s", np.zeros(4, dtype=np.uint8)
    staged = snapshots.stage(path, {"a": array.data}, {})
    array[:] = 9
    assert not path.exists()
    staged.publish()
    assert bytes(snapshots.read(path)[1]["a"]) == bytes(4)
    snapshots.stage(path, {"a": array.data}, {}).discard()
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"] and bytes(snapshots.read(path)[1]["a"]) == bytes(4)
