"""The catalogue of models: which spellings name a model, how its vectors are made and where its files are.

Invariant: every documented spelling resolves to one `ModelSpec`, whatever its case, and a spec answers the name the
official clients use (`minilm`, `bge-small`, `e5-small`, `bge-large`). A path to a directory is a model as well; its
spec is read from the files sentence-transformers writes beside the weights. Embedding models read one text, rerankers a
pair; a name belongs to one of the two.

Called by the model store, by settings validation, and by whoever shows a model's name to a client.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec

from dakera_cluster.model.errors import DakeraError


class Pooling(StrEnum):
    """How token states become one vector."""

    MEAN = "mean"
    CLS = "cls"


class Precision(StrEnum):
    """Arithmetic of the built graph. INT8 is served; FP32 is for CUDA devices and as the reference."""

    INT8 = "int8"
    FP32 = "fp32"


class Task(StrEnum):
    """What a model is for: vectors of one text, or the relevance of a text to a question, both read together."""

    EMBEDDING = "embedding"
    RERANKER = "reranker"


class TextKind(StrEnum):
    """What a text is for: some models are trained with a different prefix for each."""

    QUERY = "query"
    PASSAGE = "passage"


class UnknownModelError(DakeraError):
    """A model name that no documented spelling covers and that is no directory. A configuration error."""


class ModelFormatError(DakeraError):
    """Model files that do not fit together or describe an architecture that is not supported."""


class ModelSpec(msgspec.Struct, frozen=True):
    """One model. `name` is what clients see; `dimension` is a number of floats; `max_tokens` counts the special tokens
    and is where texts are cut. Rerankers have no prefixes, and read their answer off the first token."""

    name: str
    dimension: int
    pooling: Pooling
    max_tokens: int
    query_prefix: str = ""
    passage_prefix: str = ""
    aliases: tuple[str, ...] = ()
    hub: str = ""
    directory: Path | None = None
    task: Task = Task.EMBEDDING

    def prefix(self, kind: TextKind) -> str:
        return self.query_prefix if kind is TextKind.QUERY else self.passage_prefix

    def pull_command(self, precision: Precision) -> str:
        """What an operator runs to install the model."""
        command = f"dakera models pull {self.directory if self.directory is not None else self.name}"
        return command if precision is Precision.INT8 else f"{command} --precision {precision}"


BGE_QUERY_PREFIX = "Represent this sentence for searching relevant passages: "

CATALOGUE: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="minilm",
        dimension=384,
        pooling=Pooling.MEAN,
        max_tokens=256,
        aliases=(
            "MiniLML6V2",
            "AllMiniLML6V2",
            "minilm-l6-v2",
            "all-minilm-l6-v2",
            "sentence-transformers/all-MiniLM-L6-v2",
        ),
        hub="sentence-transformers/all-MiniLM-L6-v2",
    ),
    ModelSpec(
        name="bge-small",
        dimension=384,
        pooling=Pooling.CLS,
        max_tokens=512,
        query_prefix=BGE_QUERY_PREFIX,
        aliases=("BGESmallENV15", "bge-small-en-v1.5", "BAAI/bge-small-en-v1.5"),
        hub="BAAI/bge-small-en-v1.5",
    ),
    ModelSpec(
        name="e5-small",
        dimension=384,
        pooling=Pooling.MEAN,
        max_tokens=512,
        query_prefix="query: ",
        passage_prefix="passage: ",
        aliases=("E5SmallV2", "e5-small-v2", "intfloat/e5-small-v2"),
        hub="intfloat/e5-small-v2",
    ),
    ModelSpec(
        name="bge-large",
        dimension=1024,
        pooling=Pooling.CLS,
        max_tokens=512,
        query_prefix=BGE_QUERY_PREFIX,
        aliases=("BGELargeENV15", "bge-large-en-v1.5", "BAAI/bge-large-en-v1.5"),
        hub="BAAI/bge-large-en-v1.5",
    ),
    ModelSpec(
        name="bge-reranker-base",
        dimension=768,
        pooling=Pooling.CLS,
        max_tokens=512,
        aliases=("BGERerankerBase", "BAAI/bge-reranker-base"),
        hub="BAAI/bge-reranker-base",
        task=Task.RERANKER,
    ),
)

PRODUCER = "dakera"
"""What the graphs of our own builder say of who wrote them."""
DEFAULT_MODEL = "minilm"
DEFAULT_RERANKER = "bge-reranker-base"

_BY_SPELLING = {spelling.casefold(): spec for spec in CATALOGUE for spelling in (spec.name, *spec.aliases)}


def spellings(task: Task | None = Task.EMBEDDING) -> list[str]:
    """Every accepted spelling of a task's models (None: of all), the clients' own first."""
    specs = [spec for spec in CATALOGUE if task in (None, spec.task)]
    return [spec.name for spec in specs] + [alias for spec in specs for alias in spec.aliases]


def resolve(model: str, task: Task | None = Task.EMBEDDING) -> ModelSpec:
    """The spec a spelling or a directory names. With `task` None a name of any task is taken, and a directory is what its
    config.json says it is; otherwise it is taken for the task. Raises UnknownModelError (listing what is accepted) or
    ModelFormatError (a directory whose files cannot be read as a model)."""
    spec = _BY_SPELLING.get(model.strip().casefold())
    if spec is not None and task in (None, spec.task):
        return spec
    path = Path(model).expanduser()
    if path.is_dir():
        return read_directory(path, task)
    raise UnknownModelError(
        f"unknown {f'{task} ' if task else ''}model {model!r}: expected one of {', '.join(spellings(task))}, "
        "or the path of a directory with config.json, tokenizer.json and model.safetensors or model.onnx"
    )


ROBERTA_FAMILY = ("roberta", "xlm-roberta")
"""Families that number positions from behind the padding id: that many of `max_position_embeddings` hold no token."""
PAIR_ARCHITECTURE = "ForSequenceClassification"


class _Shape(msgspec.Struct):
    hidden_size: int
    max_position_embeddings: int = 512
    model_type: str = "bert"
    pad_token_id: int | None = None
    architectures: list[str] | None = None

    @property
    def max_tokens(self) -> int:
        reserved = (1 if self.pad_token_id is None else self.pad_token_id) + 1
        return self.max_position_embeddings - (reserved if self.model_type in ROBERTA_FAMILY else 0)

    @property
    def task(self) -> Task:
        pair = any(name.endswith(PAIR_ARCHITECTURE) for name in self.architectures or ())
        return Task.RERANKER if pair else Task.EMBEDDING


class _PoolingFile(msgspec.Struct):
    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False


class _SentenceFile(msgspec.Struct):
    max_seq_length: int | None = None


class _PromptsFile(msgspec.Struct):
    prompts: dict[str, str] | None = None


def read_directory(path: Path, task: Task | None = Task.EMBEDDING) -> ModelSpec:
    """The spec of a model directory in the layout of sentence-transformers, for `task` (None: what config.json says).

    Pooling comes from `1_Pooling/config.json` (mean when absent), the length limit from `sentence_bert_config.json`
    (the positions of `config.json` when absent), prefixes from the `prompts` of `config_sentence_transformers.json`
    (keys `query` and `passage` or `document`). Raises ModelFormatError.
    """
    path = path.resolve()
    shape = _read(path / "config.json", _Shape)
    if shape is None:
        raise ModelFormatError(f"{path}: config.json is missing")
    if (task or shape.task) is Task.RERANKER:
        return ModelSpec(
            name=path.name,
            dimension=shape.hidden_size,
            pooling=Pooling.CLS,
            max_tokens=shape.max_tokens,
            directory=path,
            task=Task.RERANKER,
        )
    pooling = _read(path / "1_Pooling" / "config.json", _PoolingFile) or _PoolingFile(pooling_mode_mean_tokens=True)
    if pooling.pooling_mode_cls_token == pooling.pooling_mode_mean_tokens:
        raise ModelFormatError(f"{path}: 1_Pooling/config.json must choose exactly one of cls and mean pooling")
    sentence = _read(path / "sentence_bert_config.json", _SentenceFile) or _SentenceFile()
    prompts = (_read(path / "config_sentence_transformers.json", _PromptsFile) or _PromptsFile()).prompts or {}
    return ModelSpec(
        name=path.name,
        dimension=shape.hidden_size,
        pooling=Pooling.CLS if pooling.pooling_mode_cls_token else Pooling.MEAN,
        max_tokens=min(sentence.max_seq_length or shape.max_tokens, shape.max_tokens),
        query_prefix=prompts.get("query", ""),
        passage_prefix=prompts.get("passage", prompts.get("document", "")),
        directory=path,
    )


_File = TypeVar("_File", bound=msgspec.Struct)


def _read(path: Path, kind: type[_File]) -> _File | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise ModelFormatError(f"{path}: {error}") from error
