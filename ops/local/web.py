"""One small HTTP request, with the standard library alone: what a tool asks of a node or of the balancer.

A server that cannot be reached is an answer with status 0, because that is what pollers want to know.
"""

from __future__ import annotations

import http.client
import json
from typing import Any, NamedTuple
from urllib.parse import urlsplit

TIMEOUT_S = 2.0


class Answer(NamedTuple):
    """``status`` 0: nothing answered, and ``text`` says why."""

    status: int
    text: str

    @property
    def ok(self) -> bool:
        return self.status == 200

    def json(self) -> Any:
        """The body, None when it is not JSON."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None


def get(url: str, key: str | None = None, timeout_s: float = TIMEOUT_S) -> Answer:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""), headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.read().decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, str(error) or type(error).__name__)
    finally:
        connection.close()
