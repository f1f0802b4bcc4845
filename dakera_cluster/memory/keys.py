"""API keys in the catalog: made, shown once, checked from memory, revoked everywhere within seconds.

Each key is one object, ``catalog/keys/<key_id>``, written by compare-and-swap; it holds a SHA-256 digest of the secret and
never the secret. Every node keeps all records in memory and re-reads what changed every ``refresh_s``: authentication
never waits for the bucket, except for a key this node has not seen yet, and such look-ups are bounded, so that guessing
keys cannot load the bucket. A key made or revoked here counts here at once, elsewhere after at most one refresh.

Usage is counted per node, in ``catalog/key-usage/<key_id>/<node>``, flushed now and then; an answer sums all nodes. A crash
loses at most ``flush_s`` of counts. Called by the API; started and closed by the composition root.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from dakera_cluster.memory.services import NewKey
from dakera_cluster.model.errors import (
    ApiKeyExpiredError,
    ApiKeyNotFoundError,
    BucketUnavailableError,
    InvalidApiKeyError,
    InvalidRequestError,
)
from dakera_cluster.model.keys import MAX_KEY_NAME_CHARS, KeyInfo, KeyUsage, Scope
from dakera_cluster.storage.objects import ABSENT, ObjectStore, PreconditionFailedError

log = logging.getLogger(__name__)

KEYS = "catalog/keys/"
USAGE = "catalog/key-usage/"
TEXT_PREFIX = "dk"
ID_BYTES = 8
SECRET_BYTES = 32
REFRESH_S = 5.0
FLUSH_S = 30.0
UNKNOWN_TTL_S = 5.0
MAX_UNKNOWN = 4_096
MAX_LOOKUPS = 4
MAX_USAGE_NAMESPACES = 256
CAS_ATTEMPTS = 8
_ID_ALPHABET = frozenset("0123456789abcdef")
_RATE_LIMITED = 429
_FIRST_FAILURE = 400


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the catalog holds of a key."""

    key_id: str
    name: str
    scope: int
    namespaces: list[str] | None
    created_at: int
    expires_at: int | None
    active: bool
    digest: str

    def info(self, last_used_at: int | None) -> KeyInfo:
        return KeyInfo(
            key_id=self.key_id,
            name=self.name,
            scope=Scope(self.scope),
            namespaces=self.namespaces,
            created_at=self.created_at,
            expires_at=self.expires_at,
            active=self.active,
            last_used_at=last_used_at,
        )


_record = msgspec.json.Decoder(KeyRecord)
_usage = msgspec.json.Decoder(KeyUsage)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _valid_id(key_id: str) -> bool:
    return len(key_id) == 2 * ID_BYTES and _ID_ALPHABET.issuperset(key_id)


