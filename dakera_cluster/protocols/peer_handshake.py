"""How two peers prove to each other who they are, agree on a version and on keys. Pure: randomness is a parameter.

::

    dialler                                                      acceptor
    HELLO  versions, cluster, node, boot, nonce, share   ----->
                                                         <-----  HELLO    version, node, boot, nonce, share
    PROOF  one per accepted secret                       ----->
                                                         <-----  WELCOME  proof under the secret that matched
                                   (REFUSED code, text at any point instead)

``share`` is an X25519 public key made for this connection. With T = SHA-256 over both HELLOs as they were on the wire,

    material = HKDF-SHA256(input = secret | shared point, salt = T)       told apart by labels:
    proofs     HMAC-SHA256 under the dialler's and the acceptor's proof key, over T
    seals      one AES-256-GCM key for each direction (`peer_frames`)

Both nonces, both shares, both nodes with their boots, the cluster and the offered versions are in T, so a recorded
handshake proves nothing later, a proof cannot be mirrored to its sender, and a version cannot be talked down. The dialler
proves first: whoever only knocks learns nothing against which guesses of the secret could be tried. The shared point gives
forward secrecy: a secret that leaks later does not open recorded traffic. Without a secret the same four messages are sent,
proofs are empty and records are not sealed; a side that has a secret never accepts one that has none.

Two secrets are accepted while one is rotated: roll out [old, new], [new, old], [new] on all nodes in turn.

Every message is a msgpack array to which later versions append. Called by `cluster.peer_client` and `cluster.peer_server`.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Sequence
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.members import WireBoot, WireNodeId, WireNumber
from dakera_cluster.protocols.peer_frames import CounterSeal, NoSeal, Seal

MAGIC = "dakera-peer"
VERSION_MIN = 1
VERSION_MAX = 1
KEY_BYTES = 32
NONCE_BYTES = 32
SECRETS_MAX = 2
TEXT_MAX_CHARS = 256

_SCRYPT_COST = 1 << 14


def stretch_secret(secret: str, cluster_id: str) -> bytes:
    """The 32-byte key of a cluster secret (scrypt, RFC 7914, N = 2^14, r = 8, p = 1; about 50 ms and 16 MiB, once a start):
    operators choose secrets, and an attacker who poses as a node could try guesses at leisure."""
    salt = b"dakera peer secret " + cluster_id.encode()
    return hashlib.scrypt(secret.encode(), salt=salt, n=_SCRYPT_COST, r=8, p=1, dklen=KEY_BYTES)


class Refusal(enum.StrEnum):
    """Why a handshake ended; travels as text, unknown texts read as MALFORMED."""

    MALFORMED = "malformed"
    VERSION = "version"
    CLUSTER = "cluster"
    NODE = "node"
    SECRET = "secret"
    UNSEALED = "unsealed"
    BUSY = "busy"

    @property
    def text(self) -> str:
        return _TEXTS[self]


_TEXTS = {
    Refusal.MALFORMED: "does not speak the peer protocol",
    Refusal.VERSION: "no protocol version in common",
    Refusal.CLUSTER: "belongs to another cluster",
    Refusal.NODE: "another node answers at this address",
    Refusal.SECRET: "has another cluster secret",
    Refusal.UNSEALED: "one side has a cluster secret, the other has none",
    Refusal.BUSY: "has too many connections",
}


class HandshakeError(Exception):
    """The handshake ended. ``answer`` is the record body to send before closing, if any."""

    def __init__(self, refusal: Refusal, detail: str, *, by_peer: bool = False, answer: bytes = b"") -> None:
        super().__init__(f"{refusal.text}: {detail}" if detail else refusal.text)
        self.refusal = refusal
        self.by_peer = by_peer
        self.answer = answer


class Endpoint(msgspec.Struct, frozen=True):
    """What a node says of itself. ``secrets``: 32-byte keys, the preferred one first, empty for none; ``message_bytes`` and
    ``inflight``: what it accepts on one connection."""

    cluster_id: str
    node: NodeId
    boot: BootId
    secrets: tuple[bytes, ...] = ()
    versions: tuple[int, int] = (VERSION_MIN, VERSION_MAX)
    message_bytes: int = 64 * 1024**2
    inflight: int = 1024

    def __post_init__(self) -> None:
        if len(self.secrets) > SECRETS_MAX or any(len(key) != KEY_BYTES for key in self.secrets):
            raise ValueError(f"at most {SECRETS_MAX} peer secrets of {KEY_BYTES} bytes each")
        if not 1 <= self.versions[0] <= self.versions[1]:
            raise ValueError(f"versions {self.versions}")


class Session(msgspec.Struct, frozen=True):
    """The result: who the peer is, what both speak, how records are sealed, what the peer accepts."""

    node: NodeId
    boot: BootId
    version: int
    message_bytes: int
    inflight: int
    seal: Seal


Secret32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Digest = Annotated[bytes, msgspec.Meta(max_length=32)]
_Version = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]


class _Base(msgspec.Struct, frozen=True, array_like=True):
    pass


class ClientHello(_Base, frozen=True, tag=1):
    magic: str
    version_min: _Version
    version_max: _Version
    cluster_id: Annotated[str, msgspec.Meta(max_length=TEXT_MAX_CHARS)]
    node: WireNodeId
    boot: WireBoot
    to_node: Annotated[str, msgspec.Meta(max_length=64)]
    """Empty when the dialler knows only an address."""
    sealed: bool
    nonce: Secret32
    share: Secret32
    message_bytes: WireNumber
    inflight: WireNumber


class ServerHello(_Base, frozen=True, tag=2):
    version: _Version
    node: WireNodeId
    boot: WireBoot
    sealed: bool
    nonce: Secret32
    share: Secret32
    message_bytes: WireNumber
    inflight: WireNumber


class Proof(_Base, frozen=True, tag=3):
    proofs: Annotated[list[_Digest], msgspec.Meta(max_length=SECRETS_MAX)]


class Welcome(_Base, frozen=True, tag=4):
    proof: _Digest


class Refused(_Base, frozen=True, tag=5):
    code: Annotated[str, msgspec.Meta(max_length=32)]
    text: Annotated[str, msgspec.Meta(max_length=TEXT_MAX_CHARS)]


_Step = ClientHello | ServerHello | Proof | Welcome | Refused
_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[_Step] = msgspec.msgpack.Decoder(_Step)


class Dialler:
    """The side that opened the connection: ``hello()`` first, then ``receive`` until ``session`` is there."""

    def __init__(self, me: Endpoint, *, to_node: NodeId | None, nonce: bytes, private: bytes) -> None:
        """``nonce`` and ``private``: 32 random bytes each, for this connection only."""
        self._me = me
        self._to_node = to_node
        self._private = X25519PrivateKey.from_private_bytes(private)
        self._hello = _encode(
            ClientHello(
                MAGIC,
                me.versions[0],
                me.versions[1],
                me.cluster_id,
                me.node,
                me.boot,
                to_node or "",
                bool(me.secrets),
                nonce,
                self._private.public_key().public_bytes_raw(),
                me.message_bytes,
                me.inflight,
            )
        )
        self._theirs: ServerHello | None = None
        self._materials: list[_Material] = []
        self.session: Session | None = None

    def hello(self) -> bytes:
        """The first record's body."""
        return self._hello

    def receive(self, body: bytes) -> bytes:
        """Take a record's body, return the one to send, if any. Raises HandshakeError."""
        step = _parse(body)
        if isinstance(step, ServerHello) and self._theirs is None:
            return self._prove(step, body)
        if isinstance(step, Welcome) and self._theirs is not None and self.session is None:
            self._accept(step, self._theirs)
            return b""
        raise HandshakeError(Refusal.MALFORMED, f"{type(step).__name__} is out of turn")

    def _prove(self, theirs: ServerHello, body: bytes) -> bytes:
        low, high = self._me.versions
        if not low <= theirs.version <= high:
            raise HandshakeError(Refusal.VERSION, f"it chose {theirs.version}, we speak {low} to {high}")
        if self._to_node is not None and theirs.node != self._to_node:
            raise HandshakeError(Refusal.NODE, f"expected {self._to_node!r}, found {theirs.node!r}")
        if theirs.sealed != bool(self._me.secrets):
            raise HandshakeError(Refusal.UNSEALED, "")
        self._theirs = theirs
        transcript = _transcript(self._hello, body)
        point = _exchange(self._private, theirs.share) if theirs.sealed else b""
        self._materials = [_Material(secret, point, transcript) for secret in self._me.secrets]
        return _encode(Proof([material.proof("dialler") for material in self._materials]))

    def _accept(self, welcome: Welcome, theirs: ServerHello) -> None:
        seal: Seal = NoSeal()
        if self._materials:
            for material in self._materials:
                if hmac.compare_digest(material.proof("acceptor"), welcome.proof):
                    seal = CounterSeal(material.key("to acceptor"), material.key("to dialler"))
                    break
            else:
                raise HandshakeError(Refusal.SECRET, f"{theirs.node!r} could not prove that it knows ours")
        self.session = Session(theirs.node, theirs.boot, theirs.version, theirs.message_bytes, theirs.inflight, seal)


