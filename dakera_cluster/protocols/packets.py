"""Gossip packets: the messages, the bound on their size, and the codec between them and datagrams.

    frame    "DK" | version 1B | seal 1B | cluster tag 8B | rest
    clear    seal = 0;  rest = crc32 4B | msgpack(Packet)
    sealed   seal = 1;  rest = key id 1B | session 16B | counter 8B | AES-256-GCM(msgpack(Packet)) | tag 16B

The associated data of a sealed frame are the header, the key id and the whole cluster id. A newer release may append
fields to any array: older ones skip what they do not know.

Invariants: an encoded packet never exceeds ``PACKET_MAX_BYTES``; ``decode`` never raises and never returns a packet that
breaks a bound; every refusal has its own ``PacketFault``. Called by the UDP driver; the simulator passes ``Packet`` as is.
"""

from __future__ import annotations

import enum
import hashlib
import zlib
from collections.abc import Sequence
from typing import Annotated

import msgspec

from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.members import Address, Update, WireBoot, WireNodeId, WireNumber
from dakera_cluster.protocols.sealing import COUNTER_BYTES, SESSION_BYTES, TAG_BYTES, Keyring
from dakera_cluster.protocols.swim_config import PACKET_MAX_BYTES

VERSION = 1
OLDEST_VERSION = 1
MAGIC = b"DK"
_CLEAR, _SEALED = 0, 1
_CLUSTER_TAG_BYTES = 8
_HEADER_BYTES = len(MAGIC) + 2 + _CLUSTER_TAG_BYTES
_CRC_BYTES = 4
_SEAL_BYTES = 1 + SESSION_BYTES + COUNTER_BYTES
FRAME_MAX_BYTES = _HEADER_BYTES + _SEAL_BYTES + TAG_BYTES
"""What framing and sealing add to a packet at most."""

Sequence32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]


