from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dakera_cluster.inference.embedder import MAX_BATCH_TOKENS, TextEncoder
from dakera_cluster.inference.encoding import Encoded
from dakera_cluster.inference.models import TextKind
from dakera_cluster.inference.onnx_pass import Device
from dakera_cluster.model.errors import InvalidRequestError

from .conftest import HIDDEN, POSITIONS, halves_of

REFERENCE = Path(__file__).parent / "data" / "minilm_reference.json"


@pytest.fixture(scope="module")
def reference() -> tuple[list[str], np.ndarray]:
    items = json.loads(REFERENCE.read_text())["items"]
    return [item["text"] for item in items], np.array([item["embedding"] for item in items], np.float32)


def test_fp32_gives_the_vectors_of_sentence_transformers(minilm_fp32: TextEncoder, reference: tuple) -> None:
    texts, expected = reference
    cosine = (minilm_fp32.encode(texts, TextKind.PASSAGE).vectors * expected).sum(1)
    assert cosine.min() >= 0.99999


def test_int8_stays_close_to_sentence_transformers(minilm: TextEncoder, reference: tuple) -> None:
    texts, expected = reference
    cosine = (minilm.encode(texts, TextKind.PASSAGE).vectors * expected).sum(1)
    assert cosine.min() >= 0.98
    assert cosine.mean() >= 0.99


def test_a_vector_does_not_depend_on_its_batch(minilm: TextEncoder, reference: tuple) -> None:
    texts = reference[0][-9:]
    alone = np.vstack([minilm.encode([text], TextKind.PASSAGE).vectors for text in texts])
    # One forward pass over everything: the worst padding and the most neighbours there can be.
    ids = minilm.tokenize(texts, TextKind.PASSAGE)
    together = Encoded(minilm.forward(ids, TextKind.PASSAGE, tokens=False), minilm.dimension).vectors
    assert (alone * together).sum(1).min() >= 0.99999
    batched = minilm.encode(texts[::-1], TextKind.PASSAGE).vectors[::-1]
    assert (alone * batched).sum(1).min() >= 0.99999


def test_token_vectors_leave_out_special_tokens_and_are_packed_signs(minilm: TextEncoder) -> None:
    texts = ["Working on PR #123", "", "naïve café"]
    queries = minilm.encode(texts, TextKind.QUERY, tokens=True)
    stored = minilm.encode(texts, TextKind.PASSAGE, tokens=True)
    assert queries.tokens is not None and stored.tokens is not None
    assert [minilm.pieces(tokens.ids) for tokens in queries.tokens] == [
        ["working", "on", "pr", "#", "123"],
        [],
        ["naive", "cafe"],
    ]
    for query, passage in zip(queries.tokens, stored.tokens, strict=True):
        halves = halves_of(query, 384)
        signs = np.frombuffer(query.signs, np.uint8).reshape(len(query.ids), 48)
        assert passage.halves is None and passage.ids == query.ids and len(passage.signs) == len(query.signs)
        np.testing.assert_allclose(np.linalg.norm(halves, axis=1), 1, atol=1e-3)
        are_positive = np.unpackbits(signs, axis=1).astype(bool)
        # A small number may be 0 in 16 bits; its sign is that of the state.
        assert are_positive[halves > 0].all() and not are_positive[halves < 0].any()
        assert (halves == 0).mean() < 0.01 if halves.size else True


def test_vocabulary_lookups_know_words_and_continuations(minilm: TextEncoder) -> None:
    assert minilm.pieces(minilm.tokenize(["embeddings"], TextKind.QUERY)[0][1:-1]) == ["em", "##bed", "##ding", "##s"]
    the = minilm.piece_id("the")
    assert the is not None and minilm.pieces([the]) == ["the"]
    assert minilm.piece_id("no such piece") is None
    with pytest.raises(KeyError):
        minilm.pieces([10**6])


def test_texts_are_cut_at_the_models_limit_and_not_padded(minilm: TextEncoder, tiny_encoder: TextEncoder) -> None:
    assert [len(ids) for ids in minilm.tokenize(["word " * 1000, "word"], TextKind.PASSAGE)] == [256, 3]
    assert len(tiny_encoder.tokenize(["cat " * 500], TextKind.PASSAGE)[0]) == POSITIONS
    cut = minilm.encode(["word " * 254, "word " * 5000], TextKind.PASSAGE).vectors
    assert cut[0] @ cut[1] >= 0.99999


def test_batches_cover_every_text_once_within_the_token_budget(tiny_encoder: TextEncoder) -> None:
    lengths = np.random.default_rng(3).integers(2, MAX_BATCH_TOKENS + 50, 300)
    ids = [[0] * int(length) for length in lengths]
    batches = tiny_encoder.batches(ids)
    assert sorted(index for batch in batches for index in batch) == list(range(300))
    assert all(len(batch) * max(lengths[batch]) <= MAX_BATCH_TOKENS for batch in batches if len(batch) > 1)
    assert len(batches) <= 1.25 * lengths.sum() / MAX_BATCH_TOKENS + 1 or max(map(len, batches)) > 1


def test_results_come_in_the_order_of_the_texts(tiny_encoder: TextEncoder) -> None:
    texts = ["the cat sat on the mat .", "cat", "deep blue sea", "", "a dog"] * 20
    encoded = tiny_encoder.encode(texts, TextKind.PASSAGE, tokens=True)
    assert encoded.tokens is not None
    for place in range(5):
        single = tiny_encoder.encode([texts[place]], TextKind.PASSAGE, tokens=True)
        assert single.tokens is not None
        for row in range(place, len(texts), 5):
            assert encoded.vectors[row] @ single.vectors[0] >= 0.99999
            assert encoded.tokens[row].ids == single.tokens[0].ids
    assert tiny_encoder.encode([], TextKind.QUERY).vectors.shape == (0, HIDDEN)


def test_results_are_read_only(tiny_encoder: TextEncoder) -> None:
    encoded = tiny_encoder.encode(["cat"], TextKind.QUERY, tokens=True)
    assert encoded.tokens is not None
    for part in (encoded.texts[0].vector, encoded.tokens[0].ids, encoded.tokens[0].signs, encoded.tokens[0].halves):
        assert isinstance(part, bytes | tuple)
    with pytest.raises(ValueError, match="read-only"):
        encoded.vectors[0] = 0


@pytest.mark.parametrize("text", ["\x00", "lone \ud800 surrogate", "🙂" * 400, " \t\n", "​" * 50])
def test_odd_text_gets_a_unit_vector(minilm: TextEncoder, text: str) -> None:
    vectors = minilm.encode([text], TextKind.PASSAGE, tokens=True).vectors
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-4)


def test_a_device_that_is_not_there_is_refused_by_the_settings_name(minilm: TextEncoder) -> None:
    from dakera_cluster.inference import store

    with pytest.raises(InvalidRequestError, match="DAKERA_INFERENCE_DEVICE"):
        TextEncoder(store.find("minilm", store.default_cache_dir()), device=Device.CUDA)


def test_serving_needs_neither_onnx_nor_safetensors() -> None:
    code = (
        "import sys, dakera_cluster.inference.service\n"
        "print([name for name in ('onnx', 'safetensors', 'torch') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