class Acceptor:
    """The side that listens: ``receive`` until ``session`` is there."""

    def __init__(self, me: Endpoint, *, nonce: bytes, private: bytes) -> None:
        self._me = me
        self._nonce = nonce
        self._private = private
        self._theirs: ClientHello | None = None
        self._transcript = b""
        self._version = 0
        self.session: Session | None = None

    @property
    def claimed(self) -> str:
        """Who the other side says it is, for the log."""
        return f"{self._theirs.node!r} of {self._theirs.cluster_id!r}" if self._theirs is not None else "unnamed"

    def receive(self, body: bytes) -> bytes:
        """Take a record's body, return the one to send. Raises HandshakeError, whose ``answer`` tells the other side."""
        try:
            step = _parse(body)
            if isinstance(step, ClientHello) and self._theirs is None:
                return self._greet(step, body)
            if isinstance(step, Proof) and self._theirs is not None and self.session is None:
                return self._welcome(step, self._theirs)
            raise HandshakeError(Refusal.MALFORMED, f"{type(step).__name__} is out of turn")
        except HandshakeError as error:
            if not error.by_peer:
                error.answer = refuse(error.refusal, "")
            raise

    def _greet(self, theirs: ClientHello, body: bytes) -> bytes:
        me = self._me
        if theirs.magic != MAGIC:
            raise HandshakeError(Refusal.MALFORMED, "no greeting")
        self._theirs = theirs
        version = min(theirs.version_max, me.versions[1])
        if version < max(theirs.version_min, me.versions[0]):
            spoken = f"it speaks {theirs.version_min} to {theirs.version_max}, we {me.versions[0]} to {me.versions[1]}"
            raise HandshakeError(Refusal.VERSION, spoken)
        if theirs.cluster_id != me.cluster_id:
            raise HandshakeError(Refusal.CLUSTER, f"it says {theirs.cluster_id!r}, ours is {me.cluster_id!r}")
        if theirs.to_node not in ("", me.node):
            raise HandshakeError(Refusal.NODE, f"it wants {theirs.to_node!r}, this is {me.node!r}")
        if theirs.sealed != bool(me.secrets):
            raise HandshakeError(Refusal.UNSEALED, "")
        self._version = version
        share = X25519PrivateKey.from_private_bytes(self._private).public_key().public_bytes_raw()
        answer = _encode(
            ServerHello(version, me.node, me.boot, bool(me.secrets), self._nonce, share, me.message_bytes, me.inflight)
        )
        self._transcript = _transcript(body, answer)
        return answer

    def _welcome(self, step: Proof, theirs: ClientHello) -> bytes:
        seal: Seal = NoSeal()
        answer = b""
        if self._me.secrets:
            point = _exchange(X25519PrivateKey.from_private_bytes(self._private), theirs.share)
            material = self._match(step.proofs, point)
            if material is None:
                raise HandshakeError(Refusal.SECRET, f"{theirs.node!r} could not prove that it knows ours")
            answer = material.proof("acceptor")
            seal = CounterSeal(material.key("to dialler"), material.key("to acceptor"))
        self.session = Session(theirs.node, theirs.boot, self._version, theirs.message_bytes, theirs.inflight, seal)
        return _encode(Welcome(answer))

    def _match(self, proofs: Sequence[bytes], point: bytes) -> _Material | None:
        for secret in self._me.secrets:
            material = _Material(secret, point, self._transcript)
            expected = material.proof("dialler")
            if any(hmac.compare_digest(expected, proof) for proof in proofs):
                return material
        return None


