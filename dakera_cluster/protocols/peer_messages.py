"""Heads and failures: what travels in frames beside the callers' own payloads. Pure.

A request is ``u16 head length | head | payload``; the head is a msgpack array that later versions append to, and what a
reader does not know it skips. A failure names its class and all its ancestors in the error tree: a peer of another release
raises the nearest one it knows. Called by `cluster.peer_client` and `cluster.peer_server`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

import msgspec

from dakera_cluster.model.errors import DakeraError, InternalError

METHOD_MAX_CHARS = 64
MESSAGE_MAX_CHARS = 4096
_LENGTH_BYTES = 2

_Positive = Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]


class Head(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``timeout_ms``: what is left of the caller's time when the frame was queued, 0 for no bound; relative, because clocks
    differ. ``window_bytes``: what the reader of a stream can take before it grants more."""

    method: Annotated[str, msgspec.Meta(min_length=1, max_length=METHOD_MAX_CHARS)]
    timeout_ms: _Positive = 0
    window_bytes: _Positive = 0


_encode = msgspec.msgpack.Encoder(enc_hook=str).encode
_decode_head = msgspec.msgpack.Decoder(Head).decode


@lru_cache(maxsize=4096)
def head(method: str, timeout_ms: int, window_bytes: int = 0) -> bytes:
    """The bytes before the payload; the same few heads are sent all the time."""
    encoded = _encode(Head(method, timeout_ms, window_bytes))
    return len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded


@lru_cache(maxsize=4096)
def _known_head(encoded: bytes) -> Head:
    return _decode_head(encoded)


def split_request(data: bytes) -> tuple[Head, bytes]:
    """(head, payload). Raises ValueError (msgspec's included) on bytes that are no request."""
    stop = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
    if stop > len(data):
        raise ValueError("a request ends inside its head")
    return _known_head(data[_LENGTH_BYTES:stop]), data[stop:]


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An error on its way. ``classes`` from the class itself up to the root; ``attributes``: what subclasses add."""

    classes: list[str]
    message: str
    details: Any = None
    retry_after_s: int | None = None
    ambiguous: bool = False
    attributes: dict[str, Any] = {}


_decode_failure = msgspec.msgpack.Decoder(Failure).decode
_OWN = frozenset({"message", "details", "retry_after_s", "ambiguous"})


def encode_failure(error: DakeraError) -> bytes:
    """Values that msgpack cannot carry travel as their text."""
    return _encode(
        Failure(
            [cls.__name__ for cls in type(error).__mro__ if issubclass(cls, DakeraError)],
            error.message[:MESSAGE_MAX_CHARS],
            error.details,
            error.retry_after_s,
            error.ambiguous,
            {name: value for name, value in vars(error).items() if name not in _OWN and not name.startswith("_")},
        )
    )


def decode_failure(data: bytes) -> DakeraError:
    """The same error as its class was raised with on the other side. Never raises: garbage becomes an InternalError."""
    try:
        failure = _decode_failure(data)
    except ValueError:
        return InternalError("a peer failed, and its error could not be read")
    cls = next((known for name in failure.classes if (known := _find(name)) is not None), InternalError)
    # Constructors of the tree differ; what they set is carried in full, so none of them has to run.
    error = cls.__new__(cls, failure.message)
    DakeraError.__init__(error, failure.message, details=failure.details, retry_after_s=failure.retry_after_s)
    if failure.ambiguous != cls.ambiguous:
        error.ambiguous = failure.ambiguous
    for name, value in failure.attributes.items():
        if name not in _OWN:
            setattr(error, name, value)
    return error


_classes: dict[str, type[DakeraError]] = {}


def _find(name: str) -> type[DakeraError] | None:
    """The class of the tree by its name. Subclasses may be defined after import, so a miss looks again."""
    found = _classes.get(name)
    if found is None:
        waiting = [DakeraError]
        while waiting:
            cls = waiting.pop()
            _classes.setdefault(cls.__name__, cls)
            waiting += cls.__subclasses__()
        found = _classes.get(name)
    return found
