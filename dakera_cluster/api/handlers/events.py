"""Streams of events. A key pinned to namespaces hears of those alone."""

from __future__ import annotations

from collections.abc import Callable

from dakera_cluster.api import bodies
from dakera_cluster.api.route import Call
from dakera_cluster.api.streams import EventStream
from dakera_cluster.memory.events import Event, Stream
from dakera_cluster.model.ids import agent_namespace


async def memories(call: Call, _: None) -> EventStream:
    """Of all agents the key may read, or of one."""
    query: bodies.AgentQuery = call.query
    one = agent_namespace(query.agent_id) if query.agent_id is not None else None
    allows = call.access.allows

    def wanted(event: Event) -> bool:
        return event.stream is Stream.MEMORY and (event.namespace == one if one else allows(event.namespace))

    return _stream(call, wanted)


async def namespace(call: Call, _: None) -> EventStream:
    name = call.path["ns"]
    return _stream(call, lambda event: event.stream is Stream.SYSTEM and event.namespace == name)


async def system(call: Call, _: None) -> EventStream:
    return _stream(call, lambda event: event.stream is Stream.SYSTEM)


def _stream(call: Call, wanted: Callable[[Event], bool]) -> EventStream:
    auth, http = call.runtime.auth, call.http
    return EventStream(call.runtime, http, wanted, lambda: auth.identify(http, from_query=True))
