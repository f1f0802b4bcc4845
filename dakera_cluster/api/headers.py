"""Headers that every answer carries: security, CORS, request id, rate limits.

Spelled exactly as the contract spells them: one official client looks names up case-sensitively. Called by `endpoint`.
"""

from __future__ import annotations

import itertools
import re
import secrets

from aiohttp.web import Request as HttpRequest
from multidict import CIMultiDict

from dakera_cluster.api.limits import Allowance

REQUEST_ID = "X-Request-Id"
_REQUEST_ID_OK = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_SECURITY = {
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Server": "dakera",
}
_EXPOSED = ", ".join(
    (
        REQUEST_ID,
        "X-RateLimit-Limit",
        "X-RateLimit-Remaining",
        "X-RateLimit-Reset",
        "X-Quota-Used",
        "X-Quota-Limit",
        "Retry-After",
    )
)
_PREFLIGHT_MAX_AGE_S = "600"
_ALLOWED_REQUEST_HEADERS = "Authorization, Content-Type, X-API-Key, X-Request-Id, Content-Encoding, Accept"


class HeaderPolicy:
    def __init__(self, cors_origins: tuple[str, ...]) -> None:
        self._any_origin = "*" in cors_origins
        self._origins = frozenset(cors_origins)
        self._prefix = secrets.token_hex(4)
        self._counter = itertools.count(1)

    def base(self, http: HttpRequest, request_id: str, allowance: Allowance, now: float) -> CIMultiDict[str]:
        """Headers of any answer to ``http``; ``now`` in Unix seconds."""
        headers: CIMultiDict[str] = CIMultiDict(_SECURITY)
        headers[REQUEST_ID] = request_id
        headers["X-RateLimit-Limit"] = str(allowance.limit)
        headers["X-RateLimit-Remaining"] = str(allowance.remaining)
        headers["X-RateLimit-Reset"] = str(int(now + allowance.reset_s + 0.999))
        origin = http.headers.get("Origin")
        if origin is not None:
            self._allow(headers, origin)
        return headers

    def _allow(self, headers: CIMultiDict[str], origin: str) -> None:
        if self._any_origin:
            headers["Access-Control-Allow-Origin"] = "*"
        else:
            headers["Vary"] = "Origin"
            if origin not in self._origins:
                return
            headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = _EXPOSED

    def request_id(self, http: HttpRequest) -> str:
        """The client's id when it is a sane one, else one of our own."""
        given = http.headers.get(REQUEST_ID)
        if given is not None and _REQUEST_ID_OK.fullmatch(given):
            return given
        return f"{self._prefix}-{next(self._counter):x}"

    @staticmethod
    def preflight(headers: CIMultiDict[str], allowed: list[str]) -> None:
        headers["Access-Control-Allow-Methods"] = ", ".join(allowed)
        headers["Access-Control-Allow-Headers"] = _ALLOWED_REQUEST_HEADERS
        headers["Access-Control-Max-Age"] = _PREFLIGHT_MAX_AGE_S
