"""The injected faults are those of the contract, and compare-and-swap survives them."""

from __future__ import annotations

import asyncio

import pytest

from dakera_cluster.model.errors import BucketUnavailableError
from dakera_cluster.storage.memory_objects import MemoryObjectStore
from dakera_cluster.storage.objects import ABSENT, AmbiguousWriteError, PreconditionFailedError
from tests.support.counter import increment
from tests.support.faulty_objects import FaultPlan, FaultyObjectStore


async def test_an_outage_refuses_everything_and_ends() -> None:
    store = FaultyObjectStore(MemoryObjectStore(), 1, FaultPlan(outage=True))
    for use in (
        store.get("k"),
        store.put("k", b""),
        store.put_if("k", b"", etag=ABSENT),
        store.list(""),
        store.probe(),
    ):
        with pytest.raises(BucketUnavailableError) as caught:
            await use
        assert not caught.value.ambiguous
    store.plan.outage = False
    assert await store.get("k") is None
    await store.probe()
    assert store.met == {"outage": 5}


async def test_a_lost_reply_is_written_and_a_lost_request_is_not() -> None:
    inner = MemoryObjectStore()
    with pytest.raises(AmbiguousWriteError):
        await FaultyObjectStore(inner, 1, FaultPlan(lost_reply=1.0)).put_if("a", b"1", etag=ABSENT)
    with pytest.raises(AmbiguousWriteError):
        await FaultyObjectStore(inner, 1, FaultPlan(lost_request=1.0)).put_if("b", b"1", etag=ABSENT)
    assert [info.key for info in await inner.list("")] == ["a"]
    with pytest.raises(PreconditionFailedError):
        await FaultyObjectStore(inner, 1, FaultPlan(lost_reply=1.0)).put_if("a", b"2", etag=ABSENT)


async def faults_met(seed: int) -> list[str]:
    store = FaultyObjectStore(MemoryObjectStore(), seed, FaultPlan(unavailable=0.2, lost_reply=0.2, lost_request=0.2))
    out = []
    for n in range(60):
        try:
            await store.put_if(f"k{n}", b"", etag=ABSENT)
            out.append("done")
        except BucketUnavailableError as error:
            out.append(error.message)
    return out


async def test_the_same_seed_meets_the_same_faults() -> None:
    assert await faults_met(3) == await faults_met(3) != await faults_met(4)
    assert len(set(await faults_met(3))) == 4


@pytest.mark.parametrize("seed", range(3))
async def test_racing_increments_lose_no_update_over_a_bad_bucket(seed: int) -> None:
    plan = FaultPlan(lost_reply=0.15, lost_request=0.15, delay_ms=(0.0, 0.5))
    store = FaultyObjectStore(MemoryObjectStore(), seed, plan)

    class PatientReads(FaultyObjectStore):
        """Retries reads: the counter under test settles doubts by reading."""

        async def get(self, key: str):  # type: ignore[no-untyped-def]
            while True:
                try:
                    return await store.get(key)
                except BucketUnavailableError:
                    await asyncio.sleep(0)

    patient = PatientReads(store, seed)
    told = await asyncio.gather(*(increment(patient, "n", 15, f"w{n}") for n in range(4)))
    assert sorted(value for mine in told for value in mine) == list(range(1, 61))
    assert store.met["lost_reply"] > 5 and store.met["lost_request"] > 5
