"""Secrecy of gossip: keys, per-process channels and the replay window. Pure: randomness comes in with the session.

Every process draws a random 16-byte session when it starts and numbers its packets. The packet key is derived from the
gossip key and the session (HKDF-SHA256), and the packet number is the AES-GCM nonce. A random 96-bit nonce under one
shared key would be tempting and simpler, but a thousand nodes use up its 2^32 packets in a few days; a derived key per
process never repeats a (key, nonce) pair, whatever the number of nodes.

Invariant: a packet number of a session is accepted at most once; numbers more than ``WINDOW`` behind the newest are
refused. A session belongs to one (node, boot). After *our* restart an old packet of a live session may pass once more:
harmless, as claims are ordered by incarnation and acks by our own fresh sequence numbers.

Called by ``packets``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
SESSION_BYTES = 16
COUNTER_BYTES = 8
TAG_BYTES = 16
WINDOW = 1024
"""Packets that may arrive out of order, per sender."""
CHANNELS_MAX = 8192
"""Sender sessions remembered; the one unheard for longest is forgotten first."""
KEYS_MAX = 2


def parse_gossip_keys(text: str) -> tuple[bytes, ...]:
    """Keys from ``new`` or ``new,old``, each 32 bytes in hex or base64; the first seals, all open. Empty text: no keys.

    Raises ValueError that names the position, never the key.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) > KEYS_MAX:
        raise ValueError(f"at most {KEYS_MAX} gossip keys, got {len(parts)}")
    return tuple(_parse_key(part, position) for position, part in enumerate(parts, start=1))


def _parse_key(text: str, position: int) -> bytes:
    try:
        key = bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise ValueError(f"gossip key {position} is neither hex nor base64") from None
    if len(key) != KEY_BYTES:
        raise ValueError(f"gossip key {position} must be {KEY_BYTES} bytes, got {len(key)}")
    return key


def key_id(key: bytes) -> int:
    """One byte that tells which of the accepted keys sealed a packet; a collision of ids only costs a second try."""
    return hashlib.sha256(b"dakera gossip key id" + key).digest()[0]


class ReplayWindow:
    """Sliding window over packet numbers: highest seen and a bitmap of the ``WINDOW`` below it."""

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = -1
        self._seen = 0

    def accept(self, number: int) -> bool:
        """True the first time a number within the window is seen."""
        if number > self._highest:
            shift = number - self._highest
            self._seen = ((self._seen << shift) | 1) & _MASK if shift < WINDOW else 1
            self._highest = number
            return True
        behind = self._highest - number
        if behind >= WINDOW or self._seen >> behind & 1:
            return False
        self._seen |= 1 << behind
        return True


_MASK = (1 << WINDOW) - 1


class Channel:
    """The packet key of one (gossip key, session), and what was already heard on it."""

    __slots__ = ("cipher", "owner", "window")

    def __init__(self, cipher: AESGCM) -> None:
        self.cipher = cipher
        self.window = ReplayWindow()
        self.owner: tuple[str, int] | None = None
        """(node, boot) of the first authentic packet; a session never changes hands."""


class Keyring:
    """Seals with the first key, opens with any. Replay windows survive a rotation of keys."""

    __slots__ = ("_channels", "_context", "_counter", "_keys", "_own", "_session")

    def __init__(self, keys: Sequence[bytes], session: bytes, context: bytes) -> None:
        """``context``: what binds the derived keys (cluster id, protocol version). Raises ValueError on bad sizes."""
        if len(session) != SESSION_BYTES:
            raise ValueError(f"session must be {SESSION_BYTES} bytes, got {len(session)}")
        self._session = session
        self._context = context
        self._counter = 0
        self._channels: OrderedDict[tuple[bytes, bytes], Channel] = OrderedDict()
        self._keys: tuple[tuple[int, bytes], ...] = ()
        self._own: AESGCM | None = None
        self.rotate(keys)

    def rotate(self, keys: Sequence[bytes]) -> None:
        """Replace the accepted keys at once; channels of keys no longer accepted are forgotten."""
        if len(keys) > KEYS_MAX or any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"at most {KEYS_MAX} gossip keys of {KEY_BYTES} bytes each")
        self._keys = tuple((key_id(key), key) for key in keys)
        self._own = self._derive(keys[0], self._session) if keys else None
        for channel_id in [channel_id for channel_id in self._channels if channel_id[0] not in keys]:
            del self._channels[channel_id]

    @property
    def is_sealing(self) -> bool:
        return self._own is not None

    @property
    def sealing_key_id(self) -> int:
        return self._keys[0][0]

    def knows(self, identifier: int) -> bool:
        return any(known == identifier for known, _ in self._keys)

    def seal(self, plain: bytes, header: bytes) -> bytes:
        """session + counter + ciphertext + tag; ``header`` is authenticated with it."""
        assert self._own is not None
        self._counter += 1
        counter = self._counter.to_bytes(COUNTER_BYTES, "big")
        return self._session + counter + self._own.encrypt(b"\x00\x00\x00\x00" + counter, plain, header)

    def open(self, identifier: int, sealed: bytes, header: bytes) -> tuple[bytes, Channel, int] | None:
        """(plain, channel, packet number), or None when no accepted key opens it. The window is the caller's to consult,
        after it has read who sent the packet."""
        session = sealed[:SESSION_BYTES]
        counter = sealed[SESSION_BYTES : SESSION_BYTES + COUNTER_BYTES]
        body = sealed[SESSION_BYTES + COUNTER_BYTES :]
        for known, key in self._keys:
            if known != identifier:
                continue
            channel = self._channels.get((key, session))
            cipher = channel.cipher if channel is not None else self._derive(key, session)
            try:
                plain = cipher.decrypt(b"\x00\x00\x00\x00" + counter, body, header)
            except InvalidTag:
                continue
            if channel is None:
                # Remembered only now: a flood of forged sessions must not push out the real ones.
                channel = self._channels[(key, session)] = Channel(cipher)
                if len(self._channels) > CHANNELS_MAX:
                    self._channels.popitem(last=False)
            else:
                self._channels.move_to_end((key, session))
            return plain, channel, int.from_bytes(counter, "big")
        return None

    def _derive(self, key: bytes, session: bytes) -> AESGCM:
        return AESGCM(HKDF(SHA256(), KEY_BYTES, salt=session, info=b"dakera gossip packet" + self._context).derive(key))
