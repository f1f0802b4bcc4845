"""Builds a BERT encoder as an ONNX graph from `config.json` and safetensors weights, without torch.

Invariant: an encoder's graph takes `input_ids` and `attention_mask` (int64[batch, seq]) and yields `embedding`
(float32[batch, hidden]: pooled, L2 norm 1) and `tokens` (float32[batch, seq, hidden]: the last hidden state), so that
one forward pass gives both. A reranker's graph (BERT or XLM-RoBERTa with a classification head) yields `relevance`
(float32[batch]: the logit) and takes `token_type_ids` too where the model tells its two texts apart by them.
Row i of any output depends on row i of the input alone, in both precisions.

INT8 quantises weights per output channel (symmetric, at build time) and activations **per token** (symmetric, at run
time). The usual dynamic quantisation takes one scale for the whole activation tensor: a text's vector then depends on
which texts happened to share its batch (cosine down to 0.965 measured on MiniLM), and one outlier token coarsens all
others. One scale a token costs a few element-wise passes and removes both.

Called by the model store when a model is pulled. The only module of the package that imports `onnx`: a serving node
never pays for it.

Architecture: Devlin et al. 2019 (post-layer-norm BERT, exact GELU); pooling as sentence-transformers defines it;
Conneau et al. 2020 (XLM-RoBERTa: positions counted from behind the padding id); heads as Hugging Face names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from dakera_cluster.inference.models import PRODUCER, ROBERTA_FAMILY, ModelFormatError, Pooling, Precision, Task

OPSET = 20
IR_VERSION = 10
MASKED = -1e4
"""Added to the scores of padding: exp(-1e4) is 0 in float32, and the value survives half precision."""
INT8_MAX = 127
UINT8_ZERO = 128
SCALE_FLOOR = 1e-9
"""Keeps an all-zero row from dividing by zero; far below any scale that carries information."""


class BertConfig(msgspec.Struct, frozen=True):
    """What the builder reads of a Hugging Face `config.json` (unknown fields are ignored)."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12
    model_type: str = "bert"
    hidden_act: str = "gelu"
    position_embedding_type: str = "absolute"
    type_vocab_size: int = 2
    pad_token_id: int | None = None

    @property
    def first_position(self) -> int:
        """The position of the first token."""
        if self.model_type not in ROBERTA_FAMILY:
            return 0
        return (1 if self.pad_token_id is None else self.pad_token_id) + 1

    def check(self, task: Task) -> None:
        """Raises ModelFormatError for an architecture this builder would silently get wrong."""
        # An encoder's word pieces must be BERT's: recall reads the text's words back from them.
        families = ("bert",) if task is Task.EMBEDDING else ("bert", *ROBERTA_FAMILY)
        for field, accepted in (
            ("model_type", families),
            ("hidden_act", ("gelu",)),
            ("position_embedding_type", ("absolute",)),
        ):
            if getattr(self, field) not in accepted:
                raise ModelFormatError(
                    f"config.json: {field} is {getattr(self, field)!r}, only {' or '.join(map(repr, accepted))} "
                    "is supported"
                )
        if self.hidden_size % self.num_attention_heads:
            raise ModelFormatError(f"config.json: hidden_size {self.hidden_size} is no multiple of num_attention_heads")


def read_config(path: Path, task: Task = Task.EMBEDDING) -> BertConfig:
    """Reads and checks a `config.json`. Raises ModelFormatError."""
    try:
        config = msgspec.json.decode(path.read_bytes(), type=BertConfig)
    except msgspec.MsgspecError as error:
        raise ModelFormatError(f"{path.name}: {error}") from error
    config.check(task)
    return config


def build(config: BertConfig, weights: Path, target: Path, pooling: Pooling, precision: Precision) -> None:
    """Writes the ONNX file `target` for the safetensors file `weights`. Raises ModelFormatError when they do not fit."""
    graph = _BertGraph(config, _read_weights(weights), precision)
    graph.encoder()
    graph.pooled(pooling)
    _save(graph, target)


def build_reranker(config: BertConfig, weights: Path, target: Path, precision: Precision) -> None:
    """Writes the ONNX file `target` of a pair model. Raises ModelFormatError when weights and config do not fit."""
    graph = _BertGraph(config, _read_weights(weights), precision)
    graph.encoder(pairs=True)
    graph.relevance()
    _save(graph, target)


def _save(graph: _BertGraph, target: Path) -> None:
    model = graph.model()
    onnx.checker.check_model(model)
    onnx.save(model, str(target))