class Keys:
    """The `KeyService` of a node."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        node: str,
        clock: Callable[[], float],
        refresh_s: float = REFRESH_S,
        flush_s: float = FLUSH_S,
    ) -> None:
        self._store = store
        self._node = node
        self._clock = clock
        self._refresh_s = refresh_s
        self._flush_s = flush_s
        self._records: dict[str, KeyRecord] = {}
        self._etags: dict[str, str] = {}
        self._infos: dict[str, KeyInfo] = {}
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._lookups = 0
        self._counted: dict[str, KeyUsage] = {}
        self._flushed: dict[str, KeyUsage] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read all keys, then keep them fresh. A bucket that does not answer leaves the node with the keys it learns
        later: root-key callers are not affected."""
        with contextlib.suppress(BucketUnavailableError):
            await self.refresh()
        self._tasks = [
            asyncio.create_task(self._every(self._refresh_s, self.refresh), name="keys-refresh"),
            asyncio.create_task(self._every(self._flush_s, self.flush), name="keys-flush"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        with contextlib.suppress(BucketUnavailableError):
            await self.flush()

    async def _every(self, interval_s: float, work: Callable[[], object]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await work()  # type: ignore[misc]
            except BucketUnavailableError as error:
                log.warning("keys: %s", error)
            except Exception:
                log.exception("keys: background work failed")

    async def refresh(self) -> None:
        """Read what changed in the catalog since the last time."""
        listed: dict[str, str] = {}
        after = ""
        while page := await self._store.list(KEYS, after=after):
            listed.update((entry.key.removeprefix(KEYS), entry.etag) for entry in page)
            after = page[-1].key
        for key_id in [known for known in self._records if known not in listed]:
            self._forget(key_id)
        for key_id, etag in listed.items():
            if self._etags.get(key_id) != etag:
                await self._load(key_id)

    async def _load(self, key_id: str) -> KeyRecord | None:
        before = self._etags.get(key_id)
        found = await self._store.get(KEYS + key_id)
        if self._etags.get(key_id) != before:
            return self._records.get(key_id)  # changed here while the read was on its way: that is newer
        if found is None:
            self._forget(key_id)
            return None
        record = _record.decode(found.data)
        self._keep(record, found.etag)
        return record

    def _keep(self, record: KeyRecord, etag: str) -> None:
        self._records[record.key_id] = record
        self._infos[record.key_id] = record.info(None)
        self._etags[record.key_id] = etag
        self._unknown.pop(record.key_id, None)

    def _forget(self, key_id: str) -> None:
        self._records.pop(key_id, None)
        self._infos.pop(key_id, None)
        self._etags.pop(key_id, None)

    # -- checking -----------------------------------------------------------------------------------------------------

    @property
    def any_keys(self) -> bool:
        return bool(self._records)

    async def authenticate(self, text: str) -> KeyInfo:
        """The live key with this text. Raises InvalidApiKeyError, ApiKeyExpiredError, BucketUnavailableError."""
        prefix, _, rest = text.partition("_")
        key_id, _, secret = rest.partition("_")
        if prefix != TEXT_PREFIX or not _valid_id(key_id):
            raise InvalidApiKeyError("the API key is not known")
        record = self._records.get(key_id)
        if record is None:
            record = await self._look_up(key_id)
        known = record.digest if record is not None else ""
        if not hmac.compare_digest(_digest(secret), known) or record is None:
            raise InvalidApiKeyError("the API key is not known")
        if not record.active:
            raise InvalidApiKeyError("the API key is deactivated")
        if record.expires_at is not None and self._clock() >= record.expires_at:
            raise ApiKeyExpiredError("the API key has expired")
        return self._infos[key_id]

    async def _look_up(self, key_id: str) -> KeyRecord | None:
        """Ask the catalog for a key that may be newer than the last refresh."""
        now = self._clock()
        until = self._unknown.get(key_id)
        if (until is not None and now < until) or self._lookups >= MAX_LOOKUPS:
            return None
        self._lookups += 1
        try:
            record = await self._load(key_id)
        finally:
            self._lookups -= 1
        if record is None:
            self._unknown[key_id] = now + UNKNOWN_TTL_S
            while len(self._unknown) > MAX_UNKNOWN:
                self._unknown.popitem(last=False)
        return record

    # -- administration -----------------------------------------------------------------------------------------------

    async def create(self, name: str, scope: Scope, namespaces: list[str] | None, expires_at: int | None) -> NewKey:
        name = name.strip()
        if not 0 < len(name) <= MAX_KEY_NAME_CHARS:
            raise InvalidRequestError(f"must have 1 to {MAX_KEY_NAME_CHARS} characters, got {len(name)}", field="name")
        key_id = secrets.token_hex(ID_BYTES)
        secret = secrets.token_urlsafe(SECRET_BYTES)
        record = KeyRecord(
            key_id=key_id,
            name=name,
            scope=int(scope),
            namespaces=namespaces,
            created_at=int(self._clock()),
            expires_at=expires_at,
            active=True,
            digest=_digest(secret),
        )
        etag = await self._store.put_if(KEYS + key_id, msgspec.json.encode(record), etag=ABSENT)
        self._keep(record, etag)
        return NewKey(self._infos[key_id], f"{TEXT_PREFIX}_{key_id}_{secret}")

    async def list(self) -> list[KeyInfo]:
        """All keys, oldest first, as the catalog has them now."""
        await self.refresh()
        return sorted((self._seen(key_id) for key_id in self._records), key=lambda info: (info.created_at, info.key_id))

    async def get(self, key_id: str) -> KeyInfo:
        await self._current(key_id)
        return self._seen(key_id)

    def _seen(self, key_id: str) -> KeyInfo:
        counted = self._counted.get(key_id)
        flushed = self._flushed.get(key_id)
        times = [each.last_used_at for each in (counted, flushed) if each is not None and each.last_used_at is not None]
        return self._records[key_id].info(max(times, default=None))

    async def _current(self, key_id: str) -> KeyRecord:
        """The record as the catalog has it now. Raises ApiKeyNotFoundError."""
        record = await self._load(key_id) if _valid_id(key_id) else None
        if record is None:
            raise ApiKeyNotFoundError(f"no key {key_id[:64]}")
        return record

    async def delete(self, key_id: str) -> None:
        await self._current(key_id)
        await self._store.delete(KEYS + key_id)
        self._forget(key_id)
        self._counted.pop(key_id, None)
        self._flushed.pop(key_id, None)
        for entry in await self._store.list(f"{USAGE}{key_id}/"):
            await self._store.delete(entry.key)

    async def deactivate(self, key_id: str) -> KeyInfo:
        await self._change(key_id, lambda record: msgspec.structs.replace(record, active=False))
        return self._seen(key_id)

    async def rotate(self, key_id: str) -> NewKey:
        """A new secret for the same key; the old text stops working."""
        secret = secrets.token_urlsafe(SECRET_BYTES)
        await self._change(key_id, lambda record: msgspec.structs.replace(record, digest=_digest(secret)))
        return NewKey(self._seen(key_id), f"{TEXT_PREFIX}_{key_id}_{secret}")

    async def _change(self, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> None:
        for attempt in range(CAS_ATTEMPTS):
            changed = change(await self._current(key_id))
            try:
                etag = await self._store.put_if(KEYS + key_id, msgspec.json.encode(changed), etag=self._etags[key_id])
            except PreconditionFailedError:
                if attempt == CAS_ATTEMPTS - 1:
                    raise
            else:
                self._keep(changed, etag)
                return

    # -- usage --------------------------------------------------------------------------------------------------------

    def note(
        self, key_id: str, *, route: str, namespace: str | None, status: int, sent_bytes: int, latency_ms: float
    ) -> None:
        if key_id not in self._records:
            return
        usage = self._counted.get(key_id)
        if usage is None:
            usage = self._counted[key_id] = KeyUsage()
        usage.total_requests += 1
        if status < _FIRST_FAILURE:
            usage.successful_requests += 1
        else:
            usage.failed_requests += 1
            if status == _RATE_LIMITED:
                usage.rate_limited_requests += 1
        usage.bytes_transferred += sent_bytes
        usage.total_latency_ms += latency_ms
        usage.last_used_at = int(self._clock())
        count, total_ms = usage.by_endpoint.get(route, (0, 0.0))
        usage.by_endpoint[route] = (count + 1, total_ms + latency_ms)
        if namespace is not None and (
            namespace in usage.by_namespace or len(usage.by_namespace) < MAX_USAGE_NAMESPACES
        ):
            usage.by_namespace[namespace] = usage.by_namespace.get(namespace, 0) + 1

    async def usage(self, key_id: str) -> KeyUsage:
        await self._current(key_id)
        await self._own_flushed(key_id)
        own = self._usage_key(key_id)
        parts = [self._flushed[key_id], *([self._counted[key_id]] if key_id in self._counted else [])]
        others = [entry.key for entry in await self._store.list(f"{USAGE}{key_id}/") if entry.key != own]
        found = [await self._store.get(key) for key in others]
        return sum_usage([*parts, *(_usage.decode(each.data) for each in found if each is not None)])

    async def flush(self) -> None:
        """Write this node's counts of every key used since the last flush."""
        for key_id in list(self._counted):
            base = await self._own_flushed(key_id)
            counted = self._counted.pop(key_id, None)
            if counted is None or key_id not in self._records:
                continue
            total = sum_usage([base, counted])
            try:
                await self._store.put(self._usage_key(key_id), msgspec.json.encode(total))
            except BaseException:
                newer = self._counted.get(key_id)
                self._counted[key_id] = sum_usage([counted, newer]) if newer is not None else counted
                raise
            self._flushed[key_id] = total

    def _usage_key(self, key_id: str) -> str:
        return f"{USAGE}{key_id}/{self._node}"

    async def _own_flushed(self, key_id: str) -> KeyUsage:
        """What this node wrote before, read once after a start."""
        base = self._flushed.get(key_id)
        if base is None:
            found = await self._store.get(self._usage_key(key_id))
            base = self._flushed[key_id] = _usage.decode(found.data) if found is not None else KeyUsage()
        return base


def sum_usage(parts: list[KeyUsage]) -> KeyUsage:
    """One usage of several, freshly made."""
    total = KeyUsage()
    for part in parts:
        total.total_requests += part.total_requests
        total.successful_requests += part.successful_requests
        total.failed_requests += part.failed_requests
        total.rate_limited_requests += part.rate_limited_requests
        total.bytes_transferred += part.bytes_transferred
        total.total_latency_ms += part.total_latency_ms
        if part.last_used_at is not None:
            total.last_used_at = max(part.last_used_at, total.last_used_at or 0)
        for route, (count, total_ms) in part.by_endpoint.items():
            before, before_ms = total.by_endpoint.get(route, (0, 0.0))
            total.by_endpoint[route] = (before + count, before_ms + total_ms)
        for namespace, count in part.by_namespace.items():
            total.by_namespace[namespace] = total.by_namespace.get(namespace, 0) + count
    return total
