"""Ids put together word by word are those that the tokenizer gives of the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from dakera_cluster.inference import store, word_pieces
from dakera_cluster.inference.models import Precision
from dakera_cluster.inference.word_pieces import MAX_PLAIN_CHARS, WordPieces

from .conftest import POSITIONS, tiny_tokenizer

PLAIN = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=80)
WORDS = st.lists(
    st.sampled_from(["The", "cats", "swims", "fishing", "42nd", "o'clock", "[MASK]", "[cls]", "::", "x" * 101])
)


def bare(tokenizer: Tokenizer, max_tokens: int) -> Tokenizer:
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def made(tokenizer: Tokenizer, max_tokens: int) -> WordPieces:
    found = word_pieces.word_pieces(tokenizer, max_tokens)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def minilm_tokenizer() -> Tokenizer:
    cache = store.default_cache_dir()
    store.pull("minilm", cache, precision=Precision.INT8)
    return bare(Tokenizer.from_file(str(store.find("minilm", cache, Precision.INT8).tokenizer_path)), 256)


@pytest.fixture(scope="module", params=["minilm", "tiny"])
def both(request: pytest.FixtureRequest, minilm_tokenizer: Tokenizer) -> tuple[Tokenizer, WordPieces]:
    if request.param == "minilm":
        return minilm_tokenizer, made(minilm_tokenizer, 256)
    tokenizer = bare(tiny_tokenizer(), POSITIONS)
    return tokenizer, made(tokenizer, POSITIONS)


@given(text=st.one_of(PLAIN, st.text(max_size=60), WORDS.map(" ".join), WORDS.map("".join)))
def test_they_are_the_tokenizers(both: tuple[Tokenizer, WordPieces], text: str) -> None:
    tokenizer, pieces = both
    for _ in range(2):
        ids = pieces.ids(text)
        assert ids is None or ids == tokenizer.encode(text.encode("utf-8", "replace").decode()).ids


def test_plain_texts_are_put_together_and_others_are_not(minilm_tokenizer: Tokenizer) -> None:
    pieces = made(minilm_tokenizer, 256)
    for text in ("", " ", "Where did Ada move to?", "a_b-c (d)", "unbelievably", "x" * 101, "word " * 200):
        assert pieces.ids(text) == minilm_tokenizer.encode(text).ids
    for text in (
        "naïve",
        "tab\there",
        "bell\x07",
        "a [SEP] b",
        "the [mask]",
        "word " * 255,
        "a" * (MAX_PLAIN_CHARS + 1),
    ):
        assert pieces.ids(text) is None


def test_a_word_is_asked_for_once_and_all_are_forgotten_over_the_bound(
    monkeypatch: pytest.MonkeyPatch, minilm_tokenizer: Tokenizer
) -> None:
    monkeypatch.setattr(word_pieces, "MAX_WORDS", 4)
    asked: list[list[str]] = []

    class Counted:
        normalizer = minilm_tokenizer.normalizer

        def __getattr__(self, name: str) -> object:
            return getattr(minilm_tokenizer, name)

        def encode_batch_fast(self, words: list[str], add_special_tokens: bool) -> object:
            asked.append(words)
            return minilm_tokenizer.encode_batch_fast(words, add_special_tokens=add_special_tokens)

    pieces = WordPieces(Counted(), 256)  # type: ignore[arg-type]
    for text in ("red red fish", "fish red", "one two", "three", "red three"):
        assert pieces.ids(text) == minilm_tokenizer.encode(text).ids
    assert asked == [["red", "fish"], ["one", "two"], ["three"], ["red"]]


def test_a_tokenizer_that_does_not_work_word_by_word_is_left_alone() -> None:
    other = bare(tiny_tokenizer(), POSITIONS)
    other.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert word_pieces.word_pieces(other, POSITIONS) is None
    unmarked = bare(tiny_tokenizer(), POSITIONS)
    unmarked.post_processor = None
    assert word_pieces.word_pieces(unmarked, POSITIONS) is None
