import datetime as dt

import numpy as np
import pytest

from dakera_cluster.retrieval.temporal import (
    PartialDate,
    QueryTime,
    day_closeness,
    day_of,
    head_time,
    month_match,
    partial_dates,
    query_time,
    relative_spans,
)

MONDAY = dt.date(2023, 5, 8).toordinal()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("on 8 May 2023", PartialDate(2023, 5, 8)),
        ("on May 8th, 2023", PartialDate(2023, 5, 8)),
        ("the 3rd of June", PartialDate(None, 6, 3)),
        ("2023-05-08 at noon", PartialDate(2023, 5, 8)),
        ("12/25/2023", PartialDate(2023, 12, 25)),
        ("in Sept. 2021", PartialDate(2021, 9, None)),
        ("during October", PartialDate(None, 10, None)),
        ("in 1999", PartialDate(1999, None, None)),
    ],
)
def test_a_date_is_read_as_far_as_it_is_said(text: str, expected: PartialDate) -> None:
    assert partial_dates(text) == (expected,)


@pytest.mark.parametrize(
    "text", ["May I come in?", "you may go", "they march on", "room 1999", "31 February 2020", "3:15 pm"]
)
def test_what_only_looks_like_a_date_is_none(text: str) -> None:
    assert partial_dates(text) == ()


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("yesterday", (2023, 5, 7), (2023, 5, 7)),
        ("last week", (2023, 5, 1), (2023, 5, 7)),
        ("next month", (2023, 6, 1), (2023, 6, 30)),
        ("last year", (2022, 1, 1), (2022, 12, 31)),
        ("last Friday", (2023, 5, 5), (2023, 5, 5)),
        ("last Monday", (2023, 5, 1), (2023, 5, 1)),
        ("next Monday", (2023, 5, 15), (2023, 5, 15)),
        ("three weeks ago", (2023, 4, 14), (2023, 4, 20)),
        ("in two days", (2023, 5, 10), (2023, 5, 10)),
        ("in the last 2 weeks", (2023, 4, 21), (2023, 5, 8)),
    ],
)
def test_relative_expressions_are_resolved(text: str, first: tuple[int, ...], last: tuple[int, ...]) -> None:
    (span,) = relative_spans(text, MONDAY)
    assert dt.date.fromordinal(span.first) == dt.date(*first)
    assert dt.date.fromordinal(span.last) == dt.date(*last)


def test_the_head_of_a_content_gives_its_moment() -> None:
    assert head_time("1:56 pm on 8 May, 2023") == dt.datetime(2023, 5, 8, 13, 56, tzinfo=dt.UTC).timestamp()
    assert head_time("8 May, 2023") == dt.datetime(2023, 5, 8, tzinfo=dt.UTC).timestamp()
    assert head_time("some time in May") is None


def test_memories_near_a_named_day_are_closer_and_the_days_after_count_more() -> None:
    asked = query_time("What did she do on 8 May 2023?", 0.0)
    day = dt.datetime(2023, 5, 8, 9, tzinfo=dt.UTC).timestamp()
    on, after, before, far = day_closeness(day + np.array([0, 1, -1, 60]) * 86_400.0, asked)
    assert on == 1.0
    assert on > after > before > far


def test_a_month_matches_in_any_year_unless_one_is_said() -> None:
    moments = np.array([dt.datetime(year, 5, 20, tzinfo=dt.UTC).timestamp() for year in (2022, 2023)])
    assert month_match(moments, query_time("in May", 0.0)).tolist() == [1.0, 1.0]
    assert month_match(moments, query_time("in May 2023", 0.0)).tolist() == [0.0, 1.0]
    assert month_match(moments, query_time("in 2023", 0.0)).tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("text", "asks"), [("When did he leave?", True), ("What year was it?", True), ("What did he say?", False)]
)
def test_questions_for_a_time_are_recognised(text: str, asks: bool) -> None:
    assert query_time(text, 0.0).asks_when is asks


@pytest.mark.parametrize("extra", ["", " – é"])
def test_a_time_is_found_whatever_letters_stand_beside_it(extra: str) -> None:
    assert not query_time(f"Who told whom of the pottery{extra}?", 0.0).is_bound
    assert query_time(f"WHEN was it{extra}?", 0.0) == QueryTime(True, (), ())
    assert query_time(f"How Long was it{extra}?", 0.0).asks_when
    assert query_time(f"What of 8 MAY 2023{extra}?", 0.0).dates == (PartialDate(2023, 5, 8),)
    assert query_time(f"What of YESTERDAY{extra}?", 0.0).spans == relative_spans("yesterday", day_of(0.0))
    assert query_time(f"What of Tomorrow{extra}?", 0.0).is_bound
