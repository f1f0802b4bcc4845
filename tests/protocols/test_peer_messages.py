"""Heads and errors on their way between two nodes, which may be of two releases."""

from __future__ import annotations

import msgspec
import pytest

from dakera_cluster.model import errors
from dakera_cluster.model.errors import DakeraError
from dakera_cluster.protocols.peer_messages import decode_failure, encode_failure, head, split_request


def tree(root: type[DakeraError]) -> list[type[DakeraError]]:
    return [root, *(cls for sub in root.__subclasses__() for cls in tree(sub))]


@pytest.mark.parametrize("cls", [cls for cls in tree(DakeraError) if cls.__module__ == errors.__name__])
def test_every_error_of_the_tree_arrives_as_itself(cls: type[DakeraError]) -> None:
    if issubclass(cls, errors.QuorumUnavailableError):
        error: DakeraError = cls("no quorum", ambiguous=True, details={"acks": 1})
    else:
        error = cls("it went wrong", details=["a", 1, None])
    back = decode_failure(encode_failure(error))
    assert type(back) is cls
    assert back.body() == error.body()
    assert back.retry_after_s == error.retry_after_s
    assert vars(back) == vars(error)
    assert str(back) == str(error)


def test_the_field_of_an_invalid_request_travels() -> None:
    back = decode_failure(encode_failure(errors.InvalidRequestError("too long", field="id")))
    assert isinstance(back, errors.InvalidRequestError) and back.field == "id"


def test_an_instance_that_is_ambiguous_stays_so() -> None:
    error = errors.ServiceUnavailableError("who knows", retry_after_s=7)
    error.ambiguous = True
    back = decode_failure(encode_failure(error))
    assert back.ambiguous and back.retry_after_s == 7


def test_a_class_of_a_later_release_becomes_its_nearest_known_ancestor() -> None:
    class FromTheFutureError(errors.OverloadedError):
        pass

    data = msgspec.msgpack.decode(encode_failure(FromTheFutureError("later")))
    data[0][0] = "UnheardOfError"
    back = decode_failure(msgspec.msgpack.encode([*data, "a field of a later release"]))
    assert type(back) is errors.OverloadedError and back.message == "later"


def test_details_that_msgpack_cannot_carry_travel_as_text() -> None:
    back = decode_failure(encode_failure(errors.ConflictError("x", details={"why": {1, 2}.__class__})))
    assert back.details == {"why": str(set)}


def test_garbage_for_a_failure_is_still_an_error() -> None:
    assert type(decode_failure(b"\xff\x00")) is errors.InternalError
    assert type(decode_failure(msgspec.msgpack.encode([["int"], "m"]))) is errors.InternalError


def test_a_head_and_its_payload_are_told_apart() -> None:
    found, payload = split_request(head("shard", 250, 1024) + b"payload")
    assert (found.method, found.timeout_ms, found.window_bytes, payload) == ("shard", 250, 1024, b"payload")


def test_a_head_of_a_later_release_is_understood() -> None:
    encoded = msgspec.msgpack.encode(["shard", 250, 0, "trace", [1, 2]])
    found, payload = split_request(len(encoded).to_bytes(2, "big") + encoded + b"p")
    assert (found.method, payload) == ("shard", b"p")


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00\x09abc", b"\x00\x01\xc1", head("m", 1)[:-1]])
def test_requests_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        split_request(data)
