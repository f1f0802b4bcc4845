import numpy as np
import pytest

from dakera_cluster.retrieval.traits import LENGTH_SCORES, Role, canonical_text, spoken, traits_of


def test_metadata_names_the_speaker_before_the_content_does() -> None:
    parts = spoken("[1:56 pm on 8 May, 2023] Caz: I went.", {"speaker": "Caroline"})
    assert (parts.speaker, parts.head_date, parts.body) == ("Caroline", "1:56 pm on 8 May, 2023", "I went.")


def test_the_head_is_the_fallback() -> None:
    assert spoken("[8 May 2023] Ann: Hello: you", None).speaker == "Ann"
    assert spoken("[8 May 2023] Ann: Hello: you", None).body == "Hello: you"


@pytest.mark.parametrize("content", ["Note: buy milk", "[todo] Ann: call", "plain text", "http://example.org/a"])
def test_what_is_no_head_stays_in_the_body(content: str) -> None:
    assert spoken(content, None).body == content
    assert spoken(content, None).speaker is None


@pytest.mark.parametrize(
    ("content", "metadata", "expected"),
    [
        ("[8 May 2023] Ann: I went.", None, "Ann: I went."),
        ("I went.", {"speaker": "Ann"}, "Ann: I went."),
        ("Ann: I went.", {"speaker": "Ann"}, "Ann: I went."),
        ("[8 May 2023] User: I went.", {"speaker": "User"}, "I went."),
        ("I went.", None, "I went."),
        ("[8 May 2023] Ann: ", None, "[8 May 2023] Ann: "),
    ],
)
def test_every_way_to_say_who_speaks_gives_the_same_text_to_embed(
    content: str, metadata: dict[str, str] | None, expected: str
) -> None:
    assert canonical_text(content, metadata) == expected


def test_traits_describe_the_body_only() -> None:
    traits = traits_of(spoken("[8 May 2023] Ann: My cat had three kittens yesterday.", None))
    assert traits.speaker == "ann"
    assert traits.role is Role.PERSON
    assert traits.words == 6
    assert traits.has_number
    assert traits.has_time
    assert 0 < traits.about_self < 1
    assert not traits.asks
    assert not traits_of(spoken("[8 May 2023] Ann: A cat sleeps.", None)).has_time
    assert traits_of(spoken("[8 May 2023] Ann: Why? It is warm there.", None)).asks


def test_roles_are_told_from_people() -> None:
    assert traits_of(spoken("Sure!", {"role": "assistant"})).role is Role.ASSISTANT
    assert traits_of(spoken("Hi", {"speaker": "User"})).role is Role.USER
    assert traits_of(spoken("Hi", {"speaker": "Userta"})).role is Role.PERSON


def test_length_counts_up_to_a_paragraph() -> None:
    nothing, few, enough, many = LENGTH_SCORES[np.minimum([0, 10, 40, 4000], len(LENGTH_SCORES) - 1)].tolist()
    assert nothing == 0
    assert few < enough == many == 1
