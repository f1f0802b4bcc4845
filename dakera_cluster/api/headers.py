"""Headers that every answer carries: security, CORS, request id, rate limits.

Spelled exactly as the contract spells them: one official client looks names up case-sensitively. Called by `endpoint`.
"""

from __future__ import annotations

import itertools
import re
import secrets

from aiohttp.web import BaseRequest as HttpRequest
from multidict import istr

from dakera_cluster.api.limits import Allowance
from dakera_cluster.api.reply import header_lines

REQUEST_ID = istr("X-Request-Id")
_ORIGIN = istr("Origin")
_REQUEST_ID_OK = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_SECURITY = header_lines(
    {
        "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Server": "dakera",
    }
)
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

    def base(self, http: HttpRequest, request_id: str, allowance: Allowance, now: float) -> str:
        """Header lines of any answer to ``http``; ``request_id`` as of `request_id`, ``now`` in Unix seconds."""
        base = (
            f"{_SECURITY}X-Request-Id: {request_id}\r\nX-RateLimit-Limit: {allowance.limit}\r\n"
            f"X-RateLimit-Remaining: {allowance.remaining}\r\n"
            f"X-RateLimit-Reset: {int(now + allowance.reset_s + 0.999)}\r\n"
        )
        origin = http.headers.get(_ORIGIN)
        return base if origin is None else base + header_lines(self._allow(origin))

    def _allow(self, origin: str) -> dict[str, str]:
        if self._any_origin:
            return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _EXPOSED}
        if origin not in self._origins:
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _EXPOSED,
        }

    def request_id(self, http: HttpRequest) -> str:
        """The client's id when it is a sane one, else one of our own."""
        given = http.headers.get(REQUEST_ID)
        if given is not None and _REQUEST_ID_OK.fullmatch(given):
            return given
        return f"{self._prefix}-{next(self._counter):x}"

    @staticmethod
    def preflight(allowed: list[str]) -> dict[str, str]:
        """Further headers of the answer to a CORS preflight."""
        return {
            "Access-Control-Allow-Methods": ", ".join(allowed),
            "Access-Control-Allow-Headers": _ALLOWED_REQUEST_HEADERS,
            "Access-Control-Max-Age": _PREFLIGHT_MAX_AGE_S,
            "Allow": ", ".join(allowed),
        }