def _read_weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Tensors by their bare BERT names: checkpoints differ in a leading family name and in old layer-norm names."""
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, tensor in load_file(path).items():
        bare = name.removeprefix("model.").removeprefix("bert.").removeprefix("roberta.")
        bare = bare.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if np.issubdtype(tensor.dtype, np.integer):
            continue  # buffers such as position_ids
        tensors[bare] = np.asarray(tensor, np.float32)
    return tensors


class _BertGraph:
    """Accumulates nodes and initialisers. Values are named by the method that made them and a running number."""

    def __init__(self, config: BertConfig, weights: Mapping[str, NDArray[np.float32]], precision: Precision) -> None:
        self._config = config
        self._weights = weights
        self._precision = precision
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs = ["input_ids", "attention_mask"]
        self._outputs: list[onnx.ValueInfoProto] = []
        self._tokens = ""
        self._mask = ""

    # -- the model, top down ------------------------------------------------------------------------------------------

    def encoder(self, *, pairs: bool = False) -> None:
        """The stack of layers. ``pairs``: token types are an input, where the model has more than one."""
        config = self._config
        if pairs and config.type_vocab_size > 1:
            self._inputs.append("token_type_ids")
        self._mask = self._op("Cast", ["attention_mask"], to=TensorProto.FLOAT)
        penalty = self._op(
            "Mul", [self._op("Sub", [self._scalar("one", 1.0), self._mask]), self._scalar("masked", MASKED)]
        )
        penalty = self._op("Unsqueeze", [penalty, self._axes(1, 2)])
        state = self._norm(self._embeddings(), "embeddings.LayerNorm")
        for index in range(config.num_hidden_layers):
            layer = f"encoder.layer.{index}."
            attended = self._linear(self._attention(state, penalty, layer), [layer + "attention.output.dense"])
            state = self._norm(self._op("Add", [attended, state]), layer + "attention.output.LayerNorm")
            inner = self._op("Gelu", [self._linear(state, [layer + "intermediate.dense"])])
            state = self._norm(
                self._op("Add", [self._linear(inner, [layer + "output.dense"]), state]), layer + "output.LayerNorm"
            )
        self._tokens = state

    def pooled(self, pooling: Pooling) -> None:
        hidden = self._config.hidden_size
        self._output("Identity", [self._tokens], "tokens", ["batch", "seq", hidden])
        if pooling is Pooling.CLS:
            vector = self._first()
        else:
            weighted = self._op("Mul", [self._tokens, self._op("Unsqueeze", [self._mask, self._axes(2)])])
            total = self._op("ReduceSum", [weighted, self._axes(1)], keepdims=0)
            vector = self._op("Div", [total, self._op("ReduceSum", [self._mask, self._axes(1)], keepdims=1)])
        norm = self._op("ReduceL2", [vector, self._axes(1)], keepdims=1)
        norm = self._op("Max", [norm, self._scalar("floor", SCALE_FLOOR)])
        self._output("Div", [vector, norm], "embedding", ["batch", hidden])

    def relevance(self) -> None:
        """The classification head over the first token: one logit, or the difference of two (relevant less irrelevant).

        In float32 in either precision: it is one row a pair, and its rounding would be the answer's.
        """
        inner, outer = "pooler.dense", "classifier"
        if self._config.model_type in ROBERTA_FAMILY:
            inner, outer = "classifier.dense", "classifier.out_proj"
        labels = len(self._weight(outer + ".bias"))
        if labels not in (1, 2):
            raise ModelFormatError(f"the head has {labels} labels: a reranker has one, or two (irrelevant, relevant)")
        state = self._op("Tanh", [self._product(self._first(), inner)])
        logits = self._product(state, outer)
        sign = np.array([1.0] if labels == 1 else [-1.0, 1.0], np.float32)
        weighted = self._op("Mul", [logits, self._constant("label_signs", sign)])
        self._output("ReduceSum", [weighted, self._axes(1)], "relevance", ["batch"], keepdims=0)

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes,
            "bert-encoder",
            [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"]) for name in self._inputs],
            sorted(self._outputs, key=lambda output: output.name),
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, producer_name=PRODUCER, ir_version=IR_VERSION)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _embeddings(self) -> str:
        words = self._weight("embeddings.word_embeddings.weight", self._config.vocab_size)
        if self._precision is Precision.FP32:
            word = self._op("Gather", [self._constant("words", words), "input_ids"], axis=0)
        else:
            quantised, scale = _quantise(words, axis=1)
            rows = self._op("Gather", [self._constant("words", quantised), "input_ids"], axis=0)
            scales = self._op("Gather", [self._constant("word_scales", scale), "input_ids"], axis=0)
            word = self._op("Mul", [self._op("Cast", [rows], to=TensorProto.FLOAT), scales])
        types = self._weight("embeddings.token_type_embeddings.weight", self._config.type_vocab_size)
        positions = self._weight("embeddings.position_embeddings.weight", self._config.max_position_embeddings)
        positions = positions[self._config.first_position :]
        if "token_type_ids" in self._inputs:
            kinds = self._op("Gather", [self._constant("token_types", types), "token_type_ids"], axis=0)
            word = self._op("Add", [word, kinds])
        else:
            # Every input is one segment: token type 0 is a constant, folded into the positions.
            positions = positions + types[0]
        length = self._op("Slice", [self._op("Shape", ["input_ids"]), self._axes(1), self._axes(2)])
        place = self._op("Slice", [self._constant("positions", positions), self._axes(0), length, self._axes(0)])
        return self._op("Add", [word, place])

    def _attention(self, state: str, penalty: str, layer: str) -> str:
        heads = self._config.num_attention_heads
        width = self._config.hidden_size // heads
        split = self._constant("split_heads", np.array([0, 0, heads, width], np.int64))
        merge = self._constant("merge_heads", np.array([0, 0, self._config.hidden_size], np.int64))
        names = [f"{layer}attention.self.{part}" for part in ("query", "key", "value")]
        query, key, value = (
            self._op("Transpose", [self._op("Reshape", [projected, split])], perm=perm)
            for projected, perm in zip(
                self._ops("Split", [self._linear(state, names)], 3, axis=2, num_outputs=3),
                ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]),
                strict=True,
            )
        )
        scores = self._op("Mul", [self._op("MatMul", [query, key]), self._scalar("attention_scale", width**-0.5)])
        shares = self._op("Softmax", [self._op("Add", [scores, penalty])], axis=-1)
        context = self._op("Transpose", [self._op("MatMul", [shares, value])], perm=[0, 2, 1, 3])
        return self._op("Reshape", [context, merge])

    def _linear(self, state: str, names: Sequence[str]) -> str:
        """x W^T + b for the concatenation of the named layers: one product reads (and quantises) its input once."""
        weight = np.concatenate([self._weight(name + ".weight") for name in names]).T
        bias = self._constant(names[0] + ".bias", np.concatenate([self._weight(name + ".bias") for name in names]))
        if self._precision is Precision.FP32:
            return self._affine(state, names[0], weight, bias)
        quantised, scale = _quantise(weight, axis=0)
        peak = self._op("ReduceMax", [self._op("Abs", [state]), self._axes(-1)], keepdims=1)
        peak = self._op("Max", [peak, self._scalar("floor", SCALE_FLOOR)])
        unit = self._scalar("unit", 1 / INT8_MAX)
        zero = self._constant("zero", np.array(UINT8_ZERO, np.uint8))
        # Activations are unsigned around 128, weights signed: the pairing x86 has dot-product instructions for.
        activations = self._op("QuantizeLinear", [self._op("Mul", [state, self._op("Reciprocal", [peak])]), unit, zero])
        product = self._op(
            "MatMulIntegerToFloat",
            [
                activations,
                self._constant(names[0] + ".weight", quantised),
                unit,
                self._constant(names[0] + ".scale", scale.reshape(-1)),
                zero,
            ],
            domain="com.microsoft",
        )
        return self._op("Add", [self._op("Mul", [product, peak]), bias])

    def _affine(self, state: str, name: str, weight: NDArray[np.float32], bias: str) -> str:
        return self._op("Add", [self._op("MatMul", [state, self._constant(name + ".weight", weight)]), bias])

    def _product(self, state: str, name: str) -> str:
        """x W^T + b of one layer, in float32."""
        bias = self._constant(name + ".bias", self._weight(name + ".bias"))
        return self._affine(state, name, self._weight(name + ".weight").T, bias)

    def _first(self) -> str:
        """The state of the first token: float32[batch, hidden]."""
        return self._op("Gather", [self._tokens, self._constant("first", np.array(0, np.int64))], axis=1)

    def _norm(self, state: str, name: str) -> str:
        scale = self._constant(name + ".weight", self._weight(name + ".weight"))
        bias = self._constant(name + ".bias", self._weight(name + ".bias"))
        return self._op("LayerNormalization", [state, scale, bias], axis=-1, epsilon=self._config.layer_norm_eps)

    # -- bricks -------------------------------------------------------------------------------------------------------

    def _weight(self, name: str, rows: int | None = None) -> NDArray[np.float32]:
        try:
            tensor = self._weights[name]
        except KeyError:
            raise ModelFormatError(f"the weights have no tensor {name!r}: not a BERT encoder") from None
        if rows is not None and tensor.shape != (rows, self._config.hidden_size):
            raise ModelFormatError(
                f"tensor {name!r} is {tensor.shape}, config.json promises {(rows, self._config.hidden_size)}"
            )
        return tensor

    def _op(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        return self._ops(kind, inputs, 1, **attributes)[0]

    def _ops(self, kind: str, inputs: Sequence[str], outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        name = f"{kind}.{len(self._nodes)}"
        results = [f"{name}.{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, results, name=name, domain=domain, **attributes))
        return results

    def _output(self, kind: str, inputs: Sequence[str], name: str, shape: list[str | int], **attributes: Any) -> None:
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def _scalar(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, np.float32))

    def _axes(self, *axes: int) -> str:
        return self._constant("axes" + "".join(f"_{axis}" for axis in axes), np.array(axes, np.int64))


def _quantise(values: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale along `axis`; returns (int8 like `values`, float32 scales with `axis` kept as 1)."""
    scale = np.maximum(np.abs(values).max(axis=axis, keepdims=True) / INT8_MAX, SCALE_FLOOR).astype(np.float32)
    return np.round(values / scale).astype(np.int8), scale
