"""Peer connections on loopback: real sockets, the real clock; an attacker or a slow reader in between where one is needed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import pytest

from dakera_cluster.cluster.peer_errors import PeerTimeoutError, PeerUnavailableError
from dakera_cluster.cluster.peer_services import Context, Priority
from dakera_cluster.cluster.peer_settings import PeerSettings
from dakera_cluster.model.errors import (
    InternalError,
    InvalidRequestError,
    NotImplementedRouteError,
    NotReadyError,
    OverloadedError,
    PayloadTooLargeError,
    QuorumUnavailableError,
)
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.members import Address
from dakera_cluster.protocols.peer_frames import CONNECTION, LENGTH, FrameKind
from dakera_cluster.protocols.peer_messages import head
from tests.support.peer_world import PATIENCE_S, SETTINGS, B, Gate, World, echo, until


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with asyncio.timeout(4 * PATIENCE_S):
        yield world
        await world.close()


# -- calls


async def test_a_call_is_answered_by_the_service_that_knows_who_asks(world: World) -> None:
    server = await world.server()

    async def who(payload: bytes, context: Context) -> bytes:
        remaining = context.remaining_ms()
        assert remaining is not None and 0 < remaining <= 700
        return f"{context.node} {context.boot} {context.version}".encode() + payload

    server.register("who", who)
    client = world.client(boot=12)
    assert await client.call(B, "who", b"!", timeout_ms=700) == b"a 12 1!"


async def test_many_calls_share_one_connection_and_are_answered_out_of_order(world: World) -> None:
    server = await world.server()
    turns: dict[bytes, asyncio.Event] = {b"%d" % i: asyncio.Event() for i in range(50)}

    async def wait(payload: bytes, context: Context) -> bytes:
        await turns[payload].wait()
        return payload

    server.register("wait", wait)
    client = world.client()
    calls = [asyncio.create_task(client.call(B, "wait", b"%d" % i)) for i in range(50)]
    await until(lambda: server.working == 50)
    for i in reversed(range(50)):
        turns[b"%d" % i].set()
        assert await calls[i] == b"%d" % i
        assert not any(call.done() for call in calls[:i])
    assert server.stats().opened == 1


async def test_long_messages_arrive_whole_among_short_ones(world: World) -> None:
    await world.server()
    client = world.client()
    payloads = [bytes([i]) * (900_000 if i % 5 == 0 else i) for i in range(60)]
    assert await asyncio.gather(*(client.call(B, "echo", p) for p in payloads)) == payloads


async def test_a_message_above_the_limit_is_refused_on_either_side_and_the_connection_goes_on(world: World) -> None:
    server = await world.server()

    async def large(payload: bytes, context: Context) -> bytes:
        return bytes(SETTINGS.message_bytes + 1)

    server.register("large", large)
    client = world.client()
    for method, payload in (("echo", bytes(SETTINGS.message_bytes + 1)), ("large", b"")):
        with pytest.raises(PayloadTooLargeError):
            await client.call(B, method, payload)
    assert await client.call(B, "echo", b"on") == b"on"
    assert server.stats().opened == 1


async def test_the_limit_of_the_other_side_counts(world: World) -> None:
    await world.server(settings=PeerSettings(message_bytes=100_000))
    client = world.client()
    await client.call(B, "echo", b"")
    with pytest.raises(PayloadTooLargeError):
        await client.call(B, "echo", bytes(200_000))


async def test_errors_arrive_as_their_class(world: World) -> None:
    server = await world.server()

    async def fail(payload: bytes, context: Context) -> bytes:
        match payload:
            case b"quorum":
                raise QuorumUnavailableError("2 of 3", ambiguous=True, retry_after_s=9, details={"acks": 1})
            case b"field":
                raise InvalidRequestError("bad", field="k")
            case b"value":
                raise ValueError("undecodable")
        raise RuntimeError("secret innards")

    server.register("fail", fail)
    client = world.client()
    with pytest.raises(QuorumUnavailableError) as quorum:
        await client.call(B, "fail", b"quorum")
    assert (quorum.value.ambiguous, quorum.value.retry_after_s, quorum.value.details) == (True, 9, {"acks": 1})
    with pytest.raises(InvalidRequestError) as field:
        await client.call(B, "fail", b"field")
    assert field.value.field == "k"
    with pytest.raises(InvalidRequestError):
        await client.call(B, "fail", b"value")
    with pytest.raises(InternalError) as internal:
        await client.call(B, "fail", b"?")
    assert "innards" not in internal.value.message
    with pytest.raises(NotImplementedRouteError):
        await client.call(B, "unknown", b"")
    assert client.stats().methods["fail"].failures == {"remote": 4}


async def test_a_call_past_its_deadline_fails_here_and_is_stopped_there(world: World) -> None:
    server = await world.server()
    gate = Gate()
    server.register("gate", gate)
    client = world.client()
    await client.call(B, "echo", b"")
    with pytest.raises(PeerTimeoutError) as caught:
        await client.call(B, "gate", b"", timeout_ms=60)
    assert caught.value.ambiguous
    await until(lambda: gate.cancelled == 1)
    assert client.stats().in_flight == 0
    await until(lambda: server.working == 0)
    assert await client.call(B, "echo", b"still") == b"still"


async def test_the_server_stops_work_past_the_deadline_without_being_told(world: World) -> None:
    """The caller's cancellation never arrives: the deadline travelled with the request."""
    server = await world.server()
    gate = Gate()
    server.register("gate", gate)
    relay = await world.relay()
    client = world.client()
    call = asyncio.create_task(client.call(B, "gate", b"", timeout_ms=200))
    await until(lambda: gate.started == 1)
    relay.flowing.clear()
    with pytest.raises(PeerTimeoutError):
        await call
    await until(lambda: gate.cancelled == 1)
    relay.flowing.set()


