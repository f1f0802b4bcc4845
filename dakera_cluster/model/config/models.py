"""Settings of the models that run on the node."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated

import msgspec

from dakera_cluster.model.config.values import Choice, Int, Path, Secret, SecretText, Text
from dakera_cluster.model.config.variable import Var

_SPELLINGS = {
    "minilm": (
        "minilm",
        "minilml6v2",
        "allminilml6v2",
        "minilm-l6-v2",
        "all-minilm-l6-v2",
        "sentence-transformers/all-minilm-l6-v2",
    ),
    "bge-small": ("bge-small", "bgesmallenv15", "bge-small-en-v1.5", "baai/bge-small-en-v1.5"),
    "e5-small": ("e5-small", "e5smallv2", "e5-small-v2", "intfloat/e5-small-v2"),
    "bge-large": ("bge-large", "bgelargeenv15", "bge-large-en-v1.5", "baai/bge-large-en-v1.5"),
}
_NAME_OF = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}
_RERANKER_NAME_OF = dict.fromkeys(
    ("bge-reranker-base", "bgererankerbase", "baai/bge-reranker-base"), "bge-reranker-base"
)


@dataclass(frozen=True, slots=True)
class ModelName(Text):
    """A model's name in any documented spelling, answered in the official clients' spelling; or a directory."""

    @property
    def names(self) -> dict[str, str]:
        """Name by lower-case spelling."""
        return _NAME_OF

    @property
    def expected(self) -> str:
        return f"one of {', '.join(self.names)}, or the path of a model directory"

    def parse(self, text: str) -> str:
        name = self.names.get(text.lower())
        if name is not None:
            return name
        if not text.isprintable() or "/" not in text:
            raise ValueError
        return text


@dataclass(frozen=True, slots=True)
class RerankerName(ModelName):
    """The same, of a model that reads question and text together."""

    @property
    def names(self) -> dict[str, str]:
        return _RERANKER_NAME_OF


class Device(enum.StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


class Models(msgspec.Struct, frozen=True, kw_only=True):
    embedding_model: Annotated[
        str,
        Var(
            "DAKERA_EMBEDDING_MODEL",
            ModelName(),
            "minilm, bge-small, e5-small, bge-large in any documented spelling (MiniLML6V2, ...), or a directory",
            toml="embeddings.model",
            effect=True,
        ),
    ] = "minilm"
    reranker_model: Annotated[
        str,
        Var(
            "DAKERA_RERANKER_MODEL",
            RerankerName(),
            "the cross-encoder of `rerank: cross-encoder`, used where installed: bge-reranker-base, or a directory of a pair "
            "model (safetensors or ONNX)",
            effect=True,
        ),
    ] = "bge-reranker-base"
    device: Annotated[
        Device,
        Var("DAKERA_INFERENCE_DEVICE", Choice(Device), "where the models run", toml="embeddings.device", effect=True),
    ] = Device.CPU
    batch_size: Annotated[
        int,
        Var(
            "DAKERA_EMBEDDING_BATCH_SIZE",
            Int(1, 4096, "texts"),
            "texts embedded in one pass at most",
            toml="embeddings.batch_size",
        ),
    ] = 64
    inference_threads: Annotated[
        int, Var("DAKERA_INFERENCE_THREADS", Int(1, 256, "threads"), "threads of one model pass", effect=True)
    ] = 1
    embedding_cache: Annotated[
        int, Var("DAKERA_EMBEDDING_CACHE", Int(0, of="texts"), "texts whose embeddings are remembered")
    ] = 4096
    model_cache: Annotated[
        str | None,
        Var("DAKERA_MODEL_CACHE", Path(), "directory of installed models", unset="~/.cache/dakera/models", effect=True),
    ] = None
    hf_home: Annotated[
        str | None, Var("HF_HOME", Path(), "cache of downloads from the model hub", unset="the hub's own default")
    ] = None
    hf_token: Annotated[
        Secret | None,
        Var("HF_TOKEN", SecretText(), "token for model downloads", aliases=("HUGGING_FACE_HUB_TOKEN",)),
    ] = None
