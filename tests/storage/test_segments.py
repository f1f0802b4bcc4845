"""Segments give back the rows they were made of, and name what is damaged."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.model.errors import CorruptionError
from dakera_cluster.storage import segments
from dakera_cluster.storage.segments import Manifest, Segment

ROWS = st.dictionaries(st.binary(max_size=12), st.binary(max_size=60), max_size=60)
META = {"shard": 7, "to": "0001"}


def many_rows(count: int = 400, size: int = 200) -> list[tuple[bytes, bytes]]:
    rng = random.Random(5)
    return [(b"key-%06d" % n, rng.randbytes(size)) for n in range(count)]


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, block_bytes=st.sampled_from([1, 40, 300, 1 << 20]), probe=st.binary(max_size=12), end=st.binary())
def test_a_segment_is_the_sorted_map_it_was_made_of(
    rows: dict[bytes, bytes], block_bytes: int, probe: bytes, end: bytes
) -> None:
    ordered = sorted(rows.items())
    segment = Segment("s", segments.encode(ordered, meta=META, block_bytes=block_bytes))
    segment.verify()
    assert list(segment) == ordered and len(segment) == len(rows) and segment.meta == META
    assert {key: segment.get(key) for key in rows} == rows
    assert segment.get(probe) == rows.get(probe)
    assert list(segment.scan(probe, end)) == [row for row in ordered if probe <= row[0] < end]
    assert list(segment.scan(probe)) == [row for row in ordered if probe <= row[0]]


def test_the_same_rows_make_the_same_bytes() -> None:
    assert segments.encode(many_rows(), meta=META) == segments.encode(iter(many_rows()), meta=META)


@pytest.mark.parametrize("keys", [[b"b", b"a"], [b"a", b"a"], [b"", b""]])
def test_rows_out_of_order_are_refused(keys: list[bytes]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        segments.encode([(key, b"") for key in keys], meta={})


def test_rows_are_compressed() -> None:
    rows = [(b"%06d" % n, b"the same words again and again" * 5) for n in range(2000)]
    assert len(segments.encode(rows, meta={})) < 30_000


def check_everything(data: bytes) -> list[tuple[bytes, bytes]]:
    segment = Segment("s", data)
    segment.verify()
    return list(segment)


def test_every_flipped_bit_is_found() -> None:
    good = segments.encode([(b"%02d" % n, b"value %d" % n) for n in range(20)], meta=META, block_bytes=100)
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 0x04
        with pytest.raises(CorruptionError):
            check_everything(bytes(damaged))


@pytest.mark.parametrize("cut", [0, 1, 8, 50, -1, -40, -80, -200])
def test_cut_segments_are_found(cut: int) -> None:
    good = segments.encode(many_rows(50), meta=META)
    with pytest.raises(CorruptionError):
        check_everything(good[:cut])
    with pytest.raises(CorruptionError):
        check_everything(good + good[:3])


def test_a_damaged_block_is_named_and_costs_only_itself() -> None:
    rows = many_rows()
    data = bytearray(segments.encode(rows, meta={}, block_bytes=10_000))
    segment = Segment("shard-7/0042", bytes(data))
    assert segment.blocks > 5
    data[segment._index.blocks[3].offset + 30] ^= 0xFF
    damaged = Segment("shard-7/0042", bytes(data))
    with pytest.raises(CorruptionError, match="shard-7/0042, block 3") as caught:
        damaged.verify()
    assert caught.value.details == {"segment": "shard-7/0042", "block": 3}
    with pytest.raises(CorruptionError, match="block 3"):
        list(damaged)
    kept = [row for number in range(damaged.blocks) if number != 3 for row in damaged.block(number)]
    assert kept == [row for row in rows if row not in segment.block(3)]


def test_a_block_does_not_decompress_beyond_what_the_index_promises() -> None:
    """A bomb needs a forged index: its block is refused before it grows."""
    data = segments.encode([(b"k", bytes(1_000_000))], meta={})
    segment = Segment("s", data)
    block = msgspec.structs.replace(segment._index.blocks[0], raw_length=1000)
    segment._index = msgspec.structs.replace(segment._index, blocks=(block,))
    with pytest.raises(CorruptionError, match="block 0"):
        segment.block(0)


def test_manifests_come_back_and_are_checked() -> None:
    data = segments.encode(many_rows(30), meta=META)
    entry = Segment("s", data).entry("segments/00/1")
    assert (entry.rows, entry.size_bytes, entry.first_key, entry.last_key) == (
        30,
        len(data),
        b"key-000000",
        b"key-000029",
    )
    assert entry.digest == segments.object_digest(data) and entry.meta == META
    manifest = Manifest(name="shard-7", sequence=3, segments=(entry,), meta={"epoch": 2})
    encoded = segments.encode_manifest(manifest)
    assert segments.decode_manifest("m", encoded) == manifest
    for position in range(len(encoded)):
        damaged = bytearray(encoded)
        damaged[position] ^= 0x01
        with pytest.raises(CorruptionError, match="manifest m"):
            segments.decode_manifest("m", bytes(damaged))
    with pytest.raises(CorruptionError):
        segments.decode_manifest("m", encoded[:-1])
    with pytest.raises(CorruptionError):
        segments.decode_manifest("m", b"")


def test_an_empty_segment_has_an_entry() -> None:
    segment = Segment("s", segments.encode([], meta={}))
    assert list(segment) == [] and segment.get(b"") is None
    assert segment.entry("k").rows == 0
