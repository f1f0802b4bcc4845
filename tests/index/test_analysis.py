"""Analysis: equal to Whoosh on plain words, sound for the rest of Unicode, the same whatever the cache holds."""

from __future__ import annotations

import json
import threading
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whoosh.analysis import LowercaseFilter, RegexTokenizer, StemFilter, StemmingAnalyzer, StopFilter
from whoosh.lang.snowball.english import EnglishStemmer

from dakera_cluster.index import analysis
from dakera_cluster.index.analysis import MAX_TERM_CHARS, STOP_WORDS, query_terms, spans, terms, token_terms

TEXT = (
    "the running runners ran happily ponies university universal organization organised generously skis dying news "
    "relational conditional adoption adopted children wolves I you Caroline went to support group yesterday and WAS "
    "2023 05 42 x b12 covid19 of in on at connections connected connecting national nationality sky skies"
)
WORDS = TEXT.split()


def whoosh_terms(text: str) -> list[str]:
    analyzer = StemmingAnalyzer(
        expression=r"[^\W_]+", stoplist=STOP_WORDS, minsize=1, maxsize=None, stemfn=EnglishStemmer().stem, cachesize=-1
    )
    return [token.text for token in analyzer(text)]


@given(st.lists(st.sampled_from(WORDS), max_size=30), st.sampled_from([" ", ", ", "-", " / ", "\n", "_", "! "]))
def test_plain_words_come_out_as_from_whoosh(words: list[str], separator: str) -> None:
    text = separator.join(words)
    assert terms(text) == whoosh_terms(text)


@given(st.text("abcdeilmnorsty AEIST09.-!", max_size=80))
@settings(max_examples=300)
def test_random_ascii_comes_out_as_from_whoosh(text: str) -> None:
    # Whoosh's StemFilter stems anything; ours leaves words with digits alone, on which Snowball may differ.
    expected = [
        stemmed if token.isalpha() else token
        for token, stemmed in zip(
            [
                t.text
                for t in (RegexTokenizer(r"[^\W_]+") | LowercaseFilter() | StopFilter(STOP_WORDS, minsize=1))(text)
            ],
            [
                t.text
                for t in (
                    RegexTokenizer(r"[^\W_]+")
                    | LowercaseFilter()
                    | StopFilter(STOP_WORDS, minsize=1)
                    | StemFilter(stemfn=EnglishStemmer().stem)
                )(text)
            ],
            strict=True,
        )
    ]
    assert terms(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Caroline's dog", ["carolin", "dog"]),
        ("don't, can't, I'll, we've", []),
        ("O'Brien rock'n'roll", ["obrien", "rocknrol"]),
        ("O\u2019Brien\u2019s", ["obrien"]),
        ("'quoted'", ["quot"]),
        ("on 2023-05-08 at 10:30", ["2023", "05", "08", "10", "30"]),
        ("$1,234,567 or 1,200", ["1234567", "1200"]),
        ("12345,678 and 1,2,3", ["12345", "678", "1", "2", "3"]),
        ("3.14 v1.2.3 10.0.0.1", ["3", "14", "v1", "2", "3", "10", "0", "0", "1"]),
        ("snake_case kebab-case a.b@c.de", ["snake", "case", "kebab", "case", "b", "c", "de"]),
        ("Café NAÏVE Ångström", ["cafe", "naiv", "angstrom"]),
        ("cafe\u0301", ["cafe"]),
        ("Straße Łódź Ærø", ["strass", "lodz", "aero"]),
        ("İstanbul ISTANBUL", ["istanbul", "istanbul"]),
        ("ＦＵＬＬ ２０２３ ﬁne", ["full", "2023", "fine"]),
        ("½ x²", ["1", "2", "x2"]),
        ("Привет ЁЛКА", ["привет", "ёлка"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("黒猫", ["黒", "黒猫", "猫"]),
        ("iPhone手机", ["iphon", "手", "手机", "机"]),
        ("❤️ 👍 — …", []),
        ("", []),
        ("x" * 500, ["x" * MAX_TERM_CHARS]),
    ],
)
def test_text_of_all_kinds(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


@given(st.text(max_size=60))
@settings(max_examples=500)
def test_any_text_gives_clean_terms_independent_of_the_cache(text: str) -> None:
    warm = terms(text)
    assert [term for token, _, _ in spans(text) for term in token_terms(token)] == warm
    analysis._learned.clear()
    assert terms(text) == warm
    for term in warm:
        assert 0 < len(term) <= MAX_TERM_CHARS and len(term.encode()) <= 255
        assert not set(term) & set(" \t\n_'\"")
    if not any(char in text for char in "İı"):
        assert terms(unicodedata.normalize("NFC", text)) == terms(unicodedata.normalize("NFD", text))


@given(st.text(max_size=60))
def test_spans_point_into_the_text(text: str) -> None:
    last = 0
    for token, start, end in spans(text):
        assert text[start:end].replace("_", " ") == token
        assert last <= start < end
        last = end


def test_questions_lose_the_words_they_are_asked_with() -> None:
    assert query_terms("What kind of dog did Caroline's sister adopt?") == ["dog", "carolin", "sister", "adopt"]
    assert query_terms("What's the new job?") == ["new", "job"]
    assert query_terms("who are they") == terms("who are they") == ["who"]
    assert query_terms("") == []
    # What is remembered of a token says the same again, in any case.
    assert query_terms("WHAT kind of Dog did Caroline\u2019s sister adopt?") == ["dog", "carolin", "sister", "adopt"]


def test_cache_is_bounded_and_eviction_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "CACHE_TOKENS", 64)
    analysis._learned.clear()
    words = [f"word{number}running" for number in range(500)]
    first = [terms(word) for word in words]
    assert len(analysis._learned) <= 64
    assert [terms(word) for word in words] == first


def test_threads_share_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "CACHE_TOKENS", 50)
    analysis._learned.clear()
    results: list[str] = []

    def work() -> None:
        results.append(json.dumps([terms(f"alpha{number % 97} betas running") for number in range(2_000)]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len(set(results)) == 1
