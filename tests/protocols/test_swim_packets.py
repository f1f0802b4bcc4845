"""Datagrams: bounds, faults told apart, secrecy, rotation of keys, replays, and garbage."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.dissemination import Dissemination, Urgency, update_bytes
from dakera_cluster.protocols.members import Address, NodeState, Update
from dakera_cluster.protocols.packets import (
    FRAME_MAX_BYTES,
    Ack,
    Body,
    ClusterState,
    Gossip,
    Nack,
    Packet,
    PacketCodec,
    PacketFault,
    Ping,
    PingRequest,
    Sync,
    decode_sync,
    encode_sync,
    update_budget_bytes,
)
from dakera_cluster.protocols.sealing import WINDOW, ReplayWindow, key_id, parse_gossip_keys
from dakera_cluster.protocols.swim_config import PACKET_MAX_BYTES

KEY_A, KEY_B, KEY_C = (bytes([value]) * 32 for value in (1, 2, 3))
HERE = Address("10.0.0.1", 7946)


def codec(keys: tuple[bytes, ...] = (), session: int = 1, cluster: str = "blue") -> PacketCodec:
    return PacketCodec(cluster, keys, bytes([session]) * 16)


def packet(sender: str = "a", boot: int = 1, body: Body | None = None) -> Packet:
    joined = Update(NodeId("b"), BootId(3), 4, NodeState.ALIVE, NodeId("b"), HERE, {"zone": "z1", "port": 7946})
    accused = Update(NodeId("c"), BootId(1), 0, NodeState.SUSPECT, NodeId("a"))
    return Packet(NodeId(sender), BootId(boot), body or Ping(7, NodeId("b")), ClusterState(2, 9), (joined, accused))


@pytest.mark.parametrize("keys", [(), (KEY_A,)], ids=["clear", "sealed"])
@pytest.mark.parametrize(
    "body",
    [Ping(0xFFFFFFFF, NodeId("b")), PingRequest(1, NodeId("b"), HERE), Ack(2, NodeId("b")), Nack(3), Gossip()],
    ids=lambda body: type(body).__name__,
)
def test_every_message_survives_the_way(keys: tuple[bytes, ...], body: Body) -> None:
    sent = packet(body=body)
    assert codec(keys, session=2).decode(codec(keys).encode(sent)) == sent


def test_sealed_packets_show_nothing_of_their_content() -> None:
    sent = packet(sender="a-very-telling-name")
    assert b"a-very-telling-name" in codec().encode(sent)
    assert b"a-very-telling-name" not in codec((KEY_A,)).encode(sent)


def test_faults_are_told_apart() -> None:
    reader = codec((KEY_A,), session=9)
    sealed = codec((KEY_A,)).encode(packet())
    wrong_version = sealed[:2] + b"\x63" + sealed[3:]
    assert reader.decode(bytes(PACKET_MAX_BYTES + 1)) is PacketFault.OVERSIZE
    assert reader.decode(b"") is PacketFault.GARBAGE
    assert reader.decode(b"GET / HTTP/1.1\r\n\r\n") is PacketFault.GARBAGE
    assert reader.decode(wrong_version) is PacketFault.VERSION
    assert reader.decode(codec((KEY_A,), cluster="green").encode(packet())) is PacketFault.FOREIGN_CLUSTER
    assert reader.decode(codec().encode(packet())) is PacketFault.UNSEALED
    assert reader.decode(codec((KEY_B,)).encode(packet())) is PacketFault.UNKNOWN_KEY
    assert reader.decode(sealed[:-1] + bytes([sealed[-1] ^ 1])) is PacketFault.FORGED
    assert codec().decode(sealed) is PacketFault.UNKNOWN_KEY
    assert reader.decode(sealed) == packet()
    assert reader.decode(sealed) is PacketFault.REPLAY


@pytest.mark.parametrize("keys", [(), (KEY_A,)], ids=["clear", "sealed"])
def test_no_single_changed_byte_goes_unnoticed(keys: tuple[bytes, ...]) -> None:
    data = codec(keys).encode(packet())
    for position in range(len(data)):
        changed = data[:position] + bytes([data[position] ^ 0x20]) + data[position + 1 :]
        assert isinstance(codec(keys, session=9).decode(changed), PacketFault), position


def test_the_cluster_id_itself_is_authenticated_not_only_its_tag() -> None:
    data = codec((KEY_A,), cluster="green").encode(packet())
    blue_header = codec((KEY_A,), cluster="blue").encode(packet())[:12]
    assert codec((KEY_A,), session=9, cluster="blue").decode(blue_header + data[12:]) is PacketFault.FORGED


def test_keys_rotate_without_a_moment_of_deafness() -> None:
    one, two = codec((KEY_A,), session=1), codec((KEY_A,), session=2)

    def both_hear() -> None:
        assert two.decode(one.encode(packet())) == packet()
        assert one.decode(two.encode(packet("z"))) == packet("z")

    for keys in ((KEY_A, KEY_B), (KEY_B, KEY_A), (KEY_B,)):
        one.rotate(keys)
        both_hear()
        two.rotate(keys)
        both_hear()
    assert two.decode(codec((KEY_A,), session=3).encode(packet("late"))) is PacketFault.UNKNOWN_KEY


def test_a_packet_is_still_a_replay_after_keys_were_added() -> None:
    sender, reader = codec((KEY_A,), session=1), codec((KEY_A,), session=2)
    data = sender.encode(packet())
    reader.decode(data)
    reader.rotate((KEY_B, KEY_A))
    assert reader.decode(data) is PacketFault.REPLAY


def test_rotation_refuses_what_would_split_the_cluster() -> None:
    with pytest.raises(ValueError, match="sealing on or off"):
        codec((KEY_A,)).rotate(())
    with pytest.raises(ValueError, match="sealing on or off"):
        codec().rotate((KEY_A,))
    with pytest.raises(ValueError, match="at most 2"):
        codec((KEY_A,)).rotate((KEY_A, KEY_B, KEY_C))
    with pytest.raises(ValueError, match="32 bytes"):
        codec((KEY_A,)).rotate((b"short",))


def test_two_keys_with_the_same_identifier_both_open() -> None:
    twin = next(key for number in range(100_000) if key_id(key := number.to_bytes(32, "big")) == key_id(KEY_A))
    reader = codec((KEY_A, twin), session=9)
    assert reader.decode(codec((twin,)).encode(packet())) == packet()
    assert reader.decode(codec((KEY_A,), session=2).encode(packet())) == packet()


def test_a_session_belongs_to_one_process() -> None:
    sender, reader = codec((KEY_A,)), codec((KEY_A,), session=9)
    assert reader.decode(sender.encode(packet("a", boot=1))) == packet("a", boot=1)
    assert reader.decode(sender.encode(packet("b", boot=1))) is PacketFault.FORGED
    assert reader.decode(sender.encode(packet("a", boot=2))) is PacketFault.FORGED


def test_nonces_never_repeat() -> None:
    one, two = codec((KEY_A,), session=1), codec((KEY_A,), session=2)
    nonces = {data[13:37] for _ in range(500) for data in (one.encode(packet()), two.encode(packet()))}
    assert len(nonces) == 1000


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=200))
@example([0, WINDOW - 1, 0, WINDOW, 0, 1, 1])
@example([5000, 5000 - WINDOW, 5000 - WINDOW + 1, 5000 - WINDOW + 1])
def test_the_replay_window_accepts_a_number_once_and_never_a_very_old_one(numbers: list[int]) -> None:
    window = ReplayWindow()
    seen: set[int] = set()
    highest = -1
    for number in numbers:
        fresh = number not in seen and number > highest - WINDOW
        assert window.accept(number) is fresh
        seen.add(number)
        highest = max(highest, number)


@given(st.binary(max_size=1300))
@example(b"DK\x01\x00" + bytes(40))
def test_garbage_is_refused_without_a_sound(data: bytes) -> None:
    for keys in ((), (KEY_A,)):
        assert isinstance(codec(keys).decode(data), PacketFault)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=70) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=25,
)


@given(json_like)
def test_well_framed_nonsense_is_a_packet_within_bounds_or_a_fault(body: object) -> None:
    """Whoever holds the key may still be a broken release."""
    sender = codec((KEY_A,))
    plain = msgspec.msgpack.encode(body)
    header = b"DK\x01\x01" + sender._tag + bytes([key_id(KEY_A)])
    if FRAME_MAX_BYTES + len(plain) > PACKET_MAX_BYTES:
        return
    decoded = codec((KEY_A,), session=9).decode(header + sender._keyring.seal(plain, header + b"blue"))
    assert isinstance(decoded, (Packet, PacketFault))


def test_a_newer_release_may_append_fields() -> None:
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(packet()))
    plain[4][0].append("new field of an update")
    plain[2].append("new field of a message")
    plain.append("new field of a packet")
    assert codec()._parse(msgspec.msgpack.encode(plain)) == packet()


@pytest.mark.parametrize(
    "change",
    [
        {"sender": ""},
        {"sender": "x" * 65},
        {"boot": -1},
        {"boot": 1 << 60},
        {"body": Ping(1 << 33, NodeId("b"))},
        {"body": PingRequest(1, NodeId("b"), Address("10.0.0.1", 70000))},
        {"body": PingRequest(1, NodeId("b"), Address("h" * 65, 1))},
        {"cluster": ClusterState(-1, 0)},
        {"updates": (Update(NodeId("b"), BootId(1), -1, NodeState.DEAD, NodeId("a")),)},
    ],
    ids=str,
)
def test_values_out_of_bounds_are_garbage(change: dict[str, object]) -> None:
    assert codec().decode(codec().encode(msgspec.structs.replace(packet(), **change))) is PacketFault.GARBAGE


node_ids = st.text(min_size=1, max_size=64).filter(lambda text: len(text.encode()) <= 64)
numbers = st.integers(0, 1 << 53)
addresses = st.builds(
    Address, st.text(min_size=1, max_size=64).filter(lambda text: len(text.encode()) <= 64), st.integers(0, 65535)
)
updates = st.builds(
    lambda node, boot, incarnation, state, origin, addr, meta: Update(
        node, boot, incarnation, state, origin, addr, meta
    ),
    node_ids,
    numbers,
    numbers,
    st.sampled_from(list(NodeState)),
    node_ids,
    st.none() | addresses,
    st.none() | st.dictionaries(st.text(max_size=10), st.text(max_size=20) | numbers, max_size=5),
)
bodies = st.one_of(
    st.builds(Ping, st.integers(0, 2**32 - 1), node_ids),
    st.builds(PingRequest, st.integers(0, 2**32 - 1), node_ids, addresses),
    st.builds(Ack, st.integers(0, 2**32 - 1), node_ids),
    st.builds(Nack, st.integers(0, 2**32 - 1)),
    st.just(Gossip()),
)


@given(node_ids, numbers, bodies, numbers, numbers, st.lists(updates, max_size=40))
def test_the_budget_keeps_every_packet_within_the_bound_whatever_it_says(
    sender: NodeId, boot: int, body: Body, epoch: int, version: int, waiting: list[Update]
) -> None:
    budget = update_budget_bytes(sender, body)
    assert budget >= 800
    queue = Dissemination()
    for update in waiting:
        queue.add(update, Urgency.PRESENCE)
    taken = tuple(queue.take(budget, 9))
    composed = Packet(sender, BootId(boot), body, ClusterState(epoch, version), taken)
    for keys in ((), (KEY_A,)):
        data = codec(keys).encode(composed)
        assert len(data) <= PACKET_MAX_BYTES
        assert codec(keys, session=9).decode(data) == composed
    if sum(map(update_bytes, {update.node: update for update in waiting}.values())) <= budget:
        assert len(taken) == len({update.node for update in waiting})


@pytest.mark.parametrize("letter", ["x", "\N{GREEK SMALL LETTER OMEGA}", "\N{GRINNING FACE}"])
def test_the_fullest_packet_with_the_largest_numbers_still_fits_and_wastes_little(letter: str) -> None:
    widest = letter * (64 // len(letter.encode()))
    most = 1 << 53
    target = NodeId(widest)
    for body in (Ping(2**32 - 1, target), PingRequest(2**32 - 1, target, Address(widest, 65535)), Gossip()):
        queue = Dissemination()
        for number in range(200):
            queue.add(Update(NodeId(f"{number}"), BootId(1), 1, NodeState.DEAD, NodeId("o")), Urgency.DEATH)
        taken = tuple(queue.take(update_budget_bytes(target, body), 9))
        data = codec((KEY_A,)).encode(Packet(target, BootId(most), body, ClusterState(most, most), taken))
        assert PACKET_MAX_BYTES - 24 <= len(data) <= PACKET_MAX_BYTES


def test_full_state_crosses_a_stream_and_is_checked() -> None:
    sync = Sync(NodeId("a"), BootId(1), ClusterState(1, 2), packet().updates)
    data = encode_sync("blue", sync)
    assert decode_sync("blue", data) == sync
    for cluster, payload, fault in (
        ("green", data, "another cluster"),
        ("blue", b"\xc1", "malformed"),
        ("blue", bytes(5_000_000), "exceeds"),
        ("blue", msgspec.msgpack.encode([9, "blue", msgspec.to_builtins(sync)]), "version 9"),
    ):
        with pytest.raises(ValueError, match=fault):
            decode_sync(cluster, payload)


def test_gossip_keys_are_read_from_text() -> None:
    hexed, encoded = KEY_A.hex(), base64.b64encode(KEY_B).decode()
    assert parse_gossip_keys("") == ()
    assert parse_gossip_keys(hexed) == (KEY_A,)
    assert parse_gossip_keys(f"{encoded} , {hexed}") == (KEY_B, KEY_A)
    for text, fault in (("zz", "key 1"), (f"{hexed},{hexed[:-2]}", "key 2"), (",".join([hexed] * 3), "at most 2")):
        with pytest.raises(ValueError, match=fault) as caught:
            parse_gossip_keys(text)
        assert hexed not in str(caught.value)
