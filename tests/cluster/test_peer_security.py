"""Who may speak and whose bytes count: strangers, impostors and an attacker on the path, with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dakera_cluster.cluster.peer_client import PeerClient
from dakera_cluster.cluster.peer_errors import PeerUnavailableError
from dakera_cluster.cluster.peer_services import Context
from dakera_cluster.cluster.peer_settings import PeerSettings, peer_tls
from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.members import Address
from dakera_cluster.protocols.peer_frames import LENGTH
from tests.support.peer_world import KEY, PATIENCE_S, A, B, Gate, World, until

OLD = bytes(range(100, 132))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with asyncio.timeout(4 * PATIENCE_S):
        yield world
        await world.close()


class Ledger:
    """A service that must run exactly once for each call."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []

    async def __call__(self, payload: bytes, context: Context) -> bytes:
        self.entries.append(payload)
        return b"noted"


async def refused(client: PeerClient, node: NodeId = B) -> str:
    with pytest.raises(PeerUnavailableError) as caught:
        await client.call(node, "echo", b"")
    assert not caught.value.ambiguous
    return caught.value.message


@pytest.mark.parametrize(
    ("server", "client", "refusal"),
    [
        ({}, {"secrets": (OLD,)}, "secret"),
        ({}, {"secrets": ()}, "unsealed"),
        ({"secrets": ()}, {}, "unsealed"),
        ({}, {"cluster": "red"}, "cluster"),
        ({"versions": (3, 4)}, {"versions": (1, 2)}, "version"),
    ],
)
async def test_who_does_not_belong_is_refused_counted_and_named_in_the_log(
    world: World,
    server: dict[str, object],
    client: dict[str, object],
    refusal: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    there = await world.server(**server)
    here = world.client(**client)
    with caplog.at_level(logging.WARNING):
        await refused(here)
    assert there.stats().refusals == {refusal: 1} == here.stats().refusals
    assert there.stats().opened == 0
    lines = [record.getMessage() for record in caplog.records]
    assert any("refused a peer connection" in line and "'a'" in line for line in lines)
    assert any("no peer connection to b" in line for line in lines)
    await until(lambda: not there.strangers)


async def test_another_node_at_the_address_is_not_talked_to(world: World) -> None:
    await world.server(NodeId("c"))
    world.addresses[B] = world.addresses[NodeId("c")]
    client = world.client()
    await refused(client)
    assert client.stats().refusals == {"node": 1}


async def test_secrets_rotate_without_a_broken_call(world: World) -> None:
    server = await world.server(secrets=(OLD,))
    number = 0

    async def check(secrets: tuple[bytes, ...]) -> None:
        nonlocal number
        number += 1
        client = world.client(NodeId(f"c{number}"), secrets=secrets)
        assert await client.call(B, "echo", b"ok") == b"ok"

    await check((OLD,))
    server.rotate_secrets((OLD, KEY))
    await check((OLD,))
    await check((KEY, OLD))
    server.rotate_secrets((KEY, OLD))
    await check((OLD,))
    await check((KEY,))
    server.rotate_secrets((KEY,))
    await check((KEY, OLD))
    await refused(world.client(NodeId("late"), secrets=(OLD,)))


async def test_two_releases_speak_the_older_version(world: World) -> None:
    server = await world.server(versions=(1, 2))

    async def version(payload: bytes, context: Context) -> bytes:
        return b"%d" % context.version

    server.register("version", version)
    assert await world.client(versions=(1, 1)).call(B, "version", b"") == b"1"
    assert await world.client(NodeId("n"), versions=(2, 3)).call(B, "version", b"") == b"2"


async def test_a_recorded_connection_cannot_be_played_again(world: World) -> None:
    server = await world.server()
    ledger = Ledger()
    server.register("note", ledger)
    relay = await world.relay()
    client = world.client()
    assert await client.call(B, "note", b"once") == b"noted"
    await client.close()
    reader, writer = await asyncio.open_connection(*relay._target)
    for chunk in relay.sent:
        writer.write(chunk)
        await asyncio.sleep(0.02)
    async with asyncio.timeout(PATIENCE_S):
        await reader.read()
    writer.close()
    assert ledger.entries == [b"once"]
    assert server.stats().refusals == {"secret": 1}


async def test_a_recorded_frame_cannot_be_played_into_the_connection(world: World) -> None:
    server = await world.server()
    ledger = Ledger()
    server.register("note", ledger)
    relay = await world.relay()
    client = world.client()
    await client.call(B, "echo", b"")
    relay.sent.clear()
    await client.call(B, "note", b"once")
    assert relay.server_side is not None
    relay.server_side.write(b"".join(relay.sent))
    await until(lambda: server.stats().faults)
    assert server.stats().faults == {"forged": 1}
    assert ledger.entries == [b"once"]
    await until(lambda: server.stats().connections == client.stats().connections == 0)
    assert await client.call(B, "note", b"twice") == b"noted"


async def test_a_frame_of_another_connection_cannot_be_injected(world: World) -> None:
    server = await world.server()
    ledger = Ledger()
    server.register("note", ledger)
    relay = await world.relay()
    first, second = world.client(NodeId("first")), world.client(NodeId("second"))
    await first.call(B, "echo", b"")
    relay.sent.clear()
    await first.call(B, "note", b"mine")
    recorded = b"".join(relay.sent)
    await second.call(B, "echo", b"")
    assert relay.server_side is not None
    relay.server_side.write(recorded)
    await until(lambda: server.stats().faults == {"forged": 1})
    assert ledger.entries == [b"mine"]


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
async def test_an_altered_frame_ends_the_connection_and_nothing_of_it_counts(world: World, direction: str) -> None:
    server = await world.server()
    ledger = Ledger()
    server.register("note", ledger)
    relay = await world.relay()
    client = world.client()
    await client.call(B, "echo", b"")
    setattr(relay, direction, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(PeerUnavailableError) as caught:
        await client.call(B, "note", b"pay 10")
    assert caught.value.ambiguous
    assert ledger.entries == ([] if direction == "to_server" else [b"pay 10"])
    assert (server if direction == "to_server" else client).stats().faults == {"forged": 1}


async def test_payloads_cannot_be_read_on_the_way(world: World) -> None:
    await world.server()
    relay = await world.relay()
    await world.client().call(B, "echo", b"the quick brown fox")
    assert b"quick brown" not in b"".join(relay.sent)


async def test_garbage_and_half_frames_of_strangers_do_no_harm(world: World) -> None:
    server = await world.server()
    address = world.addresses[B]
    for garbage in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", LENGTH.pack(5) + b"hello", LENGTH.pack(0), b"\xff" * 5000):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(garbage)
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):  # a reset is as good as an end
                await reader.read()
        writer.close()
    for half in (b"", b"\x00", LENGTH.pack(100) + b"half"):
        _, writer = await asyncio.open_connection(*address)
        writer.write(half)
        await writer.drain()
        writer.close()
    assert await world.client().call(B, "echo", b"fine") == b"fine"
    await until(lambda: not server.strangers)
    assert server.stats().opened == 1


async def test_a_connection_that_breaks_inside_a_frame_delivers_nothing(world: World) -> None:
    server = await world.server()
    ledger = Ledger()
    server.register("note", ledger)
    relay = await world.relay()
    client = world.client()
    await client.call(B, "echo", b"")

    def half(data: bytes) -> bytes:
        asyncio.get_running_loop().call_later(0.05, relay.cut)
        return data[: len(data) // 2]

    relay.to_server = half
    with pytest.raises(PeerUnavailableError):
        await client.call(B, "note", b"x" * 100)
    assert ledger.entries == []
    await until(lambda: server.stats().connections == 0)


async def test_a_silent_stranger_is_shown_the_door(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dakera_cluster.cluster.peer_server.CHECK_INTERVAL_S", 0.02)
    server = await world.server(settings=PeerSettings(connect_timeout_ms=60, strangers=2))
    waiting = [await asyncio.open_connection(*world.addresses[B]) for _ in range(3)]
    await until(lambda: server.stats().refusals == {"busy": 1})
    await until(lambda: server.stats().faults == {"stranger": 2})
    for _, writer in waiting:
        writer.close()
    assert await world.client().call(B, "echo", b"now") == b"now"


# -- TLS


class Authority:
    """Signs certificates for nodes."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = _certificate(name, self.key.public_key(), name, self.key, is_authority=True)

    def issue(self, directory: Path, name: str) -> tuple[Path, Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        certificate = _certificate(name, key.public_key(), str(issuer), self.key, is_authority=False)
        paths = directory / f"{name}.crt", directory / f"{name}.key", directory / f"{name}-ca.crt"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        paths[2].write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return paths


def _certificate(
    name: str,
    public: ec.EllipticCurvePublicKey,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(signer, hashes.SHA256())
    )


async def test_peers_with_certificates_of_one_authority_talk_over_tls(world: World, tmp_path: Path) -> None:
    authority = Authority("nodes")
    server_tls, _ = peer_tls(*authority.issue(tmp_path, "b"))
    _, client_tls = peer_tls(*authority.issue(tmp_path, "a"))
    server = await world.server(tls=server_tls)
    relay = await world.relay()
    client = world.client(tls=client_tls)
    payload = bytes(500_000)
    assert await client.call(B, "echo", payload) == payload
    assert server.stats().opened == 1
    assert b"dakera-peer" not in b"".join(relay.sent)


async def test_a_certificate_of_another_authority_or_none_is_refused(world: World, tmp_path: Path) -> None:
    server_tls, _ = peer_tls(*Authority("nodes").issue(tmp_path, "b"))
    _, stranger_tls = peer_tls(*Authority("others").issue(tmp_path, "x"))
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    server = await world.server(tls=server_tls)
    for tls in (stranger_tls, bare, None):
        await refused(world.client(tls=tls))
    assert server.stats().opened == 0


async def test_tls_does_not_replace_the_secret(world: World, tmp_path: Path) -> None:
    server_tls, client_tls = peer_tls(*Authority("nodes").issue(tmp_path, "b"))
    server = await world.server(tls=server_tls)
    await refused(world.client(tls=client_tls, secrets=(OLD,)))
    assert server.stats().refusals == {"secret": 1}


async def test_without_a_secret_the_protocol_is_the_same(world: World) -> None:
    server = await world.server(secrets=())
    gate = Gate()
    server.register("gate", gate)
    client = world.client(secrets=())
    call = asyncio.create_task(client.call(B, "gate", b"open"))
    await until(lambda: gate.started)
    assert await client.call(B, "echo", b"x") == b"x"
    gate.open.set()
    assert await call == b"open"


async def test_a_probe_tells_a_node_from_an_impostor(world: World) -> None:
    await world.server(secrets=(OLD,))
    assert not await world.client().probe(Address(*world.addresses[B]), B)
    assert await world.client(A, secrets=(OLD,)).probe(Address(*world.addresses[B]), B)