async def test_cancelling_a_call_stops_the_work(world: World) -> None:
    server = await world.server()
    gate = Gate()
    server.register("gate", gate)
    client = world.client()
    call = asyncio.create_task(client.call(B, "gate", b""))
    await until(lambda: gate.started == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: gate.cancelled == 1 and server.working == 0)
    assert client.stats().methods["gate"].failures == {"cancelled": 1}


async def test_calls_beyond_the_bound_wait_here_for_their_turn(world: World) -> None:
    settings = PeerSettings(inflight=3, waiting=2)
    server = await world.server(settings=settings)
    gate = Gate()
    server.register("gate", gate)
    client = world.client(settings=settings)
    calls = [asyncio.create_task(client.call(B, "gate", b"%d" % i)) for i in range(5)]
    await until(lambda: gate.started == 3 and client.stats().in_flight == 5)
    with pytest.raises(OverloadedError):
        await client.call(B, "gate", b"one too many")
    calls[4].cancel()
    gate.open.set()
    assert await asyncio.gather(*calls[:4]) == [b"0", b"1", b"2", b"3"]
    assert gate.started == 4
    assert client.stats().overloads == 1


async def test_turns_are_handed_on_for_ever(world: World) -> None:
    settings = PeerSettings(inflight=2, queue_bytes=50_000)
    await world.server(settings=settings)
    client = world.client(settings=settings)
    payloads = [bytes([i]) * (40_000 if i % 7 == 0 else i) for i in range(100)]
    assert await asyncio.gather(*(client.call(B, "echo", payload) for payload in payloads)) == payloads
    assert client.stats().overloads == client.stats().in_flight == 0


async def test_work_cancelled_before_its_first_step_leaves_nothing_behind(world: World) -> None:
    server = await world.server()
    gate = Gate()
    server.register("gate", gate)
    client = world.client()
    await client.call(B, "echo", b"")
    link = next(iter(client._links))
    link.send(FrameKind.REQUEST, 1000, head("gate", 5000))
    link.send(FrameKind.CANCEL, 1000, b"")
    await client.call(B, "echo", b"")
    await until(lambda: server.working == 0 and server.working_bytes == 0 and not server.tasks)
    assert gate.started == 0
    assert server.stats().methods["gate"].failures == {"cancelled": 1}


async def test_a_call_that_never_got_its_turn_is_not_ambiguous(world: World) -> None:
    settings = PeerSettings(inflight=1)
    server = await world.server(settings=settings)
    gate = Gate()
    server.register("gate", gate)
    client = world.client(settings=settings)
    first = asyncio.create_task(client.call(B, "gate", b"first"))
    await until(lambda: gate.started == 1)
    with pytest.raises(PeerTimeoutError) as caught:
        await client.call(B, "gate", b"second", timeout_ms=50)
    assert not caught.value.ambiguous
    gate.open.set()
    assert await first == b"first"
    assert await client.call(B, "gate", b"third") == b"third"
    assert gate.started == 2


async def test_a_busy_server_refuses_but_still_answers_control_calls(world: World) -> None:
    server = await world.server(settings=PeerSettings(inflight_total=4))
    gate = Gate()
    server.register("gate", gate)
    server.register("control", echo, priority=Priority.CONTROL)
    clients = [world.client(NodeId(f"c{i}")) for i in range(3)]
    calls = [asyncio.create_task(clients[i % 2].call(B, "gate", b"x")) for i in range(4)]
    await until(lambda: gate.started == 4)
    with pytest.raises(OverloadedError):
        await clients[2].call(B, "gate", b"")
    assert await clients[2].call(B, "control", b"alive") == b"alive"
    gate.open.set()
    assert await asyncio.gather(*calls) == [b"x"] * 4
    assert server.stats().overloads == 1


