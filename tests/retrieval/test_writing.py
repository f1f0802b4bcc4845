"""Which word pieces are kept, and what a question's features are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from dakera_cluster.inference.encoding import Encoded, TokenVectors
from dakera_cluster.retrieval.writing import PieceRules, pack_tokens, query_features, unpack_tokens

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
    signs = np.arange(count * 2, dtype=np.uint8).reshape(count, 2)
    return TokenVectors(np.array(ids, np.int32), signs, np.arange(count * 16, dtype=np.float32).reshape(count, 16))


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
    kept = rules.kept(np.array(ids, np.int32), is_query=is_query)
    assert kept.tolist() == places
    assert rules.kept(np.array(ids, np.int32), is_query=is_query).tolist() == places


def test_a_piece_is_looked_up_once_however_large_its_id() -> None:
    vocabulary = Vocabulary()
    rules = PieceRules(vocabulary)
    far = 250_001  # "fern"
    for ids in ([SHADE, far, SHADE], [far, SHADE], [COMMA, far]):
        assert far % len(PIECES) == FERN
        rules.kept(np.array(ids, np.int32), is_query=True)
    assert vocabulary.asked == [[SHADE, far], [COMMA]]


def test_a_question_is_made_of_its_telling_tokens() -> None:
    encoded = Encoded(np.ones((1, 16), np.float32), [tokens_of([WHO, FERN, COMMA, SHADE])])
    asked = query_features("Who? Fern, shade", encoded, PieceRules(Vocabulary()), 5.0)
    assert asked.token_ids.tolist() == [FERN, SHADE]
    np.testing.assert_array_equal(asked.token_vectors, tokens_of(range(4)).floats[[1, 3]])
    assert asked.vector is not None
    assert (asked.vector.shape, asked.now_s) == ((16,), 5.0)


def test_the_tokens_of_passages_are_packed_in_order() -> None:
    counts, ids, signs = unpack_tokens(
        pack_tokens([tokens_of([THE, FERN]), tokens_of([SHADE, COMMA, LIKES])], PieceRules(Vocabulary()))
    )
    assert (counts, ids.tolist()) == ([1, 2], [FERN, SHADE, LIKES])
    assert signs.tolist() == [[2, 3], [0, 1], [4, 5]]
