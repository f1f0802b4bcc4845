"""What a request and the operator may change about a recall.

`Options` comes with a request, `Settings` from the ``DAKERA_*`` variables (model/config); neither names a data set, and the
defaults are the ones every benchmark uses. Called by memory/recall.py and the shard.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Routing(StrEnum):
    """Which candidate lists a recall draws from. AUTO is HYBRID where the node has a model, else BM25."""

    AUTO = "auto"
    VECTOR = "vector"
    BM25 = "bm25"
    HYBRID = "hybrid"


class Rerank(StrEnum):
    """What orders the candidates: the fused lists alone, the late-interaction model over their features, or a model that
    reads question and memory together. The last runs on the coordinator, over what LATE found: the engine knows two."""

    NONE = "none"
    LATE = "late"
    CROSS_ENCODER = "cross-encoder"


class Fusion(StrEnum):
    """How the candidate lists become one: reciprocal ranks (Cormack et al. 2009) or a weighted sum of min-max scores."""

    RRF = "rrf"
    MINMAX = "minmax"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Per-request overrides. ``vector_weight``: the vectors' share of the fused score, 0 to 1. ``iterations``: 1 to 3 passes,
    each looking again with what the pass before found. ``explain``: return every feature of every result."""

    k: int = 5
    routing: Routing = Routing.AUTO
    rerank: Rerank = Rerank.LATE
    fusion: Fusion | None = None
    vector_weight: float | None = None
    iterations: int = 1
    explain: bool = False


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's variables; names in model/config/retrieval.py.

    ``rrf_k``: constant of reciprocal rank fusion (DAKERA_RRF_K). ``name_boost``: added to the fused score of a memory, times
    the share of the question's proper nouns it holds (DAKERA_NAME_BOOST). ``ml_classifier``: classify questions
    (DAKERA_ML_CLASSIFIER). ``temporal_inference`` and ``temporal_mult_beta``: for temporal questions that name a time the
    fused score is multiplied by 1 + b (proximity - 0.5) (DAKERA_TEMPORAL_INFERENCE, DAKERA_INFERENCE_TEMPORAL_MULT_BETA).
    ``entity_vector_search``: a second vector pass over the memories that hold the question's names
    (DAKERA_ENTITY_VECTOR_SEARCH). ``half_life_s``: of importance, None for no decay.
    """

    rrf_k: int = 60
    name_boost: float = 0.3
    ml_classifier: bool = True
    temporal_inference: bool = True
    temporal_mult_beta: float = 0.65
    entity_vector_search: bool = True
    half_life_s: float | None = None
