"""Handlers, one file a subject: each asks the services and hands the answer to `shapes`. One handler serves every path
of the same meaning; what differs between the paths (agent in the body or in the path) is settled by `agent`."""

from __future__ import annotations

from typing import Any

from dakera_cluster.api.route import Call


def agent(call: Call, body: Any) -> str:
    """The agent of the request: from the path when it is there, else from the body or the query."""
    found = call.path.get("agent_id")
    if found is None:
        found = getattr(body, "agent_id", None) or getattr(call.query, "agent_id", None)
    assert found is not None
    return str(found)
