"""``/openapi.json`` and ``/docs``: the document, and a page that needs nothing from outside the node.

Both are made once and answered from memory. The page's own script and style are allowed by their hashes, nothing else is.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from importlib import resources

import msgspec

from dakera_cluster.api.openapi import document
from dakera_cluster.api.route import Call, Raw, Route
from dakera_cluster.model.keys import Scope

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
_TAG = "Document"


class DocumentPages:
    def __init__(self, routes: Iterable[Route]) -> None:
        page = resources.files("dakera_cluster.api").joinpath("docs.html").read_text(encoding="utf-8")
        self._page = Raw(page.encode(), "text/html; charset=utf-8", {"Content-Security-Policy": _policy(page)})
        self.routes = (
            Route(
                method="GET",
                path="/openapi.json",
                scope=Scope.NONE,
                handler=self.openapi,
                summary="This document",
                tag=_TAG,
            ),
            Route(
                method="GET",
                path="/docs",
                scope=Scope.NONE,
                handler=self.page,
                summary="This document, to read and to try",
                tag=_TAG,
                answer=str,
                answer_type="text/html",
            ),
        )
        self._document = Raw(msgspec.json.encode(document((*routes, *self.routes))), "application/json")

    async def openapi(self, call: Call, _: None) -> Raw:
        return self._document

    async def page(self, call: Call, _: None) -> Raw:
        return self._page


def _policy(page: str) -> str:
    """Content-Security-Policy (CSP3 hash sources) of the page: its own inline script and style, calls to its own origin."""
    hashes = {
        kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for kind, text in _INLINE.findall(page)
    }
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
