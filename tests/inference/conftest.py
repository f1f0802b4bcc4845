"""Models for the tests: MiniLM as it is installed, and tiny ones built on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from dakera_cluster.inference import store
from dakera_cluster.inference.embedder import TextEncoder
from dakera_cluster.inference.encoding import TokenVectors
from dakera_cluster.inference.models import Precision
from dakera_cluster.native.encoder import runs_here

WORDS = """
the a cat dog sat on mat query passage : hello world . deep blue sea red fish swims fast ##s ##ing
""".strip().split(" ")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
HIDDEN, HEADS, LAYERS, INNER, POSITIONS = 32, 2, 2, 64, 48


def halves_of(tokens: TokenVectors, dimension: int) -> NDArray[np.float64]:
    """The token vectors of a query, [t, d]."""
    assert tokens.halves is not None
    return np.frombuffer(tokens.halves, "<f2").reshape(len(tokens.ids), dimension).astype(np.float64)


def tiny_tokenizer() -> Tokenizer:
    vocabulary = {piece: index for index, piece in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.add_special_tokens(SPECIAL)
    # What real tokenizer files ask for and the encoder must undo.
    tokenizer.enable_padding(length=POSITIONS)
    tokenizer.enable_truncation(8)
    return tokenizer


def tiny_weights(seed: int = 7, hidden: int = HIDDEN, inner: int = INNER) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> NDArray[np.float32]:
        return random.normal(0, 0.3, shape).astype(np.float32)

    def norm() -> dict[str, NDArray[np.float32]]:
        return {"weight": 1 + draw(hidden), "bias": draw(hidden)}

    weights = {
        "embeddings.word_embeddings.weight": draw(len(SPECIAL) + len(WORDS), hidden),
        "embeddings.position_embeddings.weight": draw(POSITIONS, hidden),
        "embeddings.token_type_embeddings.weight": draw(2, hidden),
    }
    weights |= {f"embeddings.LayerNorm.{key}": value for key, value in norm().items()}
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        shapes = {f"attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
        shapes |= {
            "attention.output.dense": (hidden, hidden),
            "intermediate.dense": (inner, hidden),
            "output.dense": (hidden, inner),
        }
        for name, shape in shapes.items():
            weights[f"{prefix}{name}.weight"] = draw(*shape)
            weights[f"{prefix}{name}.bias"] = draw(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            weights |= {f"{prefix}{name}.{key}": value for key, value in norm().items()}
    return weights


def write_tiny_model(
    folder: Path, pooling: str = "mean", prompts: dict[str, str] | None = None, rename: Callable[[str], str] = str
) -> Path:
    """A directory as sentence-transformers lays it out."""
    (folder / "1_Pooling").mkdir(parents=True)
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "vocab_size": len(SPECIAL) + len(WORDS),
        "max_position_embeddings": POSITIONS,
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(config))
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts or {}}))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    save_file({rename(name): tensor for name, tensor in tiny_weights().items()}, folder / "model.safetensors")
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder = tmp_path_factory.mktemp("models")
    model = write_tiny_model(folder / "tiny")
    store.pull(str(model), folder / "cache")
    return TextEncoder(store.find(str(model), folder / "cache"))


def _minilm(precision: Precision, *, native: bool = True) -> TextEncoder:
    cache = store.default_cache_dir()
    store.pull("minilm", cache, precision=precision)
    return TextEncoder(store.find("minilm", cache, precision), native=native)


@pytest.fixture(scope="session", params=["kernels", "onnxruntime"])
def minilm(request: pytest.FixtureRequest) -> TextEncoder:
    """The model that is served, from the cache every test run shares, each way in which it may be run."""
    if request.param == "kernels" and not runs_here():
        pytest.skip("this processor has no 8-bit dot products")
    return _minilm(Precision.INT8, native=request.param == "kernels")


@pytest.fixture(scope="session")
def minilm_fp32() -> TextEncoder:
    return _minilm(Precision.FP32)
