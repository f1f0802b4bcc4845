"""Which word pieces are kept, and what a question's features are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from dakera_cluster.inference.encoding import Encoded, EncodedText, TokenVectors
from dakera_cluster.retrieval.writing import (
    PieceRules,
    embedded_query,
    pack_tokens,
    row_fields,
    unpack_tokens,
)

PIECES = ["the", "fern", ",", "##s", "who", "likes", "##.", "shade"]
THE, FERN, COMMA, TAIL, WHO, LIKES, DOT, SHADE = range(len(PIECES))
NO_IDS: list[int] = []


class Vocabulary:
    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, ids: Sequence[int]) -> list[str]:
        self.asked.append(list(ids))
        return [PIECES[number % len(PIECES)] for number in ids]


def tokens_of(ids: Sequence[int]) -> TokenVectors:
    count = len(ids)
    return TokenVectors(tuple(ids), bytes(range(count * 2)), np.arange(count * 16, dtype="<f2").tobytes())


def encoded_of(*tokens: TokenVectors) -> Encoded:
    vectors = np.eye(len(tokens), 16, dtype="<f4") + np.ones((1, 16), "<f4")
    return Encoded([EncodedText(vector.tobytes(), own) for vector, own in zip(vectors, tokens, strict=True)], 16)


@pytest.mark.parametrize(
    ("ids", "is_query", "places"),
    [
        ([THE, FERN, TAIL, LIKES, COMMA, SHADE], False, [1, 2, 3, 5]),
        ([WHO, LIKES, SHADE, DOT], True, [1, 2]),
        ([THE, COMMA, DOT], False, [0, 1, 2]),
        ([FERN, FERN], True, [0, 1]),
        (NO_IDS, True, NO_IDS),
    ],
)
def test_pieces_that_carry_meaning_are_kept_and_all_when_none_does(
    ids: list[int], is_query: bool, places: list[int]
) -> None:
    rules = PieceRules(Vocabulary())
    assert list(rules.kept(ids, is_query=is_query)) == places
    assert list(rules.kept(ids, is_query=is_query)) == places


def test_a_piece_is_looked_up_once_however_large_its_id() -> None:
    vocabulary = Vocabulary()
    rules = PieceRules(vocabulary)
    far = 250_001  # "fern"
    for ids in ([SHADE, far, SHADE], [far, SHADE], [COMMA, far]):
        assert far % len(PIECES) == FERN
        rules.kept(ids, is_query=True)
    assert vocabulary.asked == [[SHADE, far], [COMMA]]


def test_a_question_is_made_of_its_telling_tokens() -> None:
    encoded = encoded_of(tokens_of([WHO, FERN, COMMA, SHADE]))
    sent = embedded_query(encoded, PieceRules(Vocabulary()))
    rows = np.arange(4 * 16, dtype=np.float16).reshape(4, 16)[[1, 3]]
    assert (sent.vector, sent.token_ids, sent.token_vectors) == (
        encoded.texts[0].vector,
        [FERN, SHADE],
        rows.tobytes(),
    )
    asked = embedded_query(encoded, PieceRules(Vocabulary())).features("Who? Fern, shade", 5.0)
    assert asked.token_ids.tolist() == [FERN, SHADE]
    np.testing.assert_array_equal(asked.token_vectors, rows)
    assert asked.vector is not None
    np.testing.assert_array_equal(asked.vector, encoded.vectors[0])
    assert asked.now_s == 5.0


@pytest.mark.parametrize("encoded", [None, encoded_of(tokens_of(NO_IDS)), Encoded([EncodedText(b"\0" * 64)], 16)])
def test_a_question_without_a_model_or_tokens_has_none(encoded: Encoded | None) -> None:
    asked = embedded_query(encoded, PieceRules(Vocabulary())).features("", 5.0)
    width = 0 if encoded is None else 16
    assert (asked.vector is None) == (encoded is None)
    assert asked.token_vectors.shape == (0, width) and asked.token_ids.shape == (0,)


def test_the_tokens_of_passages_are_packed_in_order() -> None:
    counts, ids, signs = unpack_tokens(
        pack_tokens([tokens_of([THE, FERN]), tokens_of([SHADE, COMMA, LIKES])], PieceRules(Vocabulary()))
    )
    assert (counts, ids.tolist()) == ([1, 2], [FERN, SHADE, LIKES])
    assert signs.tolist() == [[2, 3], [0, 1], [4, 5]]


def test_a_memorys_vector_is_that_of_its_passage_or_the_mean_of_several() -> None:
    rules = PieceRules(Vocabulary())
    one = encoded_of(tokens_of([FERN]))
    fields = row_fields(one, rules)
    assert fields["vector"] == one.texts[0].vector and fields["passages"] is None
    two = encoded_of(tokens_of([FERN]), tokens_of([SHADE]))
    fields = row_fields(two, rules)
    assert fields["vector"] is not None and fields["passages"] is not None
    mean = two.vectors.mean(axis=0)
    np.testing.assert_allclose(np.frombuffer(fields["vector"], "<f4"), mean / np.linalg.norm(mean), atol=1e-6)
