"""Tiny pair models with weights that are known: random ones, and ones whose order can be told by looking at the texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.support import bert_reference

Weights = dict[str, NDArray[np.float32]]
WORDS = [
    "the",
    "a",
    "red",
    "fish",
    "swims",
    "in",
    "deep",
    "blue",
    "sea",
    "cat",
    "sat",
    "on",
    "mat",
    "which",
    "animal",
    "?",
    "one",
    "two",
    "three",
    "four",
]
BERT, XLM_ROBERTA = "bert", "xlm-roberta"
SPECIALS = {BERT: ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], XLM_ROBERTA: ["<s>", "<pad>", "</s>", "<unk>"]}
HIDDEN, HEADS, INNER, POSITIONS = 16, 2, 32, 64
TELLING_WORD = "fish"


def vocabulary(family: str) -> list[str]:
    return SPECIALS[family] + WORDS


def config(family: str, layers: int, labels: int = 1) -> dict[str, Any]:
    prefix = "Bert" if family == BERT else "XLMRoberta"
    return {
        "architectures": [f"{prefix}ForSequenceClassification"],
        "model_type": family,
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "vocab_size": len(vocabulary(family)),
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2 if family == BERT else 1,
        "layer_norm_eps": 1e-12 if family == BERT else 1e-5,
        "pad_token_id": 0 if family == BERT else 1,
        "id2label": {str(label): f"LABEL_{label}" for label in range(labels)},
    }


def pair_tokenizer(family: str) -> Tokenizer:
    pieces = {piece: index for index, piece in enumerate(vocabulary(family))}
    if family == BERT:
        tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
        single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
        around = [("[CLS]", 2), ("[SEP]", 3)]
    else:
        tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
        single, pair = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
        around = [("<s>", 0), ("</s>", 2)]
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single, pair, around)
    tokenizer.add_special_tokens(SPECIALS[family])
    # What real tokenizer files ask for and the scorer must undo.
    tokenizer.enable_padding(length=POSITIONS)
    tokenizer.enable_truncation(8)
    return tokenizer


def random_weights(family: str, layers: int, labels: int = 1, seed: int = 5) -> Weights:
    random = np.random.default_rng(seed)
    types = 2 if family == BERT else 1
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(vocabulary(family)), HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (types, HIDDEN),
    }
    linear = {f"{name}": (HIDDEN, HIDDEN) for name in head_names(family)[:1]} | {
        head_names(family)[1]: (labels, HIDDEN)
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}."
        linear |= {f"{prefix}attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")}
        linear |= {
            f"{prefix}attention.output.dense": (HIDDEN, HIDDEN),
            f"{prefix}intermediate.dense": (INNER, HIDDEN),
            f"{prefix}output.dense": (HIDDEN, INNER),
        }
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}
    weights = {name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in norms:
        weights[f"{name}.weight"] += 1
    return weights


def telling_weights(family: str) -> Weights:
    """One layer whose first token averages all tokens, and a head that reads how many of them are the telling word."""
    weights = {name: np.zeros_like(values) for name, values in random_weights(family, 1).items()}
    for name in weights:
        if name.endswith("LayerNorm.weight"):
            weights[name] += 1
    words = weights["embeddings.word_embeddings.weight"]
    words[:, 2], words[:, 3] = 1, -1
    words[vocabulary(family).index(TELLING_WORD)] = np.eye(HIDDEN, dtype=np.float32)[0] - np.eye(HIDDEN)[1]
    # Queries and keys are zero: attention is uniform. Values pass through: the first token gets the mean of all.
    for name in ("attention.self.value", "attention.output.dense"):
        weights[f"encoder.layer.0.{name}.weight"] += np.eye(HIDDEN, dtype=np.float32)
    inner, outer = head_names(family)
    weights[inner + ".weight"][0, 0] = 1
    weights[outer + ".weight"][0, 0] = 4
    return weights


def head_names(family: str) -> tuple[str, str]:
    return ("pooler.dense", "classifier") if family == BERT else ("classifier.dense", "classifier.out_proj")


def write_pair_model(folder: Path, family: str, weights: Weights, layers: int = 1, labels: int = 1) -> Path:
    """A directory as the hub lays it out, tensors named as their family names them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(family, layers, labels)))
    pair_tokenizer(family).save(str(folder / "tokenizer.json"))
    prefix = "bert." if family == BERT else "roberta."
    named = {name if name.startswith("classifier") else prefix + name: tensor for name, tensor in weights.items()}
    save_file(named, folder / "model.safetensors")
    return folder


def reference_logits(
    family: str, weights: Weights, layers: int, ids: list[int], types: list[int]
) -> NDArray[np.float64]:
    """The papers' model with its head over the first token."""
    settings = config(family, layers)
    linear, norm = bert_reference.float_parts(weights, settings["layer_norm_eps"])
    first = 0 if family == BERT else 2
    embedded = (
        weights["embeddings.word_embeddings.weight"][ids].astype(np.float64)
        + weights["embeddings.position_embeddings.weight"][first : first + len(ids)]
        + weights["embeddings.token_type_embeddings.weight"][types]
    )
    state = bert_reference.layers(norm(embedded, "embeddings.LayerNorm"), layers, HEADS, linear, norm)
    inner, outer = head_names(family)
    return linear(np.tanh(linear(state[:1], inner)), outer)[0]
