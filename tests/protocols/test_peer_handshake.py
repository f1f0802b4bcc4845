"""The handshake as a conversation of two state machines; whoever stands between them is the test."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.peer_frames import HANDSHAKE_MAX_BYTES, CounterSeal, FrameError, NoSeal
from dakera_cluster.protocols.peer_handshake import (
    Acceptor,
    Dialler,
    Endpoint,
    HandshakeError,
    Proof,
    Refusal,
    _Material,
    _transcript,
    stretch_secret,
)

KEY, OLD = bytes(range(32)), bytes(range(100, 132))
_fresh = itertools.count(1)


def fresh() -> bytes:
    return next(_fresh).to_bytes(32, "little")


def endpoint(node: str, *secrets: bytes, cluster: str = "blue", versions: tuple[int, int] = (1, 1)) -> Endpoint:
    return Endpoint(cluster, NodeId(node), BootId(7), secrets, versions)


def pair(a: Endpoint, b: Endpoint, to_node: str | None = "b") -> tuple[Dialler, Acceptor]:
    dialler = Dialler(a, to_node=None if to_node is None else NodeId(to_node), nonce=fresh(), private=fresh())
    return dialler, Acceptor(b, nonce=fresh(), private=fresh())


def talk(dialler: Dialler, acceptor: Acceptor) -> None:
    """Carry the handshake through. A refusal by the acceptor reaches the dialler."""
    body = dialler.hello()
    while dialler.session is None:
        assert len(body) <= HANDSHAKE_MAX_BYTES
        try:
            answer = acceptor.receive(body)
        except HandshakeError as error:
            with pytest.raises(HandshakeError) as told:
                dialler.receive(error.answer)
            assert told.value.refusal is error.refusal and told.value.by_peer
            raise
        body = dialler.receive(answer)


def test_both_sides_learn_who_the_other_is_and_share_keys() -> None:
    dialler, acceptor = pair(endpoint("a", KEY), endpoint("b", KEY))
    talk(dialler, acceptor)
    ours, theirs = dialler.session, acceptor.session
    assert ours is not None and theirs is not None
    assert (ours.node, ours.boot, theirs.node, theirs.boot) == ("b", 7, "a", 7)
    assert theirs.seal.open(ours.seal.close(b"there")) == b"there"
    assert ours.seal.open(theirs.seal.close(b"back")) == b"back"
    assert isinstance(ours.seal, CounterSeal)


def test_keys_differ_between_connections_and_directions() -> None:
    sealed = []
    for _ in range(2):
        dialler, acceptor = pair(endpoint("a", KEY), endpoint("b", KEY))
        talk(dialler, acceptor)
        assert dialler.session is not None and acceptor.session is not None
        sealed += [dialler.session.seal.close(b"same"), acceptor.session.seal.close(b"same")]
    assert len(set(sealed)) == 4


def test_the_secret_and_all_that_was_said_do_not_open_what_was_sealed() -> None:
    """Forward secrecy: an observer who learns the secret later still lacks the shared point."""
    dialler, acceptor = pair(endpoint("a", KEY), endpoint("b", KEY))
    greeting = acceptor.receive(dialler.hello())
    dialler.receive(acceptor.receive(dialler.receive(greeting)))
    assert dialler.session is not None
    sealed = dialler.session.seal.close(b"x")
    for guess in (b"", bytes(32)):
        observer = _Material(KEY, guess, _transcript(dialler.hello(), greeting))
        with pytest.raises(FrameError):
            CounterSeal(observer.key("to dialler"), observer.key("to acceptor")).open(sealed)


def test_without_secrets_nothing_is_sealed() -> None:
    dialler, acceptor = pair(endpoint("a"), endpoint("b"))
    talk(dialler, acceptor)
    assert dialler.session is not None and isinstance(dialler.session.seal, NoSeal)


@pytest.mark.parametrize(("mine", "theirs"), [((KEY,), ()), ((), (KEY,))])
def test_a_side_with_a_secret_never_talks_to_one_without(mine: tuple[bytes, ...], theirs: tuple[bytes, ...]) -> None:
    with pytest.raises(HandshakeError) as caught:
        talk(*pair(endpoint("a", *mine), endpoint("b", *theirs)))
    assert caught.value.refusal is Refusal.UNSEALED


def test_a_wrong_secret_is_refused_by_the_acceptor() -> None:
    dialler, acceptor = pair(endpoint("a", OLD), endpoint("b", KEY))
    with pytest.raises(HandshakeError) as caught:
        talk(dialler, acceptor)
    assert caught.value.refusal is Refusal.SECRET
    assert acceptor.session is None and dialler.session is None


def test_an_acceptor_that_does_not_know_the_secret_is_refused_by_the_dialler() -> None:
    """An impostor that accepts any proof still cannot answer with one."""
    dialler, impostor = pair(endpoint("a", KEY), endpoint("b", OLD))
    proof = dialler.receive(impostor.receive(dialler.hello()))
    assert proof
    for forged in (b"", bytes(32), msgspec.msgpack.decode(proof)[1][0]):
        with pytest.raises(HandshakeError) as caught:
            dialler.receive(msgspec.msgpack.encode([4, forged]))
        assert caught.value.refusal is Refusal.SECRET
    assert dialler.session is None


ROTATION = [(OLD,), (OLD, KEY), (KEY, OLD), (KEY,)]


@pytest.mark.parametrize("step", range(3))
def test_neighbouring_steps_of_a_rotation_understand_each_other(step: int) -> None:
    for mine, theirs in itertools.product(ROTATION[step : step + 2], repeat=2):
        dialler, acceptor = pair(endpoint("a", *mine), endpoint("b", *theirs))
        talk(dialler, acceptor)
        assert dialler.session is not None and acceptor.session is not None
        assert acceptor.session.seal.open(dialler.session.seal.close(b"x")) == b"x"


def test_a_recorded_handshake_proves_nothing_to_another_connection() -> None:
    dialler, acceptor = pair(endpoint("a", KEY), endpoint("b", KEY))
    hello = dialler.hello()
    proof = dialler.receive(acceptor.receive(hello))
    acceptor.receive(proof)
    assert acceptor.session is not None
    again = Acceptor(endpoint("b", KEY), nonce=fresh(), private=fresh())
    again.receive(hello)
    with pytest.raises(HandshakeError) as caught:
        again.receive(proof)
    assert caught.value.refusal is Refusal.SECRET


@pytest.mark.parametrize("field", [2, 3, 6, 9, 10, 11, 12])
def test_whatever_is_altered_in_the_greeting_breaks_the_proof(field: int) -> None:
    """Version range, node, boot, nonce, share and limits of the dialler's HELLO, changed on the way."""
    dialler, acceptor = pair(endpoint("a", KEY, versions=(1, 3)), endpoint("b", KEY, versions=(1, 3)))
    hello = msgspec.msgpack.decode(dialler.hello())
    hello[field] = {2: 2, 3: 2, 6: 9, 9: bytes(32), 10: hello[10][::-1], 11: 5, 12: 5}[field]
    answer = acceptor.receive(msgspec.msgpack.encode(hello))
    with pytest.raises(HandshakeError) as caught:
        acceptor.receive(dialler.receive(answer))
    assert caught.value.refusal is Refusal.SECRET


