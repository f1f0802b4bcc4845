"""Settings of recall: indexes, fusion, boosts and reranking."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from dakera_cluster.model.config.values import Bool, Choice, Float, Int
from dakera_cluster.model.config.variable import Var


class SearchMode(enum.StrEnum):
    HYBRID = "hybrid"
    BINARY = "binary"
    FLOAT = "float"
    SCALAR = "scalar"
    RABITQ = "rabitq"


_UNIT = Float(0.0, 1.0)
_FACTOR = Float(1.0, 1000.0)
_WEIGHT = Float(0.0, 1000.0)


class Retrieval(msgspec.Struct, frozen=True, kw_only=True):
    search_mode: Annotated[
        SearchMode,
        Var("DAKERA_SEARCH_MODE", Choice(SearchMode), "how vectors are held in the indexes", toml="retrieval.mode"),
    ] = SearchMode.HYBRID
    flat_threshold: Annotated[
        int,
        Var(
            "DAKERA_FLAT_THRESHOLD",
            Int(0, of="vectors"),
            "namespaces up to this size are searched exactly",
            effect=True,
        ),
    ] = 50_000
    index_threads: Annotated[
        int, Var("DAKERA_INDEX_THREADS", Int(1, 256, "threads"), "threads of the indexes", effect=True)
    ] = 1
    hnsw_m: Annotated[int, Var("DAKERA_HNSW_M", Int(4, 128, "links"), "links of a vector in HNSW")] = 16
    hnsw_ef_construction: Annotated[
        int, Var("DAKERA_HNSW_EF_CONSTRUCTION", Int(8, 4096), "candidates while HNSW is built")
    ] = 200
    hnsw_ef_search: Annotated[int, Var("DAKERA_HNSW_EF_SEARCH", Int(8, 4096), "candidates while HNSW is searched")] = (
        128
    )
    bm25_enabled: Annotated[bool, Var("DAKERA_ENABLE_BM25", Bool(), "keyword search in recall", effect=True)] = True
    bm25_k1: Annotated[float, Var("DAKERA_BM25_K1", Float(0.0, 10.0), "saturation of term frequency", effect=True)] = (
        1.2
    )
    bm25_b: Annotated[float, Var("DAKERA_BM25_B", _UNIT, "strength of length normalisation", effect=True)] = 0.75
    rrf_k: Annotated[int, Var("DAKERA_RRF_K", Int(1, 10_000), "constant of reciprocal rank fusion", effect=True)] = 60
    reranker_enabled: Annotated[
        bool,
        Var(
            "DAKERA_RERANKER_ENABLED",
            Bool(),
            "rerank by cross-encoder where a request asks for it and the model's files are there",
            effect=True,
        ),
    ] = True
    reranker_candidates: Annotated[
        int,
        Var(
            "DAKERA_RERANKER_CANDIDATES",
            Int(1, 200, "memories"),
            "memories the cross-encoder reads a recall",
            effect=True,
        ),
    ] = 30
    reranker_budget_ms: Annotated[
        int,
        Var(
            "DAKERA_RERANKER_BUDGET_MS",
            Int(1, 60_000, "ms"),
            "time the cross-encoder has for a recall; what it does not reach keeps its place behind the rest",
            effect=True,
        ),
    ] = 2000
    name_boost: Annotated[
        float, Var("DAKERA_NAME_BOOST", _UNIT, "boost for memories that hold a proper noun of the query", effect=True)
    ] = 0.3
    ml_classifier: Annotated[bool, Var("DAKERA_ML_CLASSIFIER", Bool(), "classify queries", effect=True)] = False
    temporal_inference: Annotated[
        bool,
        Var(
            "DAKERA_TEMPORAL_INFERENCE",
            Bool(),
            "boost by time for temporal queries (needs the classifier)",
            effect=True,
        ),
    ] = True
    temporal_mult_beta: Annotated[
        float,
        Var(
            "DAKERA_INFERENCE_TEMPORAL_MULT_BETA",
            Float(0.0, 2.0),
            "b of score * (1 + b * (proximity - 0.5))",
            effect=True,
        ),
    ] = 0.65
    ml_temporal_boost: Annotated[
        float, Var("DAKERA_ML_TEMPORAL_BOOST", Float(0.0, 10.0), "deprecated: additive boost by time")
    ] = 0.3
    entity_vector_search: Annotated[
        bool,
        Var(
            "DAKERA_ENTITY_VECTOR_SEARCH",
            Bool(),
            "a second vector pass over memories of the query's entities",
            effect=True,
        ),
    ] = True
    hybrid_fetch_mult: Annotated[
        float | None, Var("DAKERA_HYBRID_FETCH_MULT", _FACTOR, "candidates per wanted result", unset="built in")
    ] = None
    cross_session_fetch_mult: Annotated[
        float | None,
        Var("DAKERA_CROSS_SESSION_FETCH_MULT", _FACTOR, "candidates per wanted result over sessions", unset="built in"),
    ] = None
    score_w_vec: Annotated[
        float | None, Var("DAKERA_SCORE_W_VEC", _WEIGHT, "weight of similarity in the smart score", unset="built in")
    ] = None
    score_w_imp: Annotated[
        float | None, Var("DAKERA_SCORE_W_IMP", _WEIGHT, "weight of importance in the smart score", unset="built in")
    ] = None
    score_w_rec: Annotated[
        float | None, Var("DAKERA_SCORE_W_REC", _WEIGHT, "weight of recency in the smart score", unset="built in")
    ] = None
    score_recency_tau_h: Annotated[
        float | None,
        Var(
            "DAKERA_SCORE_RECENCY_TAU_HOURS",
            Float(0.001, 1e6, "h"),
            "time constant of recency in the smart score",
            unset="built in",
        ),
    ] = None
