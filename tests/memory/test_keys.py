"""API keys: secrets are never stored, revocation reaches other nodes, usage is summed over nodes."""

from __future__ import annotations

import asyncio

import pytest

from dakera_cluster.memory.keys import KEYS, UNKNOWN_TTL_S, USAGE, Keys
from dakera_cluster.model.errors import (
    ApiKeyExpiredError,
    ApiKeyNotFoundError,
    BucketUnavailableError,
    InvalidApiKeyError,
    InvalidRequestError,
)
from dakera_cluster.model.keys import Scope
from dakera_cluster.storage.memory_objects import MemoryObjectStore
from dakera_cluster.storage.objects import Object


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class SlowStore(MemoryObjectStore):
    """Reads may be held back after they saw the object, as by a slow network."""

    def __init__(self) -> None:
        super().__init__()
        self.hold: asyncio.Event | None = None
        self.held = asyncio.Event()

    async def get(self, key: str) -> Object | None:
        found = await super().get(key)
        if (hold := self.hold) is not None:
            self.hold = None
            self.held.set()
            await hold.wait()
        return found


class CountingStore(MemoryObjectStore):
    """Counts reads, and fails them when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.down = False

    async def get(self, key: str) -> Object | None:
        self.reads += 1
        if self.down:
            raise BucketUnavailableError("down")
        return await super().get(key)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def keys(store: CountingStore, clock: Clock) -> Keys:
    return Keys(store, node="n1", clock=clock)


async def test_a_made_key_authenticates_and_its_secret_is_nowhere_in_the_store(
    keys: Keys, store: CountingStore
) -> None:
    made = await keys.create("ci", Scope.WRITE, ["a", "b"], None)
    info = await keys.authenticate(made.key)
    assert (info.key_id, info.scope, info.namespaces) == (made.info.key_id, Scope.WRITE, ["a", "b"])
    secret = made.key.split("_", 2)[2]
    found = await store.get(KEYS + info.key_id)
    assert found is not None
    assert secret.encode() not in found.data


@pytest.mark.parametrize(
    "text", ["", "dk_", "dk_0123456789abcdef_", "nonsense", "dk_../../../x_y", "dk_0123456789abcdef_wrong"]
)
async def test_text_that_is_no_key_is_refused(keys: Keys, text: str) -> None:
    with pytest.raises(InvalidApiKeyError):
        await keys.authenticate(text)


async def test_the_right_id_with_a_wrong_secret_is_refused(keys: Keys) -> None:
    made = await keys.create("ci", Scope.READ, None, None)
    with pytest.raises(InvalidApiKeyError):
        await keys.authenticate(made.key[:-1] + ("A" if made.key[-1] != "A" else "B"))


async def test_an_expired_key_says_so(keys: Keys, clock: Clock) -> None:
    made = await keys.create("ci", Scope.READ, None, int(clock.now) + 10)
    await keys.authenticate(made.key)
    clock.now += 10
    with pytest.raises(ApiKeyExpiredError):
        await keys.authenticate(made.key)


async def test_a_deactivated_key_is_refused_at_once(keys: Keys) -> None:
    made = await keys.create("ci", Scope.READ, None, None)
    assert (await keys.deactivate(made.info.key_id)).active is False
    with pytest.raises(InvalidApiKeyError, match="deactivated"):
        await keys.authenticate(made.key)


async def test_rotation_replaces_the_secret_and_keeps_the_key(keys: Keys) -> None:
    made = await keys.create("ci", Scope.ADMIN, ["a"], None)
    rotated = await keys.rotate(made.info.key_id)
    assert rotated.info.key_id == made.info.key_id
    assert (await keys.authenticate(rotated.key)).namespaces == ["a"]
    with pytest.raises(InvalidApiKeyError):
        await keys.authenticate(made.key)


async def test_a_key_made_on_one_node_works_on_another_before_its_refresh(
    keys: Keys, store: CountingStore, clock: Clock
) -> None:
    other = Keys(store, node="n2", clock=clock)
    await other.refresh()
    made = await keys.create("ci", Scope.READ, None, None)
    assert (await other.authenticate(made.key)).key_id == made.info.key_id


async def test_a_key_revoked_on_one_node_is_refused_on_another_after_its_refresh(
    keys: Keys, store: CountingStore, clock: Clock
) -> None:
    other = Keys(store, node="n2", clock=clock)
    deactivated = await keys.create("one", Scope.READ, None, None)
    deleted = await keys.create("two", Scope.READ, None, None)
    await other.refresh()
    await keys.deactivate(deactivated.info.key_id)
    await keys.delete(deleted.info.key_id)
    await other.refresh()
    for made in (deactivated, deleted):
        with pytest.raises(InvalidApiKeyError):
            await other.authenticate(made.key)


async def test_known_keys_authenticate_while_the_bucket_is_down(keys: Keys, store: CountingStore) -> None:
    made = await keys.create("ci", Scope.READ, None, None)
    store.down = True
    await keys.authenticate(made.key)
    with pytest.raises(BucketUnavailableError):
        await keys.authenticate("dk_0123456789abcdef_x")


async def test_guessing_an_unknown_key_asks_the_bucket_once(keys: Keys, store: CountingStore, clock: Clock) -> None:
    for _ in range(20):
        with pytest.raises(InvalidApiKeyError):
            await keys.authenticate("dk_0123456789abcdef_x")
    assert store.reads == 1
    clock.now += UNKNOWN_TTL_S
    with pytest.raises(InvalidApiKeyError):
        await keys.authenticate("dk_0123456789abcdef_x")
    assert store.reads == 2


async def test_racing_changes_are_both_kept(keys: Keys, store: CountingStore, clock: Clock) -> None:
    other = Keys(store, node="n2", clock=clock)
    made = await keys.create("ci", Scope.READ, None, None)
    await other.refresh()
    rotated = await other.rotate(made.info.key_id)
    info = await keys.deactivate(made.info.key_id)
    assert info.active is False
    with pytest.raises(InvalidApiKeyError, match="deactivated"):
        await keys.authenticate(rotated.key)


async def test_a_read_that_was_overtaken_does_not_undo_a_revocation(clock: Clock) -> None:
    store = SlowStore()
    keys = Keys(store, node="n1", clock=clock)
    made = await keys.create("ci", Scope.READ, None, None)
    store.hold = release = asyncio.Event()
    overtaken = asyncio.create_task(keys.get(made.info.key_id))
    await asyncio.wait_for(store.held.wait(), 5)
    await keys.deactivate(made.info.key_id)
    release.set()
    await overtaken
    with pytest.raises(InvalidApiKeyError, match="deactivated"):
        await keys.authenticate(made.key)


async def test_unknown_ids_and_bad_names_are_named(keys: Keys) -> None:
    for call in (keys.get, keys.delete, keys.deactivate, keys.rotate, keys.usage):
        with pytest.raises(ApiKeyNotFoundError):
            await call("0123456789abcdef")
        with pytest.raises(ApiKeyNotFoundError):
            await call("../escape")
    for name in ("", "   ", "x" * 129):
        with pytest.raises(InvalidRequestError, match="name"):
            await keys.create(name, Scope.READ, None, None)


async def test_usage_is_summed_over_nodes_and_survives_a_restart(
    keys: Keys, store: CountingStore, clock: Clock
) -> None:
    made = await keys.create("ci", Scope.READ, None, None)
    key_id = made.info.key_id
    other = Keys(store, node="n2", clock=clock)
    await other.refresh()
    for node in (keys, other):
        node.note(key_id, route="/a", namespace="n", status=200, sent_bytes=10, latency_ms=2.0)
        node.note(key_id, route="/a", namespace="n", status=429, sent_bytes=1, latency_ms=4.0)
        await node.flush()
    restarted = Keys(store, node="n1", clock=clock)
    await restarted.refresh()
    restarted.note(key_id, route="/b", namespace=None, status=500, sent_bytes=5, latency_ms=6.0)
    usage = await restarted.usage(key_id)
    assert (usage.total_requests, usage.successful_requests, usage.failed_requests) == (5, 2, 3)
    assert (usage.rate_limited_requests, usage.bytes_transferred) == (2, 27)
    assert usage.avg_latency_ms == pytest.approx(18 / 5)
    assert usage.by_endpoint == {"/a": (4, 12.0), "/b": (1, 6.0)}
    assert usage.by_namespace == {"n": 4}
    await restarted.flush()
    assert (await other.usage(key_id)).total_requests == 5


async def test_counts_of_a_failed_flush_are_not_lost(keys: Keys, store: CountingStore) -> None:
    made = await keys.create("ci", Scope.READ, None, None)
    key_id = made.info.key_id
    keys.note(key_id, route="/a", namespace=None, status=200, sent_bytes=1, latency_ms=1.0)
    store.down = True
    with pytest.raises(BucketUnavailableError):
        await keys.flush()
    store.down = False
    await keys.flush()
    assert (await keys.usage(key_id)).total_requests == 1


async def test_deleting_a_key_deletes_its_usage(keys: Keys, store: CountingStore) -> None:
    made = await keys.create("ci", Scope.READ, None, None)
    keys.note(made.info.key_id, route="/a", namespace=None, status=200, sent_bytes=1, latency_ms=1.0)
    await keys.flush()
    assert await store.list(USAGE)
    await keys.delete(made.info.key_id)
    assert not await store.list(USAGE)
    assert not keys.any_keys
