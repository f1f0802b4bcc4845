"""Text in namespaces: full-text search, text in and vectors out, hybrid. Called by the API.

A document may have a text, a vector, or both: indexing a text does not touch a vector that is there. A namespace whose
dimension is larger than the model's takes its vectors padded with zeros, which leaves every cosine between texts as it
is; one whose dimension is smaller cannot hold them, so there texts are found by keywords.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np

from dakera_cluster.inference.models import TextKind
from dakera_cluster.memory.core import Core, check_metadata, check_range, check_top_k, vector_space
from dakera_cluster.memory.events import UPSERTED
from dakera_cluster.memory.requests import DEFAULT_SEARCH_TOP_K, HybridQuery, QueryText, TextDocument, TextQuery
from dakera_cluster.memory.services import Hits, TextStats, TextUpserted
from dakera_cluster.memory.store import check_content
from dakera_cluster.memory.vectors import MAX_VECTORS, Vectors, expiry, where_of
from dakera_cluster.model.errors import InvalidRequestError
from dakera_cluster.model.ids import check_id
from dakera_cluster.model.memories import Field
from dakera_cluster.shard import ops
from dakera_cluster.shard.records import vector_bytes

MAX_QUERIES = 100


class Texts:
    """Implements `services.TextService`."""

    def __init__(self, core: Core, vectors: Vectors) -> None:
        self._core = core
        self._vectors = vectors

    async def index(self, namespace: str, documents: list[TextDocument]) -> int:
        """Give documents a text (and metadata when sent), leaving their vectors alone; new ids become documents."""
        vector_space(namespace)
        self._check(documents)
        await self._vectors.adopt_dimension(namespace, None)
        latest = {document.id: document for document in documents}
        present = await self._core.latest(namespace, list(latest))
        new, changed = [], []
        for row_id, document in latest.items():
            fields = {Field.TEXT: document.text}
            if document.metadata is not None or row_id not in present:
                fields[Field.METADATA] = document.metadata
            if row_id in present:
                changed.append((row_id, fields))
            else:
                new.append((row_id, {**fields, Field.CREATED: self._core.now_s}))
        if new:
            await self._core.put(namespace, new)
        if changed:
            await self._core.patch(namespace, changed)
        return len(latest)

    @staticmethod
    def _check(documents: list[TextDocument]) -> None:
        if not 1 <= len(documents) <= MAX_VECTORS:
            raise InvalidRequestError(f"expected 1 to {MAX_VECTORS} documents, got {len(documents)}", field="documents")
        for position, document in enumerate(documents):
            path = f"documents[{position}]"
            check_id(document.id, f"{path}.id")
            check_content(document.text, f"{path}.text")
            check_metadata(document.metadata, f"{path}.metadata")

    async def search(self, namespace: str, query: TextQuery) -> Hits:
        """BM25 with the query language and highlights. Raises NamespaceNotFoundError, InvalidRequestError."""
        vector_space(namespace)
        k = check_top_k(query.top_k, DEFAULT_SEARCH_TOP_K)
        check_content(query.query, "query")
        where = where_of(query.filter)
        await self._core.require(namespace)
        found = await self._vectors.search(namespace, ops.Mode.TEXT, k, text=query.query, where=where, highlights=True)
        return self._vectors.answer(found, text=True)

    async def delete(self, namespace: str, ids: list[str]) -> int:
        """Remove texts. A document that has a vector stays, without its text."""
        vector_space(namespace)
        for position, row_id in enumerate(ids):
            check_id(row_id, f"ids[{position}]")
        await self._core.require(namespace)
        with_text = {
            i: d.fields for i, d in (await self._core.latest(namespace, ids)).items() if d.fields.get(Field.TEXT)
        }
        bare = [row_id for row_id, fields in with_text.items() if not fields.get(Field.VECTOR)]
        keep = [row_id for row_id in with_text if row_id not in set(bare)]
        if bare:
            await self._core.delete(namespace, bare)
        if keep:
            await self._core.patch(namespace, [(row_id, {Field.TEXT: None}) for row_id in keep])
        return len(with_text)

    async def stats(self, namespace: str) -> TextStats:
        vector_space(namespace)
        await self._core.require(namespace)
        parts = await self._core.router.describe(namespace)
        documents, tokens = sum(p.texts for p in parts), sum(p.text_tokens for p in parts)
        return TextStats(documents, max(p.unique_terms for p in parts), tokens / documents if documents else 0.0)

    async def upsert_text(self, namespace: str, documents: list[TextDocument], model: str | None) -> TextUpserted:
        """Embed and write whole records. Raises ModelUnavailableError when the node has no model."""
        vector_space(namespace)
        self._check(documents)
        now_s = self._core.now_s
        expiries = [expiry(d.ttl_seconds, now_s, f"documents[{i}].ttl_seconds") for i, d in enumerate(documents)]
        room = (await self._vectors.adopt_dimension(namespace, None)).dimension
        if room is None:
            await self._vectors.adopt_dimension(namespace, self._core.embedder.dimension)
        started = time.perf_counter()
        encoded = await self._core.embed([document.text for document in documents], TextKind.PASSAGE)
        spent_ms = int((time.perf_counter() - started) * 1000)
        rows: dict[str, dict[str, Any]] = {}
        for document, vector, lifetime in zip(documents, encoded.vectors, expiries, strict=True):
            fitted = fit(vector, room)
            rows[document.id] = {
                Field.TEXT: document.text,
                Field.VECTOR: vector_bytes(fitted) if fitted is not None else None,
                Field.MODEL: self._core.embedder.name,
                Field.METADATA: document.metadata,
                Field.CREATED: now_s,
                **lifetime,
            }
        await self._core.put(namespace, list(rows.items()))
        self._core.events.vectors_mutated(namespace, UPSERTED, len(rows))
        tokens = await asyncio.to_thread(self._core.embedder.count_tokens, [document.text for document in documents])
        return TextUpserted(len(rows), tokens, self._core.embedder.name, spent_ms)

    async def query_text(self, namespace: str, query: QueryText) -> list[Hits]:
        """Nearest records of each text; by keywords where the namespace cannot hold the model's vectors."""
        vector_space(namespace)
        k = check_top_k(query.top_k, DEFAULT_SEARCH_TOP_K)
        if not 1 <= len(query.texts) <= MAX_QUERIES:
            raise InvalidRequestError(f"expected 1 to {MAX_QUERIES} queries, got {len(query.texts)}", field="queries")
        for position, text in enumerate(query.texts):
            check_content(text, "text" if len(query.texts) == 1 else f"queries[{position}]")
        where = where_of(query.filter)
        room = await self._vectors.dimension(namespace)
        started = time.perf_counter()
        encoded = await self._core.embed(query.texts, TextKind.QUERY)
        embedding_ms = (time.perf_counter() - started) * 1000
        answers: list[Hits] = []
        for text, vector in zip(query.texts, encoded.vectors, strict=True):
            fitted = fit(vector, room)
            mode = ops.Mode.VECTOR if fitted is not None else ops.Mode.TEXT
            found = await self._vectors.search(namespace, mode, k, vector=fitted, text=text, where=where)
            answer = self._vectors.answer(found, values=query.include_vectors, text=query.include_text)
            answer.embedding_time_ms, answer.model = embedding_ms, self._core.embedder.name
            answers.append(answer)
        return answers

    async def hybrid(self, namespace: str, query: HybridQuery) -> Hits:
        """Weighted sum of min-max normalised vector and BM25 scores; without a vector BM25 alone."""
        vector_space(namespace)
        k = check_top_k(query.top_k, DEFAULT_SEARCH_TOP_K)
        check_content(query.text, "text")
        check_range(query.vector_weight, "vector_weight", 0, 1)
        where = where_of(query.filter)
        vector = None
        if query.vector is not None:
            vector = await self._vectors.check_query(namespace, query.vector, "vector")
        else:
            await self._core.require(namespace)
        mode = ops.Mode.HYBRID if vector is not None else ops.Mode.TEXT
        found = await self._vectors.search(
            namespace, mode, k, vector=vector, text=query.text, where=where, vector_weight=query.vector_weight
        )
        answer = self._vectors.answer(found, values=query.include_vectors, metadata=query.include_metadata, text=True)
        for hit in answer.hits:
            hit.vector_score = hit.vector_score or 0.0
            hit.text_score = hit.text_score or 0.0
        return answer


def fit(vector: np.ndarray[Any, Any], room: int | None) -> np.ndarray[Any, Any] | None:
    """The model's vector in a namespace of dimension ``room``: as it is, padded with zeros, or None when too long."""
    if room is None or room == len(vector):
        return vector
    return np.pad(vector, (0, room - len(vector))) if room > len(vector) else None
