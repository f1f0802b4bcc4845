from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from dakera_cluster.inference import store
from dakera_cluster.inference.models import ModelFormatError, Precision, Task, resolve
from dakera_cluster.inference.pairs import PairScorer
from tests.support.pair_models import (
    BERT,
    POSITIONS,
    XLM_ROBERTA,
    pair_tokenizer,
    random_weights,
    reference_logits,
    telling_weights,
    vocabulary,
    write_pair_model,
)

FAMILIES = [BERT, XLM_ROBERTA]
QUERY = "which animal swims ?"
TEXTS = ["the red fish swims in the deep blue sea", "the cat sat on the mat", "", "fish", "a zzz cat"]


def scorer(folder: Path, precision: Precision = Precision.FP32, max_batch_tokens: int = 256) -> PairScorer:
    cache = folder.parent / "cache"
    store.pull(str(folder), cache, precision=precision)
    return PairScorer(store.find(str(folder), cache, precision, Task.RERANKER), max_batch_tokens=max_batch_tokens)


def spelled(family: str, ids: list[int]) -> str:
    return " ".join(vocabulary(family)[piece] for piece in ids)


def test_texts_are_joined_as_the_tokenizer_file_says(tmp_path: Path) -> None:
    bert = scorer(write_pair_model(tmp_path / BERT, BERT, random_weights(BERT, 1)))
    (pair,) = bert.pairs("which fish", ["the sea"])
    assert spelled(BERT, pair.ids) == "[CLS] which fish [SEP] the sea [SEP]"
    assert pair.types == [0, 0, 0, 0, 1, 1, 1]
    roberta = scorer(write_pair_model(tmp_path / XLM_ROBERTA, XLM_ROBERTA, random_weights(XLM_ROBERTA, 1)))
    (pair,) = roberta.pairs("which fish", ["the sea"])
    assert spelled(XLM_ROBERTA, pair.ids) == "<s> which fish </s> </s> the sea </s>"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize(("precision", "tolerance"), [(Precision.FP32, 1e-4), (Precision.INT8, 0.1)])
