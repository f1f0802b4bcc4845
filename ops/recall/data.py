"""Question sets on disk and in memory: conversations, the documents a server would be sent, and the views made of them.

The schema is that of the evidence benchmarks: ``{name, license, conversations: [{id, sessions: [{id, date, iso}],
turns: [{id, session, speaker, text, caption?}], questions: [{id, category, question, evidence: [turn id]}]}]}``. A session
without ``iso`` has no time, a turn without ``speaker`` nobody who says it, a turn without ``session`` stands alone.

Used by the fit and the tests of retrieval.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from dakera_cluster.inference.embedder import TextEncoder
from dakera_cluster.inference.encoding import Encoded
from dakera_cluster.inference.models import TextKind
from dakera_cluster.inference.passages import passages as cut
from dakera_cluster.model.memories import DEFAULT_IMPORTANCE, Field, MemoryType
from dakera_cluster.retrieval import writing
from dakera_cluster.retrieval.query import QueryFeatures
from ops.recall.local_view import LocalView

SECONDS_A_TURN = 20
CREATED_S = 1_750_000_000
"""Creation time of every memory and the moment every question is asked: a set must not age."""


class Session(msgspec.Struct, frozen=True):
    id: int
    date: str | None = None
    iso: str | None = None


class Turn(msgspec.Struct, frozen=True):
    id: str
    text: str
    session: int | None = None
    speaker: str | None = None
    caption: str | None = None


class Question(msgspec.Struct, frozen=True):
    id: str
    category: int
    question: str
    evidence: list[str]


class Conversation(msgspec.Struct, frozen=True):
    id: str
    turns: list[Turn]
    questions: list[Question]
    sessions: list[Session] = []


class QuestionSet(msgspec.Struct, frozen=True):
    name: str
    conversations: list[Conversation]


class Asked(msgspec.Struct, frozen=True):
    """A conversation ready to be asked: its view, and each question that has evidence with its features."""

    conversation: Conversation
    view: LocalView
    questions: list[tuple[Question, QueryFeatures]]


def load(path: Path) -> QuestionSet:
    """The set in a file. Raises msgspec.ValidationError when it has another shape."""
    return msgspec.json.decode(path.read_bytes(), type=QuestionSet)


def documents(conversation: Conversation) -> list[tuple[str, dict[str, Any]]]:
    """``(turn id, row fields without vectors)`` of every turn, as a client would store it."""
    sessions = {session.id: session for session in conversation.sessions}
    result = []
    for place, turn in enumerate(conversation.turns):
        session = sessions.get(turn.session) if turn.session is not None else None
        caption = f" (shares {turn.caption})" if turn.caption else ""
        head = f"[{session.date}] " if session is not None and session.date else ""
        said = f"{turn.speaker}: " if turn.speaker else ""
        fields: dict[str, Any] = {
            Field.TEXT: f"{head}{said}{turn.text}{caption}",
            Field.TYPE: MemoryType.EPISODIC.value,
            Field.IMPORTANCE: DEFAULT_IMPORTANCE,
            Field.CREATED: CREATED_S,
            Field.SESSION: None if turn.session is None else str(turn.session),
            Field.METADATA: {"speaker": turn.speaker} if turn.speaker else None,
        }
        if session is not None and session.iso:
            start = dt.datetime.fromisoformat(session.iso).replace(tzinfo=dt.UTC).timestamp()
            number = turn.id.rpartition(":")[2]
            fields[Field.EVENT_TIME] = start + SECONDS_A_TURN * (int(number) if number.isdigit() else place)
        result.append((turn.id, fields))
    return result


def run_together(rows: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """``rows`` as a client would store them that knows neither sessions nor times: one talk without a pause."""
    return [
        (row_id, {**fields, Field.SESSION: "all", Field.EVENT_TIME: float(CREATED_S + SECONDS_A_TURN * place)})
        for place, (row_id, fields) in enumerate(rows)
    ]


def _stored(rows: Sequence[tuple[str, dict[str, Any]]]) -> LocalView:
    view = LocalView()
    for row_id, fields in rows:
        view.put(row_id, fields)
    return view


class Maker:
    """Makes views of conversations with one encoder, through the code that a node runs when it stores."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self.rules = writing.PieceRules(encoder.pieces)

    def rows(self, items: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
        """``items`` with their vectors."""
        texts = [writing.passages(f[Field.TEXT], f.get(Field.METADATA), self._ranges) for _, f in items]
        flat = [text for each in texts for text in each]
        encoded = self._encoder.encode(flat, TextKind.PASSAGE, tokens=True)
        rows, start = [], 0
        for (row_id, fields), own in zip(items, texts, strict=True):
            stop = start + len(own)
            part = Encoded(encoded.texts[start:stop], encoded.dimension)
            rows.append((row_id, {**fields, **writing.row_fields(part, self.rules)}))
            start = stop
        return rows

    def query(self, text: str, now_s: float = CREATED_S) -> QueryFeatures:
        """The features of a question."""
        encoded = self._encoder.encode([text], TextKind.QUERY, tokens=True)
        return writing.embedded_query(encoded, self.rules).features(text, now_s)

    def asked(self, conversation: Conversation) -> Asked:
        """The conversation stored, its questions encoded."""
        return self.ways_of_asking(conversation)[0]

    def ways_of_asking(self, conversation: Conversation) -> list[Asked]:
        """The conversation as it is, and, if it has several sessions, run together."""
        rows = self.rows(documents(conversation))
        questions = [(q, self.query(q.question)) for q in conversation.questions if q.evidence]
        stores = [rows, run_together(rows)] if len({f[Field.SESSION] for _, f in rows}) > 1 else [rows]
        return [Asked(conversation, _stored(store), questions) for store in stores]

    def _ranges(self, text: str, overlap_tokens: int, max_tokens: int) -> list[tuple[int, int]]:
        return cut(text, self._encoder.token_spans(text), max_tokens, overlap_tokens)
