"""Rows of the route table about namespaces, vectors and texts; `routes` puts the table together."""

from __future__ import annotations

from typing import Any

from dakera_cluster.api import answers, bodies, vector_answers, vector_bodies
from dakera_cluster.api.handlers import namespaces, texts, vectors
from dakera_cluster.api.route import rows
from dakera_cluster.memory.requests import ExplainQuery, TextQuery
from dakera_cluster.memory.services import TextUpserted
from dakera_cluster.model.keys import Scope

_NS = "/v1/namespaces/{ns}"
_BY_NS: dict[str, Any] = {"namespace_from": "path.ns"}

NAMESPACES = rows(
    "Namespaces",
    ("GET", "/v1/namespaces", Scope.READ, namespaces.list_namespaces, "Namespaces", {"answer": vector_answers.Namespaces}),
    (
        "POST", "/v1/namespaces", Scope.WRITE, namespaces.create, "Create a namespace",
        {"body": bodies.NamespaceBody, "answer": vector_answers.Namespace},
    ),
    (
        "POST", _NS, Scope.WRITE, namespaces.create, "Create a namespace",
        {"body": bodies.NamespaceBody, "answer": vector_answers.Namespace, "legacy": True, **_BY_NS},
    ),
    (
        "PUT", _NS, Scope.WRITE, namespaces.configure, "Create a namespace or check its configuration",
        {"body": bodies.NamespaceBody, "answer": vector_answers.ConfiguredNamespace, **_BY_NS},
    ),
    ("GET", _NS, Scope.READ, namespaces.get, "One namespace", {"answer": vector_answers.Namespace, **_BY_NS}),
    (
        "DELETE", _NS, Scope.ADMIN, namespaces.delete, "Delete a namespace",
        {"answer": vector_answers.DeletedNamespace, **_BY_NS},
    ),
    (
        "GET", f"{_NS}/stats", Scope.READ, namespaces.stats, "Index statistics",
        {"answer": vector_answers.NamespaceStats, "legacy": True, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/compact", Scope.WRITE, namespaces.compact, "Compact a namespace",
        {"answer": answers.Done, "legacy": True, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/flush", Scope.WRITE, namespaces.flush, "Flush a namespace",
        {"answer": answers.Done, "legacy": True, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/cache/warm", Scope.WRITE, namespaces.warm, "Load a namespace into memory",
        {"body": bodies.WarmBody, "answer": vector_answers.Warmed, "aliases": (f"{_NS}/warm",), **_BY_NS},
    ),
)  # fmt: skip

_SEARCH: dict[str, Any] = {"operation": "search", **_BY_NS}

VECTORS = rows(
    "Vectors",
    (
        "POST", f"{_NS}/vectors", Scope.WRITE, vectors.upsert, "Write vectors",
        {"body": vector_bodies.UpsertBody, "answer": vector_answers.Upserted, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/upsert-columns", Scope.WRITE, vectors.upsert_columns, "Write vectors in columns",
        {"body": vector_bodies.UpsertColumnsBody, "answer": vector_answers.Upserted, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/query", Scope.READ, vectors.query, "Nearest vectors",
        {"body": vector_bodies.VectorQueryBody, "answer": vector_answers.VectorHits, **_SEARCH},
    ),
    (
        "POST", f"{_NS}/batch-query", Scope.READ, vectors.batch_query, "Nearest vectors of several queries",
        {"body": vector_bodies.BatchQueryBody, "answer": vector_answers.BatchHits, **_SEARCH},
    ),
    (
        "POST", f"{_NS}/vectors/delete", Scope.WRITE, vectors.delete, "Delete by id, by filter, or all",
        {
            "body": vector_bodies.DeleteVectorsBody, "answer": vector_answers.Deleted,
            "aliases": (f"{_NS}/delete",), **_BY_NS,
        },
    ),
    (
        "DELETE", f"{_NS}/vectors/{{vector_id}}", Scope.WRITE, vectors.delete_one, "Delete one vector",
        {"answer": vector_answers.Deleted, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/fetch", Scope.READ, vectors.fetch, "Vectors by id",
        {"body": vector_bodies.FetchBody, "answer": vector_answers.Fetched, "legacy": True, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/vectors/bulk-update", Scope.WRITE, vectors.bulk_update, "Change metadata by filter",
        {"body": vector_bodies.BulkUpdateBody, "answer": vector_answers.BulkUpdated, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/vectors/bulk-delete", Scope.ADMIN, vectors.bulk_delete, "Delete by filter",
        {"body": vector_bodies.BulkDeleteBody, "answer": vector_answers.BulkDeleted, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/vectors/count", Scope.READ, vectors.count, "Count, by filter",
        {"body": vector_bodies.CountBody, "answer": vector_answers.Counted, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/multi-vector", Scope.READ, vectors.multi_vector, "Query by examples, wanted and unwanted",
        {
            "body": vector_bodies.MultiVectorBody, "answer": vector_answers.MultiVectorHits,
            "aliases": (f"{_NS}/search/multi-vector",), **_SEARCH,
        },
    ),
    (
        "POST", f"{_NS}/unified-query", Scope.READ, vectors.unified, "Query by a ranking expression",
        {
            "body": vector_bodies.UnifiedBody, "answer": vector_answers.UnifiedHits,
            "aliases": (f"{_NS}/search/unified",), **_SEARCH,
        },
    ),
    (
        "POST", f"{_NS}/aggregate", Scope.READ, vectors.aggregate, "Count, Sum, Avg, Min, Max by group",
        {"body": vector_bodies.AggregateBody, "answer": vector_answers.Aggregation, **_SEARCH},
    ),
    (
        "POST", f"{_NS}/export", Scope.READ, vectors.export, "Vectors, page by page",
        {"body": vector_bodies.ExportBody, "answer": vector_answers.Exported, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/explain", Scope.READ, vectors.explain, "How a query would run",
        {"body": ExplainQuery, "answer": vector_answers.Explained, "aliases": (f"{_NS}/query/explain",), **_BY_NS},
    ),
)  # fmt: skip

TEXTS = rows(
    "Text",
    (
        "POST", f"{_NS}/fulltext/index", Scope.WRITE, texts.index, "Index documents for keyword search",
        {"body": vector_bodies.IndexBody, "answer": vector_answers.Indexed, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/fulltext/search", Scope.READ, texts.search, "Keyword search (quotes, +, -, prefix*)",
        {"body": TextQuery, "answer": vector_answers.TextHits, **_SEARCH},
    ),
    (
        "POST", f"{_NS}/fulltext/delete", Scope.WRITE, texts.delete, "Delete documents",
        {"body": vector_bodies.IdsBody, "answer": vector_answers.Deleted, **_BY_NS},
    ),
    (
        "GET", f"{_NS}/fulltext/stats", Scope.READ, texts.stats, "Documents and terms",
        {"answer": vector_answers.TextStats, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/upsert-text", Scope.WRITE, texts.upsert_text, "Embed and write texts",
        {"body": vector_bodies.UpsertTextBody, "answer": TextUpserted, **_BY_NS},
    ),
    (
        "POST", f"{_NS}/query-text", Scope.READ, texts.query_text, "Nearest texts",
        {"body": vector_bodies.QueryTextBody, "answer": vector_answers.TextQueryHits, **_SEARCH},
    ),
    (
        "POST", f"{_NS}/batch-query-text", Scope.READ, texts.batch_query_text, "Nearest texts of several queries",
        {"body": vector_bodies.BatchQueryTextBody, "answer": vector_answers.BatchTextQueryHits, **_SEARCH},
    ),
    (
        "POST", f"{_NS}/hybrid", Scope.READ, texts.hybrid, "Vectors and keywords together",
        {
            "body": vector_bodies.HybridBody, "answer": vector_answers.HybridHits,
            "aliases": (f"{_NS}/hybrid-search",), **_SEARCH,
        },
    ),
)  # fmt: skip