def test_relevance_is_that_of_the_reference(
    tmp_path: Path, family: str, labels: int, precision: Precision, tolerance: float
) -> None:
    weights = random_weights(family, 2, labels)
    model = scorer(write_pair_model(tmp_path / "model", family, weights, layers=2, labels=labels), precision)
    pairs = model.pairs(QUERY, TEXTS)
    expected = []
    for pair in pairs:
        types = pair.types if family == BERT else [0] * len(pair.ids)
        logits = reference_logits(family, weights, 2, pair.ids, types)
        expected.append(logits[0] if labels == 1 else logits[1] - logits[0])
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(model.forward(pairs), expected, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", list(Precision))
def test_the_order_is_the_one_the_weights_prove(tmp_path: Path, family: str, precision: Precision) -> None:
    model = scorer(write_pair_model(tmp_path / "model", family, telling_weights(family)), precision)
    texts = [
        "one fish two three",
        "one two three four",
        "fish fish fish fish",
        "fish one fish two",
        "fish fish one fish",
    ]
    logits = model.forward(model.pairs(QUERY, texts))
    assert np.argsort(-logits).tolist() == [2, 4, 3, 0, 1]
    assert (np.abs(np.diff(np.sort(logits))) > 0.05).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", list(Precision))
def test_relevance_does_not_depend_on_the_batch(tmp_path: Path, family: str, precision: Precision) -> None:
    model = scorer(write_pair_model(tmp_path / "model", family, random_weights(family, 2), layers=2), precision)
    pairs = model.pairs(QUERY, TEXTS)
    together = model.forward(pairs)
    alone = [float(model.forward([pair])[0]) for pair in pairs]
    np.testing.assert_allclose(together, alone, atol=2e-4)
    np.testing.assert_allclose(model.forward(pairs[::-1])[::-1], alone, atol=2e-4)


def test_batches_keep_the_order_and_the_token_budget(tmp_path: Path) -> None:
    model = scorer(write_pair_model(tmp_path / "model", BERT, random_weights(BERT, 1)), max_batch_tokens=24)
    pairs = model.pairs("which fish", ["sea", "one two", "the", "one two three four " * 8, "a", "a"])
    groups = model.batches(pairs)
    assert [place for group in groups for place in group] == list(range(6))
    assert [list(group) for group in groups] == [[0, 1, 2], [3], [4, 5]]
    assert model.batches([]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_question_leaves_room_for_the_text_and_both_fit_the_model(tmp_path: Path, family: str) -> None:
    folder = write_pair_model(tmp_path / "model", family, random_weights(family, 1))
    assert resolve(str(folder), Task.RERANKER).max_tokens == (POSITIONS if family == BERT else POSITIONS - 2)
    model = scorer(folder)
    for query in ("which fish " * 100, "which", ""):
        pairs = model.pairs(query, ["the cat sat on the mat " * 50, "sea"])
        assert max(len(pair.ids) for pair in pairs) == model.spec.max_tokens
        assert spelled(family, pairs[1].ids).split()[-2] == "sea"
        assert np.isfinite(model.forward(pairs)).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", ["flat", "column", "two"])
def test_a_graph_of_another_exporter_runs(tmp_path: Path, family: str, shape: str) -> None:
    weights = random_weights(family, 1)
    expected = scorer(write_pair_model(tmp_path / "built", family, weights))
    graph = onnx.load(store.find(str(tmp_path / "built"), tmp_path / "cache", Precision.FP32, Task.RERANKER).graph_path)
    helper, nodes = onnx.helper, graph.graph.node
    if shape == "flat":
        nodes.append(helper.make_node("Identity", ["relevance"], ["logits"]))
    else:
        graph.graph.initializer.append(helper.make_tensor("column_axis", onnx.TensorProto.INT64, [1], [1]))
        nodes.append(helper.make_node("Unsqueeze", ["relevance", "column_axis"], ["column"]))
        if shape == "two":
            nodes.append(helper.make_node("Neg", ["column"], ["irrelevant"]))
            nodes.append(helper.make_node("Concat", ["irrelevant", "column"], ["logits"], axis=1))
        else:
            nodes.append(helper.make_node("Identity", ["column"], ["logits"]))
    del graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None))
    exported = write_pair_model(tmp_path / "exported", family, weights)
    (exported / "model.safetensors").unlink()
    onnx.save(graph, exported / "model.onnx")
    found = scorer(exported, Precision.INT8)
    logits = found.forward(found.pairs(QUERY, TEXTS))
    factor = 2 if shape == "two" else 1
    np.testing.assert_allclose(logits, factor * expected.forward(expected.pairs(QUERY, TEXTS)), atol=3e-4)


def test_models_that_would_answer_nonsense_are_refused(tmp_path: Path) -> None:
    many = write_pair_model(tmp_path / "many", BERT, random_weights(BERT, 1, labels=3), labels=3)
    with pytest.raises(ModelFormatError, match="3 labels"):
        store.pull(str(many), tmp_path / "cache")
    headless = {name: tensor for name, tensor in random_weights(BERT, 1).items() if not name.startswith("classifier")}
    with pytest.raises(ModelFormatError, match=r"classifier\.bias"):
        store.pull(str(write_pair_model(tmp_path / "headless", BERT, headless)), tmp_path / "cache")
    unjoined = write_pair_model(tmp_path / "unjoined", BERT, random_weights(BERT, 1))
    tokenizer = pair_tokenizer(BERT).to_str()
    (unjoined / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer) | {"post_processor": None}))
    with pytest.raises(ModelFormatError, match="how two texts are joined"):
        scorer(unjoined)


def test_a_directory_is_pulled_as_what_its_config_says_and_taken_for_what_is_asked(tmp_path: Path) -> None:
    folder = write_pair_model(tmp_path / "model", BERT, random_weights(BERT, 1))
    assert resolve(str(folder), None).task is Task.RERANKER
    assert resolve(str(folder)).task is Task.EMBEDDING
    entries = {store.entry_path(resolve(str(folder), task), tmp_path, Precision.INT8) for task in Task}
    assert len(entries) == 2
