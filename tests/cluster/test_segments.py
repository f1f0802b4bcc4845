"""The bucket holds every acknowledged row up to the last segment, and gives it back to an empty disk."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.local import be_alone
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.segments import PREFIX, Segments, SegmentSettings
from dakera_cluster.model.errors import BucketUnavailableError, CorruptionError
from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.rows import Kind, Row, decode_document, delete_document, put_document
from dakera_cluster.shard import keys
from dakera_cluster.shard.host import Host, HostSettings
from dakera_cluster.shard.view import ViewSettings
from dakera_cluster.storage.memory_objects import MemoryObjectStore
from dakera_cluster.storage.objects import ObjectStore
from dakera_cluster.storage.rows import RowStore

SHARD = ShardId(1)


class Machine:
    """A node's disk and host, without a network."""

    def __init__(self, path: Path, name: str, objects: ObjectStore, settings: SegmentSettings) -> None:
        self.node, self.disk = NodeId(name), sum(name.encode())
        self.store = RowStore.open(path / name, keys.FAMILIES)
        self.host = Host(self.store, lambda _: ViewSettings(), HostSettings(), lambda: int(time.time() * 1000))
        self.maps = Maps(self.store, self.node, 4)
        self.holdings = Holdings(self.store, self.node)
        self.segments = Segments(
            objects, self.host, self.maps, self.holdings, self.node, self.disk, lambda _: False, settings
        )

    async def start(self) -> Machine:
        await be_alone(self.maps, self.holdings, "c", self.node, self.disk, 1)
        return self

    async def write(self, number: int, text: str | None = None) -> None:
        stamp = Stamp((1_000 + number) << 16, 1)
        body = put_document(stamp, {"text": text or f"row {number}"})
        await self.host.merge(SHARD, [Row("ns", Kind.DOCUMENT, f"id{number:05d}", body)])

    async def delete(self, number: int) -> None:
        body = delete_document(Stamp(1_000_000 << 16, 1))
        await self.host.merge(SHARD, [Row("ns", Kind.DOCUMENT, f"id{number:05d}", body)])

    def rows(self) -> dict[bytes, bytes]:
        return dict(self.host.replica(SHARD).page(b"", most_rows=100_000, most_bytes=1 << 30))

    async def close(self) -> None:
        await self.host.close()
        self.store.close()


class Machines:
    """Machines of one test, on one bucket."""

    def __init__(self, path: Path) -> None:
        self.objects = MemoryObjectStore()
        self._path = path
        self._all: list[Machine] = []

    async def add(self, name: str, settings: SegmentSettings | None = None) -> Machine:
        machine = await Machine(self._path, name, self.objects, settings or SegmentSettings()).start()
        self._all.append(machine)
        return machine

    async def close(self) -> None:
        for machine in self._all:
            await machine.close()


@pytest.fixture
async def machines(tmp_path: Path) -> AsyncIterator[Machines]:
    made = Machines(tmp_path)
    yield made
    await made.close()


async def test_an_empty_disk_gets_back_every_row_and_every_delete(machines: Machines) -> None:
    one, two = await machines.add("one"), await machines.add("two")
    for number in range(300):
        await one.write(number)
    await one.segments.upload_all()
    for number in range(300, 400):
        await one.write(number)
    await one.write(5, "edited")
    for number in range(10):
        await one.delete(number)
    await one.segments.upload_all()
    await two.segments.restore(SHARD)
    assert two.rows() == one.rows()
    assert two.host.replica(SHARD).root() == one.host.replica(SHARD).root()
    assert not decode_document(two.rows()[keys.local_key("ns", Kind.DOCUMENT, "id00005")]).alive


async def test_an_upload_ships_only_what_changed(machines: Machines) -> None:
    one = await machines.add("one")
    for number in range(200):
        await one.write(number)
    await one.segments.upload_all()
    before = one.segments.stats.uploaded_rows
    await one.write(7, "edited")
    await one.segments.upload_all()
    assert one.segments.stats.uploaded_rows == before + 1
    await one.segments.upload_all()
    assert one.segments.stats.uploaded_rows == before + 1


async def test_many_deltas_are_compacted_into_a_base_and_deleted(machines: Machines) -> None:
    one, two = await machines.add("one", SegmentSettings(min_deltas=3)), await machines.add("two")
    for number in range(12):
        await one.write(number)
        await one.segments.upload_all()
    segments = [info.key for info in await machines.objects.list(PREFIX) if info.key.endswith(".seg")]
    assert len(segments) <= 5
    await two.segments.restore(SHARD)
    assert two.rows() == one.rows()


async def test_deltas_are_bounded_in_number_however_little_they_weigh(machines: Machines) -> None:
    one = await machines.add("one", SegmentSettings(min_deltas=2, max_deltas=5))
    for number in range(200):
        await one.write(number, random.Random(number).randbytes(200).hex())
    await one.segments.upload_all()
    most = 0
    for number in range(1_000, 1_012):
        await one.write(number, "small")
        await one.segments.upload_all()
        most = max(most, sum(info.key.endswith(".seg") for info in await machines.objects.list(PREFIX)))
    assert most == 1 + 5
    two = await machines.add("two")
    await two.segments.restore(SHARD)
    assert two.rows() == one.rows()


async def test_another_uploader_starts_with_a_base_of_its_own(machines: Machines) -> None:
    one, two, three = await machines.add("one"), await machines.add("two"), await machines.add("three")
    for number in range(50):
        await one.write(number)
        await two.write(number)
    await one.segments.upload_all()
    await two.write(99, "only here")
    await two.segments.upload_all()
    await three.segments.restore(SHARD)
    assert three.rows() == two.rows()


async def test_two_uploaders_at_once_leave_a_manifest_that_restores(machines: Machines) -> None:
    one, two, three = await machines.add("one"), await machines.add("two"), await machines.add("three")
    for number in range(20):
        await one.write(number)
        await two.write(number)
    await one.segments.upload_all()
    await two.segments.upload_all()
    await one.write(50)
    await two.write(50)
    await one.segments.upload_all()
    await one.segments.upload_all()
    await three.segments.restore(SHARD)
    assert three.rows() == one.rows()


async def test_a_damaged_segment_is_refused_by_name(machines: Machines) -> None:
    one, two = await machines.add("one"), await machines.add("two")
    await one.write(1)
    await one.segments.upload_all()
    key = next(info.key for info in await machines.objects.list(PREFIX) if info.key.endswith(".seg"))
    found = await machines.objects.get(key)
    assert found is not None
    await machines.objects.put(key, found.data[:50] + b"\xff" + found.data[51:])
    with pytest.raises(CorruptionError, match="seg"):
        await two.segments.restore(SHARD)


async def test_without_the_bucket_the_lag_grows_and_the_upload_comes_later(machines: Machines) -> None:
    one, two = await machines.add("one"), await machines.add("two")
    await one.write(1)
    whole = machines.objects.put

    async def refuse(key: str, data: bytes) -> str:
        raise BucketUnavailableError("gone")

    machines.objects.put = refuse  # type: ignore[method-assign]
    with pytest.raises(BucketUnavailableError):
        await one.segments.upload_all()
    with pytest.raises(BucketUnavailableError):
        await one.segments.upload_all()
    assert one.segments.stats.lag_s > 0
    machines.objects.put = whole  # type: ignore[method-assign]
    await one.segments.upload_all()
    assert one.segments.stats.lag_s == 0
    await two.segments.restore(SHARD)
    assert two.rows() == one.rows()