class ClusterState(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Version of what the bucket decided, opaque here. The greatest wins: by epoch, then by version."""

    epoch: WireNumber = 0
    version: WireNumber = 0


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Are you ``target``, and alive? Whoever else lives at that address now does not answer."""

    seq: Sequence32
    target: WireNodeId


class PingRequest(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Ping ``target`` for me and pass its ack on; send a nack when none came in time."""

    seq: Sequence32
    target: WireNodeId
    addr: Address


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """``target`` is alive: said by itself, or passed on by a relay."""

    seq: Sequence32
    target: WireNodeId


class Nack(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The relay lives, the target did not answer it in time: so the asker's own network works."""

    seq: Sequence32


class Gossip(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Only carries updates and the cluster state."""


Body = Ping | PingRequest | Ack | Nack | Gossip


class Packet(msgspec.Struct, frozen=True, array_like=True):
    """One datagram: who speaks, one message, the cluster state, and as many updates as fit."""

    sender: WireNodeId
    boot: WireBoot
    body: Body
    cluster: ClusterState
    updates: tuple[Update, ...] = ()


class Sync(msgspec.Struct, frozen=True, array_like=True):
    """Full state, exchanged over a stream: the sender first, then everybody it knows, graves included."""

    sender: WireNodeId
    boot: WireBoot
    cluster: ClusterState
    members: tuple[Update, ...]


_INTEGER_BYTES = 9
_STRING_EXTRA_BYTES = 2
_FIXED_BYTES = 1 + _INTEGER_BYTES + (1 + 2 * _INTEGER_BYTES) + 3
_BODY_FIXED_BYTES = 2 + 5


def update_budget_bytes(sender: NodeId, body: Body) -> int:
    """Bytes left for updates in a packet from ``sender`` with ``body``, whatever its numbers are, sealed or not."""
    size = FRAME_MAX_BYTES + _FIXED_BYTES + _string_bytes(sender) + _BODY_FIXED_BYTES
    if isinstance(body, (Ping, Ack)):
        size += _string_bytes(body.target)
    elif isinstance(body, PingRequest):
        size += _string_bytes(body.target) + 1 + _string_bytes(body.addr.host) + 5
    return PACKET_MAX_BYTES - size


def _string_bytes(text: str) -> int:
    return _STRING_EXTRA_BYTES + (len(text) if text.isascii() else len(text.encode()))


SYNC_MAX_BYTES = 4 * 1024 * 1024
"""Bound on a full state: above 4,000 members with the largest metadata."""


class _SyncFrame(msgspec.Struct, frozen=True, array_like=True):
    version: int
    cluster_id: str
    sync: Sync


_sync_decoder = msgspec.msgpack.Decoder(_SyncFrame)


def encode_sync(cluster_id: str, sync: Sync) -> bytes:
    """Full state as it crosses a stream. Secrecy and authenticity are the stream's."""
    return msgspec.msgpack.encode(_SyncFrame(VERSION, cluster_id, sync))


def decode_sync(cluster_id: str, data: bytes) -> Sync:
    """Raises ValueError when the state is oversize, malformed, of another version or of another cluster."""
    if len(data) > SYNC_MAX_BYTES:
        raise ValueError(f"state of {len(data)} bytes exceeds {SYNC_MAX_BYTES}")
    try:
        frame = _sync_decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"malformed state: {error}") from error
    if not OLDEST_VERSION <= frame.version <= VERSION:
        raise ValueError(f"state of protocol version {frame.version}, supported {OLDEST_VERSION} to {VERSION}")
    if frame.cluster_id != cluster_id:
        raise ValueError("state of another cluster")
    return frame.sync


class PacketFault(enum.Enum):
    """Why a datagram was dropped; the value is the metric's label."""

    OVERSIZE = "oversize"
    GARBAGE = "garbage"
    """Not our framing, a bad checksum, or a body that breaks a bound."""
    VERSION = "version"
    FOREIGN_CLUSTER = "foreign_cluster"
    UNSEALED = "unsealed"
    """In clear, though this node requires sealed gossip."""
    UNKNOWN_KEY = "unknown_key"
    """Sealed with a key that is not (or no longer) accepted, or sealed while this node has none."""
    FORGED = "forged"
    """An accepted key does not open it, or the session belongs to another sender."""
    REPLAY = "replay"


class PacketCodec:
    """Datagrams of one cluster. Holds the keyring, hence the packet counter and the replay windows of this process."""

    __slots__ = ("_associated", "_decoder", "_encoder", "_keyring", "_tag")

    def __init__(self, cluster_id: str, keys: Sequence[bytes], session: bytes) -> None:
        """``session``: 16 random bytes drawn anew by every process. ``keys``: first seals, all open; none means clear."""
        cluster = cluster_id.encode()
        self._tag = hashlib.blake2b(cluster, digest_size=_CLUSTER_TAG_BYTES, person=b"dakera-gossip").digest()
        self._associated = cluster
        self._keyring = Keyring(keys, session, bytes([VERSION]) + cluster)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Packet)

    def rotate(self, keys: Sequence[bytes]) -> None:
        """Accept ``keys`` from now on and seal with the first. Raises ValueError on bad keys, or when it would change
        between sealed and clear gossip, which splits a running cluster."""
        if bool(keys) != self._keyring.is_sealing:
            raise ValueError("rotation cannot switch sealing on or off; restart the nodes for that")
        self._keyring.rotate(keys)

    def encode(self, packet: Packet) -> bytes:
        plain = self._encoder.encode(packet)
        if self._keyring.is_sealing:
            header = MAGIC + bytes((VERSION, _SEALED)) + self._tag + bytes((self._keyring.sealing_key_id,))
            data = header + self._keyring.seal(plain, header + self._associated)
        else:
            header = MAGIC + bytes((VERSION, _CLEAR)) + self._tag
            data = header + zlib.crc32(plain, zlib.crc32(header)).to_bytes(_CRC_BYTES, "big") + plain
        assert len(data) <= PACKET_MAX_BYTES, "the core keeps packets within update_budget_bytes"
        return data

    def decode(self, data: bytes) -> Packet | PacketFault:
        """The packet, or why it is refused. Never raises."""
        if len(data) > PACKET_MAX_BYTES:
            return PacketFault.OVERSIZE
        if len(data) < _HEADER_BYTES + _CRC_BYTES or data[:2] != MAGIC:
            return PacketFault.GARBAGE
        if not OLDEST_VERSION <= data[2] <= VERSION:
            return PacketFault.VERSION
        if data[4:_HEADER_BYTES] != self._tag:
            return PacketFault.FOREIGN_CLUSTER
        if data[3] == _SEALED:
            return self._decode_sealed(data)
        if data[3] != _CLEAR:
            return PacketFault.GARBAGE
        if self._keyring.is_sealing:
            return PacketFault.UNSEALED
        plain = data[_HEADER_BYTES + _CRC_BYTES :]
        crc = zlib.crc32(plain, zlib.crc32(data[:_HEADER_BYTES]))
        if data[_HEADER_BYTES : _HEADER_BYTES + _CRC_BYTES] != crc.to_bytes(_CRC_BYTES, "big"):
            return PacketFault.GARBAGE
        return self._parse(plain)

    def _decode_sealed(self, data: bytes) -> Packet | PacketFault:
        if len(data) <= FRAME_MAX_BYTES:
            return PacketFault.GARBAGE
        identifier = data[_HEADER_BYTES]
        if not self._keyring.knows(identifier):
            return PacketFault.UNKNOWN_KEY
        header = data[: _HEADER_BYTES + 1]
        opened = self._keyring.open(identifier, data[_HEADER_BYTES + 1 :], header + self._associated)
        if opened is None:
            return PacketFault.FORGED
        plain, channel, number = opened
        packet = self._parse(plain)
        if isinstance(packet, PacketFault):
            return packet
        owner = (packet.sender, packet.boot)
        if channel.owner is None:
            channel.owner = owner
        elif channel.owner != owner:
            return PacketFault.FORGED
        return packet if channel.window.accept(number) else PacketFault.REPLAY

    def _parse(self, plain: bytes) -> Packet | PacketFault:
        try:
            return self._decoder.decode(plain)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return PacketFault.GARBAGE
