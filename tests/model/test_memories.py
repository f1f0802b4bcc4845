"""What a client sees of a row: read from its bytes and from its decoded fields alike."""

from __future__ import annotations

import msgspec
import pytest

from dakera_cluster.model.errors import CorruptionError
from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.memories import Field, Memory, memory_of, shown_in, shown_of
from dakera_cluster.model.rows import Kind, decode_document, merge, patch_document, put_document

FIELDS = {
    Field.TEXT: "The fern likes shade.",
    Field.VECTOR: bytes(1536),
    Field.TOKENS: b"\x93" * 50,
    Field.PASSAGES: b"\x00",
    Field.MODEL: "minilm",
    Field.TYPE: "semantic",
    Field.IMPORTANCE: 1,
    Field.TAGS: ["plants", "home"],
    Field.SESSION: "s1",
    Field.METADATA: {"speaker": "Ann", "deep": [1, {"x": None}, 2.5]},
    Field.CREATED: 1_700_000_000,
    Field.UPDATED: 1_700_000_100,
    Field.EVENT_TIME: 1_600_000_000.5,
    Field.TTL: 60,
    Field.EXPIRES: 1_700_000_060,
    Field.LANG: "en",
    Field.DECAY_FLAG: True,
    Field.FEEDBACK: [{"signal": "upvote"}],
    Field.EXTRA: {"unknown": 1},
}


def bodies() -> list[bytes]:
    put = put_document(Stamp(5 << 16, 1), FIELDS)
    changed = patch_document(Stamp(9 << 16, 2), {Field.IMPORTANCE: 0.25, Field.TAGS: None, Field.SESSION: None})
    return [
        put,
        merge(Kind.DOCUMENT, put, changed),
        put_document(Stamp(1 << 16, 1), {}),
        put_document(Stamp(1 << 16, 1), {Field.METADATA: {"only": "a record"}, Field.CREATED: 1_700_000_000.75}),
    ]


@pytest.mark.parametrize("body", bodies())
def test_the_bytes_show_what_the_decoded_fields_show(body: bytes) -> None:
    assert shown_in(body) == shown_of(decode_document(body).fields)


def test_every_visible_field_comes_through() -> None:
    memory = memory_of("m1", "ann", "space", shown_in(bodies()[0]), 3, 1_800_000_000_999)
    assert memory == Memory(
        id="m1",
        content="The fern likes shade.",
        agent_id="ann",
        namespace="space",
        memory_type="semantic",
        importance=1.0,
        tags=["plants", "home"],
        session_id="s1",
        metadata={"speaker": "Ann", "deep": [1, {"x": None}, 2.5]},
        created_at=1_700_000_000,
        updated_at=1_700_000_100,
        last_accessed_at=1_800_000_000,
        access_count=3,
        ttl_seconds=60,
        expires_at=1_700_000_060,
        embedding_model="minilm",
        event_time=1_600_000_000.5,
        decay_flag=True,
    )
    assert isinstance(memory.importance, float)


def test_what_was_cleared_or_never_there_has_its_default() -> None:
    cleared, empty, record = (memory_of("m", "ann", "space", shown_in(body)) for body in bodies()[1:])
    assert (cleared.importance, cleared.tags, cleared.session_id, cleared.content) == (0.25, [], None, FIELDS["text"])
    assert empty == Memory(id="m", content="", agent_id="ann", namespace="space", updated_at=0)
    assert (record.created_at, record.updated_at, record.last_accessed_at) == (1_700_000_000,) * 3
    assert record.metadata == {"only": "a record"}


@pytest.mark.parametrize(
    "body", [b"", b"\x90", b"\xc1", bodies()[0][:-5], msgspec.msgpack.encode([[1, 1], [0, 0], {"tags": 5}, {}])]
)
def test_bytes_that_are_no_memory_are_called_damaged(body: bytes) -> None:
    with pytest.raises(CorruptionError):
        shown_in(body)