def test_a_version_cannot_be_talked_down() -> None:
    dialler, acceptor = pair(endpoint("a", KEY, versions=(1, 3)), endpoint("b", KEY, versions=(1, 3)))
    answer = msgspec.msgpack.decode(acceptor.receive(dialler.hello()))
    assert answer[1] == 3
    answer[1] = 1
    with pytest.raises(HandshakeError):
        acceptor.receive(dialler.receive(msgspec.msgpack.encode(answer)))


@pytest.mark.parametrize(
    ("mine", "theirs", "chosen"),
    [((1, 1), (1, 2), 1), ((1, 3), (2, 5), 3), ((2, 4), (1, 2), 2), ((1, 1), (2, 3), None)],
)
def test_the_newest_common_version_is_spoken(
    mine: tuple[int, int], theirs: tuple[int, int], chosen: int | None
) -> None:
    dialler, acceptor = pair(endpoint("a", KEY, versions=mine), endpoint("b", KEY, versions=theirs))
    if chosen is None:
        with pytest.raises(HandshakeError) as caught:
            talk(dialler, acceptor)
        assert caught.value.refusal is Refusal.VERSION
        return
    talk(dialler, acceptor)
    assert dialler.session is not None and acceptor.session is not None
    assert dialler.session.version == acceptor.session.version == chosen


