"""Records, fragments and seals: what is cut must come back whole, what is not authentic must not come back at all."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.protocols.peer_frames import (
    FRAGMENT_BYTES,
    FRAME,
    LENGTH,
    MORE,
    RECORD_BYTES,
    RECORD_MAX_BYTES,
    CounterSeal,
    FrameError,
    FrameFault,
    FrameKind,
    MessageReader,
    Outbox,
    RecordReader,
)

KEY_A, KEY_B = bytes(range(32)), bytes(range(32, 64))
ANSWER, FAILURE, CHUNK, END = FrameKind.ANSWER, FrameKind.FAILURE, FrameKind.CHUNK, FrameKind.END


def drain(outbox: Outbox) -> list[bytes]:
    records = []
    while record := outbox.take():
        records.append(record)
    return records


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 100, FRAGMENT_BYTES, FRAGMENT_BYTES + 1, 200_000, 400_000]), max_size=8),
    calls=st.integers(1, 4),
    pieces=st.integers(1, 2_000),
    seed=st.integers(0, 1000),
)
def test_messages_survive_records_fragments_seals_and_any_cutting_of_the_stream(
    sizes: list[int], calls: int, pieces: int, seed: int
) -> None:
    rng = random.Random(seed)
    outbox, sender, receiver = Outbox(), CounterSeal(KEY_A, KEY_B), CounterSeal(KEY_B, KEY_A)
    outbox.started_max_bytes = 1 << 20
    put = [(int(CHUNK), 1 + rng.randrange(calls), rng.randbytes(size)) for size in sizes]
    stream = b""
    for kind, call, payload in put:
        outbox.put(kind, call, payload)
        if rng.random() < 0.5:
            body = sender.close(outbox.take())
            stream += LENGTH.pack(len(body)) + body
    for plain in drain(outbox):
        assert len(plain) <= RECORD_MAX_BYTES - 16
        body = sender.close(plain)
        stream += LENGTH.pack(len(body)) + body
    assert outbox.queued_bytes == 0
    records, messages, got = RecordReader(RECORD_MAX_BYTES), MessageReader(1 << 20), []
    cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(pieces))
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        records.feed(stream[start:stop])
        while (sealed := records.next_body()) is not None:
            got += messages.read(receiver.open(sealed))
    for call in range(1, calls + 1):
        assert [m for m in got if m[1] == call] == [m for m in put if m[1] == call]
    assert len(got) == len(put)
    assert messages.unfinished_bytes == 0


def test_a_short_message_overtakes_the_rest_of_a_long_one() -> None:
    outbox, reader = Outbox(), MessageReader(1 << 20)
    outbox.put(ANSWER, 1, bytes(10 * FRAGMENT_BYTES))
    reader.read(outbox.take())
    outbox.put(ANSWER, 2, b"short")
    assert reader.read(outbox.take()) == [(ANSWER, 2, b"short")]


def test_two_long_messages_share_the_line() -> None:
    outbox, reader = Outbox(), MessageReader(1 << 22)
    outbox.started_max_bytes = 1 << 22
    outbox.put(ANSWER, 1, bytes(20 * FRAGMENT_BYTES))
    outbox.put(ANSWER, 2, bytes(2 * FRAGMENT_BYTES))
    found = [message[1] for record in drain(outbox) for message in reader.read(record)]
    assert found == [2, 1]


def test_no_more_long_messages_are_begun_than_the_reader_can_keep() -> None:
    outbox, reader = Outbox(), MessageReader(300_000)
    outbox.started_max_bytes = 300_000
    for call in range(1, 30):
        outbox.put(ANSWER, call, bytes([call]) * 140_000)
    found = []
    for record in drain(outbox):
        found += reader.read(record)
        assert reader.unfinished_bytes <= 300_000
    assert found == [(ANSWER, call, bytes([call]) * 140_000) for call in range(1, 30)]


def test_short_messages_cannot_hold_up_a_long_one_for_ever() -> None:
    outbox, reader = Outbox(), MessageReader(1 << 20)
    outbox.put(ANSWER, 1, bytes(3 * FRAGMENT_BYTES))
    for _ in range(10):
        for call in range(2, 6):
            outbox.put(ANSWER, call, bytes(RECORD_BYTES // 4))
        if any(call == 1 for _, call, _ in reader.read(outbox.take())):
            return
    pytest.fail("the long message was starved")


def test_a_dropped_message_leaves_nothing_behind_at_the_reader() -> None:
    outbox, reader = Outbox(), MessageReader(1 << 20)
    outbox.put(ANSWER, 1, bytes(8 * FRAGMENT_BYTES))
    assert reader.read(outbox.take()) == []
    assert reader.unfinished_bytes > 0
    assert outbox.drop(1)
    assert outbox.queued_bytes == 0
    outbox.put(FAILURE, 1, b"given up")
    assert reader.read(outbox.take()) == [(FAILURE, 1, b"given up")]
    assert reader.unfinished_bytes == 0
    outbox.put(ANSWER, 1, b"fresh")
    assert reader.read(outbox.take()) == [(ANSWER, 1, b"fresh")]


def test_the_end_of_a_stream_stays_behind_its_long_chunk() -> None:
    outbox, reader = Outbox(), MessageReader(1 << 20)
    outbox.put(CHUNK, 1, bytes(5 * FRAGMENT_BYTES))
    outbox.put(END, 1, b"")
    kinds = [message[0] for record in drain(outbox) for message in reader.read(record)]
    assert kinds == [CHUNK, END]


def test_a_record_longer_than_the_limit_is_refused_by_its_length_alone() -> None:
    reader = RecordReader(1000)
    reader.feed(LENGTH.pack(1001))
    with pytest.raises(FrameError) as caught:
        reader.next_body()
    assert caught.value.fault is FrameFault.OVERSIZE


def test_a_message_longer_than_the_limit_is_refused_while_it_grows() -> None:
    outbox, reader = Outbox(), MessageReader(100_000)
    outbox.put(ANSWER, 1, bytes(200_000))
    with pytest.raises(FrameError) as caught:
        for record in drain(outbox):
            reader.read(record)
    assert caught.value.fault is FrameFault.OVERSIZE


def test_many_unfinished_messages_together_are_bounded() -> None:
    reader = MessageReader(100_000)
    with pytest.raises(FrameError) as caught:
        for call in range(1, 5):
            reader.read(FRAME.pack(ANSWER, MORE, call, 90_000) + bytes(90_000))
    assert caught.value.fault is FrameFault.OVERSIZE
    with pytest.raises(FrameError):
        reader.read(FRAME.pack(ANSWER, MORE, 9, 0))


@pytest.mark.parametrize("plain", [b"\x01", FRAME.pack(1, 0, 1, 5) + b"1234", FRAME.pack(1, 0, 1, 0) + b"x"])
def test_frames_that_do_not_fit_their_record_are_refused(plain: bytes) -> None:
    with pytest.raises(FrameError) as caught:
        MessageReader(1000).read(plain)
    assert caught.value.fault is FrameFault.GARBAGE


def sealed_pair() -> tuple[CounterSeal, CounterSeal]:
    return CounterSeal(KEY_A, KEY_B), CounterSeal(KEY_B, KEY_A)


def test_a_repeated_record_does_not_open() -> None:
    sender, receiver = sealed_pair()
    first = sender.close(b"pay once")
    assert receiver.open(first) == b"pay once"
    with pytest.raises(FrameError) as caught:
        receiver.open(first)
    assert caught.value.fault is FrameFault.FORGED


def test_a_lost_or_reordered_record_is_noticed() -> None:
    sender, receiver = sealed_pair()
    sender.close(b"lost")
    with pytest.raises(FrameError):
        receiver.open(sender.close(b"next"))


def test_a_record_cannot_be_mirrored_to_its_sender() -> None:
    sender, _ = sealed_pair()
    with pytest.raises(FrameError):
        sender.open(sender.close(b"hello"))


@pytest.mark.parametrize("position", [0, 5, -1])
def test_a_single_flipped_bit_is_noticed(position: int) -> None:
    sender, receiver = sealed_pair()
    body = bytearray(sender.close(b"some bytes"))
    body[position] ^= 1
    with pytest.raises(FrameError):
        receiver.open(bytes(body))
