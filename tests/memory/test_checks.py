"""Bounds on what a memory may hold: refused by field, at exactly the documented size."""

from __future__ import annotations

import pytest

from dakera_cluster.memory.store import check_content, check_tags
from dakera_cluster.model.errors import InvalidRequestError
from dakera_cluster.model.memories import MAX_CONTENT_CHARS, MAX_TAGS


def test_a_content_of_the_longest_length_passes_and_one_more_is_refused_by_name() -> None:
    assert len(check_content("x" * MAX_CONTENT_CHARS, "content")) == MAX_CONTENT_CHARS
    with pytest.raises(InvalidRequestError, match=r"^content: .*1000001") as refused:
        check_content("x" * (MAX_CONTENT_CHARS + 1), "content")
    assert refused.value.field == "content"


@pytest.mark.parametrize("content", ["", "   ", "\n"])
def test_an_empty_content_is_refused(content: str) -> None:
    with pytest.raises(InvalidRequestError, match="content: must not be empty"):
        check_content(content, "content")


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="valid Unicode"):
        check_content("a\ud800b", "content")


def test_too_many_tags_are_refused() -> None:
    check_tags(["t"] * MAX_TAGS, "tags")
    with pytest.raises(InvalidRequestError, match="tags"):
        check_tags(["t"] * (MAX_TAGS + 1), "tags")
