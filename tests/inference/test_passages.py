from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dakera_cluster.inference.embedder import TextEncoder
from dakera_cluster.inference.passages import passages


def words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\w|[^\w\s]", text)]


def cut(text: str, max_tokens: int, overlap_tokens: int) -> list[str]:
    return [text[start:end] for start, end in passages(text, words(text), max_tokens, overlap_tokens)]


def test_a_text_that_fits_is_one_passage_and_an_empty_one_has_none() -> None:
    assert cut("  a b c. ", 4, 1) == ["a b c."]
    assert cut(" \n ", 4, 1) == []


def test_passages_end_at_sentences_when_the_window_has_one_in_its_second_half() -> None:
    text = "a b c d. e f g h i. j k l m n o."
    assert cut(text, 8, 0) == ["a b c d.", "e f g h i.", "j k l m n o."]


def test_passages_fall_back_to_words_and_then_to_tokens() -> None:
    assert cut("ab cd ef gh ij", 5, 0) == ["ab cd", "ef gh", "ij"]
    assert cut("abcdefgh", 3, 0) == ["abc", "def", "gh"]
    assert cut("私は。元気", 4, 0) == ["私は。", "元気"]


def test_the_overlap_begins_at_a_sentence_when_there_is_one() -> None:
    text = "a b c d e. f g. h i j k l m."
    assert cut(text, 10, 4) == ["a b c d e. f g.", "f g. h i j k l m."]


@pytest.mark.parametrize("overlap", [-1, 6])
def test_an_overlap_that_could_stand_still_is_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap_tokens"):
        passages("a b", words("a b"), 10, overlap)


@given(st.text(alphabet="ab .!\n。", max_size=300), st.integers(1, 30), st.data())
def test_every_token_is_covered_in_windows_that_fit_and_move_on(text: str, limit: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, limit // 2))
    spans = words(text)
    ranges = passages(text, spans, limit, overlap)
    for start, end in spans:
        assert any(low <= start and end <= high for low, high in ranges)
    tokens = [[span for span in spans if low <= span[0] and span[1] <= high] for low, high in ranges]
    assert all(1 <= len(window) <= limit for window in tokens)
    for earlier, later in itertools.pairwise(tokens):
        assert earlier[0] < later[0] and earlier[-1] < later[-1]
        assert len(set(earlier) & set(later)) <= overlap
    assert ranges == passages(text, spans, limit, overlap)


def test_windows_of_real_word_pieces_are_read_whole_by_the_model(minilm: TextEncoder) -> None:
    from dakera_cluster.inference.models import TextKind

    text = "Antidisestablishmentarianism flourished in the naïve café. 🙂 日本語 too! " * 60
    ranges = passages(text, minilm.token_spans(text), 253, 32)
    lengths = [len(ids) for ids in minilm.tokenize([text[start:end] for start, end in ranges], TextKind.PASSAGE)]
    assert max(lengths) < 256 and min(lengths[:-1]) > 128
    assert all(text[end - 1] in ".!" for _, end in ranges)
