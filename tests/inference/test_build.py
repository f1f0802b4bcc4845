from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dakera_cluster.inference import store
from dakera_cluster.inference.build import read_config
from dakera_cluster.inference.embedder import TextEncoder
from dakera_cluster.inference.models import ModelFormatError, Precision, TextKind
from dakera_cluster.native.encoder import runs_here
from tests.support import bert_reference

from .conftest import HEADS, HIDDEN, LAYERS, SPECIAL, halves_of, tiny_weights, write_tiny_model

Array = NDArray[np.float64]
TEXTS = ["the cat sat on the mat .", "hello world", "", "deep blue sea : red fish swims fast", "cats swims zzz"]


def reference_states(ids: list[int]) -> Array:
    weights = tiny_weights()
    linear, norm = bert_reference.float_parts(weights, 1e-12)
    embedded = (
        weights["embeddings.word_embeddings.weight"][ids].astype(np.float64)
        + weights["embeddings.position_embeddings.weight"][: len(ids)]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    return bert_reference.layers(norm(embedded, "embeddings.LayerNorm"), LAYERS, HEADS, linear, norm)


def encoder(folder: Path, precision: Precision, *, native: bool = True) -> TextEncoder:
    cache = folder.parent / "cache"
    store.pull(str(folder), cache, precision=precision)
    return TextEncoder(store.find(str(folder), cache, precision), native=native)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(
    ("precision", "native", "floor"),
    [(Precision.FP32, True, 0.999999), (Precision.INT8, True, 0.998), (Precision.INT8, False, 0.998)],
)
def test_vectors_are_those_of_the_reference_for_both_poolings(
    tmp_path: Path, pooling: str, precision: Precision, native: bool, floor: float
) -> None:
    model = encoder(write_tiny_model(tmp_path / "tiny", pooling), precision, native=native)
    assert model.is_native is (native and precision is Precision.INT8 and runs_here())
    encoded = model.encode(TEXTS, TextKind.QUERY, tokens=True)
    assert encoded.tokens is not None
    for text, vector, tokens in zip(TEXTS, encoded.vectors, encoded.tokens, strict=True):
        ids = model.tokenize([text], TextKind.QUERY)[0]
        states = reference_states(ids)
        pooled = states[0] if pooling == "cls" else states.mean(0)
        assert vector @ (pooled / np.linalg.norm(pooled)) >= floor
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        unit = states / np.linalg.norm(states, axis=1, keepdims=True)
        halves = halves_of(tokens, HIDDEN)
        halves /= np.linalg.norm(halves, axis=1, keepdims=True)
        assert ((halves * unit[[piece_id >= len(SPECIAL) for piece_id in ids]]).sum(1) >= floor).all()


def test_prefixes_are_part_of_the_text(tmp_path: Path) -> None:
    prompts = {"query": "query : ", "passage": "passage : "}
    plain = encoder(write_tiny_model(tmp_path / "plain"), Precision.FP32)
    prefixed = encoder(write_tiny_model(tmp_path / "prefixed", prompts=prompts), Precision.FP32)
    for kind, prefix in ((TextKind.QUERY, "query : "), (TextKind.PASSAGE, "passage : ")):
        np.testing.assert_allclose(
            prefixed.encode(["hello world"], kind).vectors,
            plain.encode([prefix + "hello world"], kind).vectors,
            atol=1e-6,
        )


@pytest.mark.parametrize("prefix", ["bert.", "model."])
def test_checkpoints_with_prefixed_and_old_names_build_the_same_model(tmp_path: Path, prefix: str) -> None:
    def rename(name: str) -> str:
        return prefix + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    plain = encoder(write_tiny_model(tmp_path / "plain"), Precision.INT8)
    renamed = encoder(write_tiny_model(tmp_path / "renamed", rename=rename), Precision.INT8)
    expected = plain.encode(TEXTS, TextKind.PASSAGE).vectors
    np.testing.assert_array_equal(renamed.encode(TEXTS, TextKind.PASSAGE).vectors, expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "xlm-roberta"),
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("num_attention_heads", 5),
        ("hidden_size", None),
    ],
)
def test_an_architecture_that_would_come_out_wrong_is_refused(tiny: Path, field: str, value: Any) -> None:
    config = json.loads((tiny / "config.json").read_text())
    config[field] = value
    (tiny / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFormatError, match=field):
        read_config(tiny / "config.json")


def test_weights_that_do_not_fit_the_config_are_refused(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"vocab_size": 99}))
    with pytest.raises(ModelFormatError, match="word_embeddings"):
        store.pull(str(tiny), tiny.parent / "cache")
    (tiny / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS + 1}))
    with pytest.raises(ModelFormatError, match=f"layer.{LAYERS}"):
        store.pull(str(tiny), tiny.parent / "cache")