def refuse(refusal: Refusal, text: str) -> bytes:
    """The body that tells a dialler why the connection is about to close."""
    return _encode(Refused(refusal.value, (text or refusal.text)[:TEXT_MAX_CHARS]))


class _Material:
    """All keys of one connection under one secret."""

    __slots__ = ("_input", "_transcript")

    def __init__(self, secret: bytes, point: bytes, transcript: bytes) -> None:
        self._input = secret + point
        self._transcript = transcript

    def key(self, label: str) -> bytes:
        derive = HKDF(SHA256(), KEY_BYTES, salt=self._transcript, info=b"dakera peer " + label.encode())
        return derive.derive(self._input)

    def proof(self, side: str) -> bytes:
        return hmac.digest(self.key(f"{side} proof"), self._transcript, "sha256")


def _parse(body: bytes) -> _Step:
    try:
        step = _decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise HandshakeError(Refusal.MALFORMED, str(error)) from None
    if isinstance(step, Refused):
        refusal = Refusal(step.code) if step.code in set(Refusal) else Refusal.MALFORMED
        raise HandshakeError(refusal, f"the peer says: {step.text}", by_peer=True)
    return step


def _transcript(client_hello: bytes, server_hello: bytes) -> bytes:
    digest = hashlib.sha256(b"dakera peer handshake 1")
    for part in (client_hello, server_hello):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()


def _exchange(private: X25519PrivateKey, share: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(share))
    except ValueError:
        raise HandshakeError(Refusal.MALFORMED, "a share of low order") from None