async def test_answers_wait_for_a_slow_reader_without_piling_up(world: World) -> None:
    settings = PeerSettings(message_bytes=1 << 20, queue_bytes=1 << 20, inflight=64, silence_timeout_ms=60_000)
    server = await world.server(settings=settings)

    async def large(payload: bytes, context: Context) -> bytes:
        return bytes(500_000)

    server.register("large", large)
    client = world.client(settings=settings)
    await client.call(B, "echo", b"")
    link = next(iter(client._links))
    assert link._transport is not None
    link._transport.pause_reading()
    calls = [asyncio.create_task(client.call(B, "large", b"", timeout_ms=30_000)) for _ in range(64)]
    await until(lambda: server.working == 64 or server.stats().queued_bytes >= settings.queue_bytes)
    await asyncio.sleep(0.1)
    # Answers wait in their handlers' hands, not in a queue without end.
    assert server.stats().queued_bytes < settings.queue_bytes + settings.message_bytes
    assert server.working > 30
    link._transport.resume_reading()
    assert all(len(answer) == 500_000 for answer in await asyncio.gather(*calls))
    assert server.stats().queued_bytes == 0


async def test_a_peer_that_takes_nothing_and_asks_on_is_cut_off(world: World) -> None:
    """Refusals are not held back by anything, so a peer that never reads them must not be served for ever."""
    settings = PeerSettings(message_bytes=10_000, queue_bytes=10_000, inflight=1_000_000, silence_timeout_ms=60_000)
    server = await world.server(settings=settings)
    client = world.client(settings=PeerSettings(inflight=1_000_000, waiting=1_000_000))
    await client.call(B, "echo", b"")
    link = next(iter(client._links))
    assert link._transport is not None
    link._transport.pause_reading()
    number = 10
    async with asyncio.timeout(PATIENCE_S):
        while not server.stats().faults:
            for _ in range(1000):
                number += 1
                link.send(FrameKind.REQUEST, number, head("m" * 60, 0))
            await asyncio.sleep(0)
    assert server.stats().faults == {"unread": 1}


# -- streams


