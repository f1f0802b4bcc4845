"""How a client of each engine stores and asks: text in, texts out, over a kept-alive connection to a real server.

The node embeds by itself. chromadb is given the vectors of the same model, computed in the client's process as its users
do: by ONNX Runtime, and once more by the node's own kernels, which they do not have, to tell the engines from the encoders.
That time counts wherever a text is given. Both sides decode what they receive.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from dakera_cluster.inference.embedder import TextEncoder
from dakera_cluster.inference.models import TextKind
from dakera_cluster.inference.store import default_cache_dir, find

MODEL = "minilm"
REQUEST_TIMEOUT_S = 600.0
IDLE_S = 30.0
"""A connection unused for this long is opened anew: servers close idle ones, and http.client does not notice."""
Vectors = NDArray[np.float32]


NODE, CHROMA, CHROMA_WITH_OURS = "dakera", "chromadb", "chromadb, our encoder"


def new_encoder(*, native: bool = True) -> TextEncoder:
    """The model as the node runs it, int8 and one thread; without ``native`` by ONNX Runtime wherever it runs."""
    return TextEncoder(find(MODEL, default_cache_dir()), native=native)


class Connection(Protocol):
    """One client of an engine; not shared between threads."""

    def store(self, group: str, key: str, text: str) -> None:
        """Store one text; return when the server has acknowledged it."""
        ...

    def store_batch(self, group: str, keys: Sequence[str], texts: Sequence[str], vectors: Vectors | None) -> None: ...

    def recall(self, group: str, question: str, top_k: int) -> list[str]:
        """The texts of the best answers, best first."""
        ...


class _Found(msgspec.Struct):
    content: str


class _Recalled(msgspec.Struct):
    memories: list[_Found]


class NodeConnection:
    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
        self._used_s = 0.0
        self._decoder = msgspec.json.Decoder(_Recalled)

    def store(self, group: str, key: str, text: str) -> None:
        self._post("/v1/memory/store", {"agent_id": group, "id": key, "content": text})

    def store_batch(self, group: str, keys: Sequence[str], texts: Sequence[str], vectors: Vectors | None) -> None:
        items: list[dict[str, Any]] = [{"id": key, "content": text} for key, text in zip(keys, texts, strict=True)]
        if vectors is not None:
            for item, vector in zip(items, vectors, strict=True):
                item["embedding"] = vector.tolist()
        self._post("/v1/memories/store/batch", {"agent_id": group, "memories": items})

    def recall(self, group: str, question: str, top_k: int) -> list[str]:
        body = self._post("/v1/memory/recall", {"agent_id": group, "query": question, "top_k": top_k})
        return [memory.content for memory in self._decoder.decode(body).memories]

    def explain(self, group: str, question: str, top_k: int) -> dict[str, Any]:
        body = {"agent_id": group, "query": question, "top_k": top_k, "explain": True}
        answer: dict[str, Any] = msgspec.json.decode(self._post("/v1/memory/recall", body))
        return answer

    def _post(self, path: str, body: dict[str, Any]) -> bytes:
        now_s = time.monotonic()
        if now_s - self._used_s > IDLE_S:
            self._http.close()
        self._used_s = now_s
        self._http.request("POST", path, msgspec.json.encode(body), {"Content-Type": "application/json"})
        response = self._http.getresponse()
        payload = response.read()
        if response.status not in (200, 201):
            raise RuntimeError(f"{path} answered {response.status}: {payload[:300]!r}")
        return payload


class ChromaConnection:
    def __init__(self, port: int, encoder: TextEncoder) -> None:
        import chromadb

        settings = chromadb.config.Settings(anonymized_telemetry=False)
        self._client = chromadb.HttpClient(host="127.0.0.1", port=port, settings=settings)
        self._encoder = encoder
        self._collections: dict[str, Any] = {}

    def store(self, group: str, key: str, text: str) -> None:
        self.store_batch(group, [key], [text], None)

    def store_batch(self, group: str, keys: Sequence[str], texts: Sequence[str], vectors: Vectors | None) -> None:
        if vectors is None:
            vectors = self._encoder.encode(texts, TextKind.PASSAGE).vectors
        self._collection(group).add(ids=list(keys), documents=list(texts), embeddings=vectors)

    def recall(self, group: str, question: str, top_k: int) -> list[str]:
        vector = self._encoder.encode([question], TextKind.QUERY).vectors
        answer = self._collection(group).query(
            query_embeddings=vector, n_results=top_k, include=["documents", "distances", "metadatas"]
        )
        texts: list[str] = answer["documents"][0]
        return texts

    def _collection(self, group: str) -> Any:
        if group not in self._collections:
            self._collections[group] = self._client.get_or_create_collection(
                group, metadata={"hnsw:space": "cosine"}, embedding_function=None
            )
        return self._collections[group]


def connect(engine: str, port: int) -> Connection:
    """A connection to the server of ``engine``, one of the names above."""
    if engine == NODE:
        return NodeConnection(port)
    return ChromaConnection(port, new_encoder(native=engine == CHROMA_WITH_OURS))
