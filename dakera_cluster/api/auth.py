"""Who is calling, and what they may do.

Invariant: a request is refused here before its body is read. Texts of refusals carry what official clients and scripts
look for: ``required: <scope>, actual: <scope>`` and ``namespace: <pin>``. Order of credentials: ``Authorization``, then
``X-API-Key``, then ``?api_key`` (event streams only, where browsers cannot set headers). Called by `endpoint`.
"""

from __future__ import annotations

import hmac
from functools import lru_cache

import msgspec
from aiohttp.web import BaseRequest as HttpRequest

from dakera_cluster.memory.services import KeyService
from dakera_cluster.model.errors import (
    AuthenticationRequiredError,
    InsufficientScopeError,
    InvalidApiKeyError,
    NamespaceAccessDeniedError,
)
from dakera_cluster.model.keys import ROOT_KEY_ID, Access, Scope

ANONYMOUS = "anonymous"
MAX_CREDENTIAL_CHARS = 512


class Identity(msgspec.Struct, frozen=True):
    """``key_id`` is None for a caller without a key; ``bucket`` names the rate-limit bucket the caller draws from."""

    key_id: str | None
    scope: Scope
    access: Access
    bucket: str


class Authenticator:
    def __init__(self, keys: KeyService, *, root_key: str | None, enabled: bool) -> None:
        self._keys = keys
        self._root = root_key.encode() if root_key else None
        self._enabled = enabled
        self._root_identity = Identity(ROOT_KEY_ID, Scope.SUPER_ADMIN, Access(), ROOT_KEY_ID)

    @property
    def required(self) -> bool:
        """Whether a key must be shown: not when switched off, and not while no key could be shown."""
        return self._enabled and (self._root is not None or self._keys.any_keys)

    def would_lock_out(self, scope: Scope, namespaces: list[str] | None) -> bool:
        """Whether making this key would switch authentication on with nobody left to administer keys."""
        first = self._root is None and not self._keys.any_keys
        return first and (scope is not Scope.SUPER_ADMIN or bool(namespaces))

    async def identify(self, http: HttpRequest, *, from_query: bool) -> Identity:
        """The caller. Raises the 401 errors of the tree."""
        if not self.required:
            return anonymous(http, Scope.SUPER_ADMIN)
        text = credential(http, from_query=from_query)
        if text is None:
            raise AuthenticationRequiredError("an API key is required: send Authorization: Bearer <key>")
        if len(text) > MAX_CREDENTIAL_CHARS:
            raise InvalidApiKeyError("the API key is not known")
        if self._root is not None and hmac.compare_digest(text.encode("utf-8", "surrogateescape"), self._root):
            return self._root_identity
        info = await self._keys.authenticate(text)
        pins = frozenset(info.namespaces) if info.namespaces is not None else None
        return Identity(info.key_id, info.scope, Access(pins), info.key_id)


def anonymous(http: HttpRequest, scope: Scope) -> Identity:
    """A caller without a key, told apart by address only."""
    return _anonymous(http.remote, scope)


@lru_cache(maxsize=1024)
def _anonymous(address: str | None, scope: Scope) -> Identity:
    return Identity(None, scope, Access(), f"{ANONYMOUS}:{address}")


def credential(http: HttpRequest, *, from_query: bool) -> str | None:
    """The key the request shows, or None."""
    headers = http.headers
    authorization = headers.get("Authorization")
    if authorization is not None:
        kind, _, text = authorization.partition(" ")
        if kind.lower() == "bearer" and text.strip():
            return text.strip()
    if header := headers.get("X-API-Key"):
        return header.strip()
    return (http.query.get("api_key") or None) if from_query else None


def require_scope(identity: Identity, required: Scope) -> None:
    if identity.scope < required:
        raise InsufficientScopeError(
            f"the key's scope does not allow this (required: {required.wire}, actual: {identity.scope.wire})",
            details=f"required: {required.wire}, actual: {identity.scope.wire}",
        )


def require_namespace(identity: Identity, namespace: str) -> None:
    if not identity.access.allows(namespace):
        raise NamespaceAccessDeniedError(
            f"the key may not touch namespace {namespace}", details=f"namespace: {namespace}"
        )


def require_unpinned(identity: Identity) -> None:
    """For node-wide administration: a key pinned to namespaces may not do it, whatever its scope."""
    if identity.access.namespaces is not None:
        raise NamespaceAccessDeniedError(
            "the key is pinned to namespaces and this touches all of them", details="namespace: *"
        )
