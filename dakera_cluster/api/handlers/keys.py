"""API keys: over all namespaces (`/admin/keys`, and `/v1/keys` of the older clients) and for one namespace.

A caller with scope admin over a namespace may make keys for that namespace (and for others that it may touch itself), up
to its own scope; it sees and removes only keys pinned to that namespace and to nothing it may not touch.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from dakera_cluster.api import bodies, shapes
from dakera_cluster.api.auth import require_namespace, require_scope
from dakera_cluster.api.route import Call
from dakera_cluster.model.errors import ApiKeyNotFoundError, InvalidRequestError
from dakera_cluster.model.ids import check_namespace
from dakera_cluster.model.keys import MAX_KEY_NAMESPACES, SCOPE_NAMES, KeyInfo, Scope

DAY_S = 86_400
MAX_DAYS = 36_500
DEFAULT_SCOPE = Scope.READ
DEFAULT_NAMESPACE_SCOPE = Scope.WRITE


def _scope(text: str, field: str) -> Scope:
    scope = SCOPE_NAMES.get(text)
    if scope is None:
        raise InvalidRequestError(f"must be one of {', '.join(SCOPE_NAMES)}, got {text[:64]!r}", field=field)
    return scope


def _expiry(call: Call, days: int | None, at: str | int | None) -> int | None:
    """Unix seconds. Days from now, or a time (ISO-8601, or Unix seconds)."""
    now = int(call.runtime.clock())
    if days is not None:
        if not 1 <= days <= MAX_DAYS:
            raise InvalidRequestError(f"must be between 1 and {MAX_DAYS}, got {days}", field="expires_in_days")
        return now + days * DAY_S
    if at is None:
        return None
    seconds = at if isinstance(at, int) else _unix(at)
    if seconds <= now:
        raise InvalidRequestError("must lie in the future", field="expires_at")
    return seconds


def _unix(text: str) -> int:
    """Unix seconds of an ISO-8601 time; without an offset it is UTC."""
    try:
        parsed = datetime.fromisoformat(text)
        return int((parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise InvalidRequestError(f"must be an ISO-8601 time, got {text[:64]!r}", field="expires_at") from None


def _namespaces(names: list[str] | None, field: str) -> list[str] | None:
    if not names:
        return None
    if len(names) > MAX_KEY_NAMESPACES:
        raise InvalidRequestError(f"must hold at most {MAX_KEY_NAMESPACES} names, got {len(names)}", field=field)
    return [check_namespace(name, f"{field}[{at}]") for at, name in enumerate(names)]


async def create(call: Call, body: bodies.KeyBody) -> dict[str, Any]:
    if body.scope is not None:
        scope = _scope(body.scope, "scope")
    else:
        asked = [_scope(text, f"permissions[{at}]") for at, text in enumerate(body.permissions or ())]
        scope = max(asked, default=DEFAULT_SCOPE)
    if call.runtime.auth.would_lock_out(scope, body.namespaces):
        raise InvalidRequestError(
            "the first key must be super_admin over all namespaces: without a root key, any other would lock you out",
            field="scope",
        )
    made = await call.services.keys.create(
        body.name,
        scope,
        _namespaces(body.namespaces, "namespaces"),
        _expiry(call, body.expires_in_days, body.expires_at),
    )
    return shapes.new_key(made)


async def list_object(call: Call, _: None) -> dict[str, Any]:
    found = await call.services.keys.list()
    return {"keys": [shapes.key_info(info) for info in found], "total": len(found)}


async def list_array(call: Call, _: None) -> list[dict[str, Any]]:
    return [shapes.key_info(info) for info in await call.services.keys.list()]


async def get(call: Call, _: None) -> dict[str, Any]:
    return shapes.key_info(await call.services.keys.get(call.path["key_id"]))


async def delete(call: Call, _: None) -> dict[str, Any]:
    key_id = call.path["key_id"]
    await call.services.keys.delete(key_id)
    return shapes.done(f"key {key_id} deleted")


async def deactivate(call: Call, _: None) -> dict[str, Any]:
    info = await call.services.keys.deactivate(call.path["key_id"])
    return {**shapes.key_info(info), **shapes.done(f"key {info.key_id} deactivated")}


async def rotate(call: Call, _: None) -> dict[str, Any]:
    return shapes.rotated_key(await call.services.keys.rotate(call.path["key_id"]))


async def usage(call: Call, _: None) -> dict[str, Any]:
    key_id = call.path["key_id"]
    return shapes.key_usage(key_id, await call.services.keys.usage(key_id))


async def create_for_namespace(call: Call, body: bodies.NamespaceKeyBody) -> dict[str, Any]:
    name = call.path["ns"]
    scope = _scope(body.scope, "scope") if body.scope is not None else DEFAULT_NAMESPACE_SCOPE
    if scope is Scope.SUPER_ADMIN:
        raise InvalidRequestError("a namespace's key cannot be super_admin", field="scope")
    require_scope(call.identity, scope)
    extra = _namespaces(body.extra_namespaces, "extra_namespaces") or []
    for other in extra:
        require_namespace(call.identity, other)
    names = list(dict.fromkeys([name, *extra]))
    made = await call.services.keys.create(body.name, scope, names, _expiry(call, body.expires_in_days, None))
    return {**shapes.new_key(made), "namespace": name}


def _belongs(call: Call, info: KeyInfo) -> bool:
    """Whether a key is pinned to the path's namespace and to nothing that the caller may not touch."""
    pins = info.namespaces
    return pins is not None and call.path["ns"] in pins and all(call.access.allows(pin) for pin in pins)


async def _namespace_key(call: Call) -> KeyInfo:
    info = await call.services.keys.get(call.path["key_id"])
    if not _belongs(call, info):
        raise ApiKeyNotFoundError(f"no key {info.key_id} of namespace {call.path['ns']}")
    return info


async def list_for_namespace(call: Call, _: None) -> dict[str, Any]:
    name = call.path["ns"]
    found = [info for info in await call.services.keys.list() if _belongs(call, info)]
    return {"namespace": name, "keys": [shapes.namespace_key(name, info) for info in found], "total": len(found)}


async def delete_for_namespace(call: Call, _: None) -> dict[str, Any]:
    info = await _namespace_key(call)
    await call.services.keys.delete(info.key_id)
    return shapes.done(f"key {info.key_id} deleted")


async def usage_for_namespace(call: Call, _: None) -> dict[str, Any]:
    info = await _namespace_key(call)
    return {**shapes.key_usage(info.key_id, await call.services.keys.usage(info.key_id)), "namespace": call.path["ns"]}