def counting(total: int, size: int, made: list[int], closed: list[bool]) -> Callable[..., AsyncGenerator[bytes, None]]:
    async def chunks(payload: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        try:
            for i in range(total):
                made.append(i)
                yield i.to_bytes(4, "big") + bytes(size - 4)
        finally:
            closed.append(True)

    return chunks


async def test_a_stream_brings_all_chunks_in_order(world: World) -> None:
    server = await world.server()
    server.register_stream("rows", counting(300, 100_000, [], []))
    client = world.client()
    found = [int.from_bytes(chunk[:4], "big") async for chunk in client.stream(B, "rows", b"")]
    assert found == list(range(300))
    assert client.stats().in_flight == 0


async def test_a_stream_runs_no_further_ahead_than_its_readers_window(world: World) -> None:
    server = await world.server()
    made: list[int] = []
    server.register_stream("rows", counting(1000, 50_000, made, []))
    client = world.client(settings=PeerSettings(window_bytes=500_000))
    taken = 0
    async with contextlib.aclosing(client.stream(B, "rows", b"")) as stream:
        async for _ in stream:
            taken += 1
            if taken % 20 == 0:
                await asyncio.sleep(0.01)
                assert len(made) <= taken + 500_000 // 50_000 + 2
            if taken == 200:
                break
    assert 200 <= len(made) < 250


async def test_leaving_a_stream_stops_the_sender(world: World) -> None:
    server = await world.server()
    closed: list[bool] = []
    server.register_stream("rows", counting(10**9, 1000, [], closed))
    client = world.client()
    async for _ in client.stream(B, "rows", b""):
        break
    await until(lambda: closed and server.working == 0 and client.stats().in_flight == 0)


async def test_a_failing_stream_gives_its_chunks_first_and_then_its_error(world: World) -> None:
    server = await world.server()

    async def rows(payload: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        yield b"one"
        yield b""
        raise NotReadyError("wiped")

    server.register_stream("rows", rows)
    found = []
    with pytest.raises(NotReadyError):
        async for chunk in world.client().stream(B, "rows", b""):
            found.append(chunk)  # noqa: PERF401  a comprehension would lose them with the error
    assert found == [b"one", b""]


async def test_a_stream_that_does_not_move_fails(world: World) -> None:
    server = await world.server()
    gate = Gate()

    async def rows(payload: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        yield b"one"
        await gate(b"", context)

    server.register_stream("rows", rows)
    with pytest.raises(PeerTimeoutError):
        async for _ in world.client().stream(B, "rows", b"", idle_timeout_ms=60):
            pass
    await until(lambda: gate.cancelled == 1)


async def test_a_sender_whose_reader_does_not_move_stops(world: World) -> None:
    server = await world.server(settings=PeerSettings(stream_idle_timeout_ms=60))
    closed: list[bool] = []
    server.register_stream("rows", counting(10**9, 100_000, [], closed))
    async with contextlib.aclosing(world.client().stream(B, "rows", b"")) as stream:
        await anext(stream)
        await until(lambda: closed)


async def test_calls_go_on_while_streams_run(world: World) -> None:
    server = await world.server()
    server.register_stream("rows", counting(10**9, 100_000, [], []))
    client = world.client()
    async with contextlib.aclosing(client.stream(B, "rows", b"")) as stream:
        for i in range(50):
            await anext(stream)
            assert await client.call(B, "echo", b"%d" % i) == b"%d" % i
    assert client.stats().connections == 2, "streams have a connection of their own"


async def test_more_streams_than_allowed_are_refused(world: World) -> None:
    server = await world.server(settings=PeerSettings(streams=2))
    server.register_stream("rows", counting(10**9, 100_000, [], []))
    client = world.client()
    open_streams = [client.stream(B, "rows", b"") for _ in range(3)]
    for stream in open_streams[:2]:
        await anext(stream)
    with pytest.raises(OverloadedError):
        await anext(open_streams[2])
    for stream in open_streams:
        await stream.aclose()


# -- connections that come and go


async def test_an_unreachable_peer_fails_at_once_and_is_not_dialled_in_a_hurry(world: World) -> None:
    server = await world.server()
    await server.close()
    client = world.client(settings=PeerSettings(backoff_min_ms=60_000, backoff_max_ms=60_000))
    for _ in range(5):
        with pytest.raises(PeerUnavailableError) as caught:
            await client.call(B, "echo", b"")
        assert not caught.value.ambiguous
    assert client.stats().refusals == {"connect": 1}


async def test_news_of_a_peer_ends_the_pause(world: World) -> None:
    server = await world.server()
    await server.close()
    client = world.client(settings=PeerSettings(backoff_min_ms=60_000, backoff_max_ms=60_000))
    with pytest.raises(PeerUnavailableError):
        await client.call(B, "echo", b"")
    await world.server(boot=2, port=world.addresses[B].port)
    client.heard(B, BootId(2))
    assert await client.call(B, "echo", b"back") == b"back"


async def test_callers_share_one_dial(world: World) -> None:
    server = await world.server()
    client = world.client()
    assert await asyncio.gather(*(client.call(B, "echo", b"%d" % i) for i in range(20))) == [
        b"%d" % i for i in range(20)
    ]
    assert server.stats().opened == 1


async def test_a_peer_held_dead_is_not_asked(world: World) -> None:
    await world.server()
    dead: set[NodeId] = set()
    client = world.client(is_dead=dead.__contains__)
    await client.call(B, "echo", b"")
    dead.add(B)
    with pytest.raises(PeerUnavailableError) as caught:
        await client.call(B, "echo", b"")
    assert not caught.value.ambiguous


async def test_when_a_peer_dies_what_is_under_way_fails_with_an_unknown_outcome(world: World) -> None:
    server = await world.server()
    gate = Gate()
    server.register("gate", gate)
    client = world.client()
    call = asyncio.create_task(client.call(B, "gate", b""))
    await until(lambda: gate.started == 1)
    client.lost(B)
    with pytest.raises(PeerUnavailableError) as caught:
        await call
    assert caught.value.ambiguous
    await until(lambda: gate.cancelled == 1)


async def test_after_a_restart_calls_go_to_the_new_process(world: World) -> None:
    first = await world.server(boot=1)
    client = world.client()
    await client.call(B, "echo", b"")
    port = world.addresses[B].port
    await first.close()
    second = await world.server(boot=2, port=port)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(PeerUnavailableError):
                assert await client.call(B, "echo", b"again") == b"again"
                break
            await asyncio.sleep(0.005)
    assert second.stats().opened == 1


async def test_news_of_a_later_boot_replaces_the_connection(world: World) -> None:
    await world.server(boot=1)
    client = world.client()
    await client.call(B, "echo", b"")
    second = await world.server(boot=2)
    client.heard(B, BootId(1))
    await client.call(B, "echo", b"")
    assert second.stats().opened == 0
    client.heard(B, BootId(2))
    await client.call(B, "echo", b"")
    assert second.stats().opened == 1


async def test_a_caller_that_restarted_supersedes_its_earlier_life(world: World) -> None:
    server = await world.server()
    gate = Gate()
    server.register("gate", gate)
    before, after = world.client(boot=1), world.client(boot=2)
    call = asyncio.create_task(before.call(B, "gate", b""))
    await until(lambda: gate.started == 1)
    await after.call(B, "echo", b"")
    await until(lambda: gate.cancelled == 1)
    with pytest.raises(PeerUnavailableError):
        await call


async def test_a_server_that_stops_lets_work_end_and_takes_no_more(world: World) -> None:
    server = await world.server()
    gate = Gate()
    server.register("gate", gate)
    client = world.client()
    call = asyncio.create_task(client.call(B, "gate", b"done"))
    await until(lambda: gate.started == 1)
    closing = asyncio.create_task(server.close())
    link = next(iter(client._links))
    await until(lambda: not link.is_usable)
    with pytest.raises(PeerUnavailableError) as caught:
        await client.call(B, "echo", b"")
    assert not caught.value.ambiguous
    gate.open.set()
    assert await call == b"done"
    await closing
    assert server.stats().connections == 0


async def test_a_half_open_connection_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network swallows everything and reports nothing."""
    settings = PeerSettings(ping_interval_ms=40, silence_timeout_ms=150)
    monkeypatch.setattr("dakera_cluster.cluster.peer_client.CHECK_INTERVAL_S", 0.03)
    server = await world.server()
    gate = Gate()
    server.register("gate", gate)
    relay = await world.relay()
    client = world.client(settings=settings)
    call = asyncio.create_task(client.call(B, "gate", b"", timeout_ms=60_000))
    await until(lambda: gate.started == 1)
    await asyncio.sleep(0.4)
    assert not call.done(), "pings keep a quiet connection alive"
    relay.flowing.clear()
    with pytest.raises(PeerUnavailableError) as caught:
        await call
    assert caught.value.ambiguous
    assert client.stats().faults == {"silent": 1}


async def test_an_idle_connection_is_closed_and_comes_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dakera_cluster.cluster.peer_client.CHECK_INTERVAL_S", 0.01)
    server = await world.server()
    client = world.client(settings=PeerSettings(idle_close_ms=50))
    await client.call(B, "echo", b"")
    await until(lambda: client.stats().connections == 0 and server.stats().connections == 0)
    assert await client.call(B, "echo", b"back") == b"back"


async def test_probes_and_calls_to_addresses_need_no_node_id(world: World) -> None:
    await world.server()
    client = world.client()
    address = world.addresses[B]
    assert await client.probe(address, B)
    assert not await client.probe(address, NodeId("c"))
    assert not await client.probe(Address("127.0.0.1", 1), B)
    assert await client.call_address(address, "echo", b"state") == b"state"
    await until(lambda: client.stats().connections == 0)


async def test_latency_and_bytes_are_counted(world: World) -> None:
    server = await world.server()
    client = world.client()
    for _ in range(10):
        await client.call(B, "echo", bytes(1000))
    ours, theirs = client.stats(), server.stats()
    method = ours.methods["echo"]
    assert method.calls == sum(method.latency_counts) == theirs.methods["echo"].calls == 10
    assert 0 < method.latency_sum_s < PATIENCE_S
    assert ours.bytes_sent == theirs.bytes_received > 10_000
    assert theirs.bytes_sent == ours.bytes_received > 10_000


async def test_a_deadline_is_never_early(world: World) -> None:
    server = await world.server()
    server.register("gate", Gate())
    client = world.client()
    await client.call(B, "echo", b"")
    for timeout_ms in (1, 15, 40):
        time.sleep(0.01)  # noqa: ASYNC251  the loop's clock must lag for this
        started = time.monotonic()
        with pytest.raises(PeerTimeoutError):
            await client.call(B, "gate", b"", timeout_ms=timeout_ms)
        assert (time.monotonic() - started) * 1000 >= timeout_ms


async def test_pings_are_answered(world: World) -> None:
    await world.server()
    client = world.client()
    await client.call(B, "echo", b"")
    link = next(iter(client._links))
    before = client.stats().bytes_received
    link.send(FrameKind.PING, CONNECTION, b"")
    await until(lambda: client.stats().bytes_received > before)
    assert LENGTH.size < client.stats().bytes_received - before