def test_messages_with_fields_of_a_later_release_are_understood() -> None:
    a, b = endpoint("a"), endpoint("b")
    dialler, acceptor = pair(a, b)
    hello = [*msgspec.msgpack.decode(dialler.hello()), "new", {"more": 1}]
    answer = [*msgspec.msgpack.decode(acceptor.receive(msgspec.msgpack.encode(hello))), 42]
    welcome = acceptor.receive(dialler.receive(msgspec.msgpack.encode(answer)))
    dialler.receive(msgspec.msgpack.encode([*msgspec.msgpack.decode(welcome), None]))
    assert dialler.session is not None


def test_another_cluster_is_refused() -> None:
    with pytest.raises(HandshakeError) as caught:
        talk(*pair(endpoint("a", KEY, cluster="red"), endpoint("b", KEY)))
    assert caught.value.refusal is Refusal.CLUSTER


def test_another_node_at_the_address_is_refused_by_either_side() -> None:
    with pytest.raises(HandshakeError) as caught:
        talk(*pair(endpoint("a", KEY), endpoint("b", KEY), to_node="c"))
    assert caught.value.refusal is Refusal.NODE
    dialler, _ = pair(endpoint("a"), endpoint("b"), to_node="c")
    liar = Acceptor(endpoint("b"), nonce=fresh(), private=fresh())
    hello = msgspec.msgpack.decode(dialler.hello())
    hello[7] = ""
    with pytest.raises(HandshakeError) as caught:
        dialler.receive(liar.receive(msgspec.msgpack.encode(hello)))
    assert caught.value.refusal is Refusal.NODE


def test_a_share_of_low_order_is_refused() -> None:
    dialler, acceptor = pair(endpoint("a", KEY), endpoint("b", KEY))
    hello = msgspec.msgpack.decode(dialler.hello())
    hello[10] = bytes(32)
    acceptor.receive(msgspec.msgpack.encode(hello))
    with pytest.raises(HandshakeError) as caught:
        acceptor.receive(msgspec.msgpack.encode(Proof([bytes(32)])))
    assert caught.value.refusal is Refusal.MALFORMED


@pytest.mark.parametrize("body", [b"", b"GET / HTTP/1.1\r\n", b"\x93\x01", msgspec.msgpack.encode([9, 1])])
def test_garbage_is_refused(body: bytes) -> None:
    _, acceptor = pair(endpoint("a", KEY), endpoint("b", KEY))
    with pytest.raises(HandshakeError) as caught:
        acceptor.receive(body)
    assert caught.value.refusal is Refusal.MALFORMED


def test_a_proof_before_the_greeting_or_twice_is_refused() -> None:
    dialler, acceptor = pair(endpoint("a", KEY), endpoint("b", KEY))
    with pytest.raises(HandshakeError):
        acceptor.receive(msgspec.msgpack.encode(Proof([])))
    dialler, acceptor = pair(endpoint("a", KEY), endpoint("b", KEY))
    proof = dialler.receive(acceptor.receive(dialler.hello()))
    acceptor.receive(proof)
    with pytest.raises(HandshakeError):
        acceptor.receive(proof)


def test_a_seal_of_one_connection_does_not_open_on_another() -> None:
    sessions = []
    for _ in range(2):
        dialler, acceptor = pair(endpoint("a", KEY), endpoint("b", KEY))
        talk(dialler, acceptor)
        assert dialler.session is not None and acceptor.session is not None
        sessions.append((dialler.session, acceptor.session))
    with pytest.raises(FrameError):
        sessions[1][1].seal.open(sessions[0][0].seal.close(b"x"))


def test_secrets_are_stretched_for_each_cluster() -> None:
    assert len({stretch_secret("hunter22", "blue"), stretch_secret("hunter22", "red"), stretch_secret("x", "red")}) == 3
    assert stretch_secret("hunter22", "blue") == stretch_secret("hunter22", "blue")
    with pytest.raises(ValueError, match="32 bytes"):
        endpoint("a", b"short")
