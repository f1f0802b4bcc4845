"""Time in questions and memories: what a question asks about, and how near a memory's own time is to it.

Two kinds of reference are read: dates (``8 May 2023``, ``May 8th``, ``2023-05-08``, ``in May``, ``in 2022``), with the parts
they leave out left open, and relative expressions (``yesterday``, ``last week``, ``three months ago``), resolved against a
moment the caller gives. A memory is compared by its own time (``event_time`` where given), in UTC days. English only; what is
not recognised is no reference. Pure: the clock is a parameter.

Called by evidence.py (the date in a content's head), the engine (questions) and features.py (closeness).
"""

from __future__ import annotations

import datetime as dt
import re

import msgspec
import numpy as np
from numpy.typing import NDArray

DAY_S = 86_400
AFTER_DAYS = 3.0
"""Scale of the fall after a named day: people tell of a day on the days that follow it."""
BEFORE_DAYS = 2.0
BEFORE_SHARE = 0.3
"""Closeness just before a named day: plans for it are told, but less."""
MAX_AMOUNT = 1_000

_MONTHS = [
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
]  # fmt: skip
_MONTH_OF = {name: number for number, name in enumerate(_MONTHS, 1)}
_MONTH_OF |= {name[:3]: number for name, number in _MONTH_OF.items()} | {"sept": 9}
_WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_NUMBERS = {
    w: n
    for n, w in enumerate(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], 1
    )
}
_NUMBERS |= {"a": 1, "an": 1, "couple": 2, "few": 3, "several": 4}

_MONTH = "(?P<month>" + "|".join(sorted(_MONTH_OF, key=len, reverse=True)) + r")\b\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?\b"
_YEAR = r"(?P<year>(?:19|20)\d\d)\b"
_DATES = (
    re.compile(rf"\b{_YEAR}-(?P<month>\d{{1,2}})-(?P<day>\d{{1,2}})\b"),
    re.compile(rf"\b{_DAY}\s+(?:of\s+)?{_MONTH}(?:,?\s+{_YEAR})?", re.IGNORECASE),
    re.compile(rf"\b{_MONTH}\s+{_DAY}(?!:)(?:,?\s+{_YEAR})?", re.IGNORECASE),
    re.compile(rf"\b{_MONTH},?\s+(?:of\s+)?{_YEAR}", re.IGNORECASE),
    re.compile(r"\b(?P<month>\d{1,2})/(?P<day>\d{1,2})/" + _YEAR),
    # A month alone must be written as a name, and the two that are verbs too need a word before them that verbs do not have.
    re.compile(r"\b(?P<month>" + "|".join(n.capitalize() for n in _MONTHS if n not in ("may", "march")) + r")\b"),
    re.compile(r"\b(?:in|of|during|since|by|until|last|next|this|early|mid|late)[\s-]+(?P<month>May|March)\b"),
    re.compile(rf"\b(?:in|of|since|during|from|by|until|before|after|year)\s+{_YEAR}", re.IGNORECASE),
)
_CLOCK = re.compile(r"\b(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::\d\d)?\s*(?P<half>[ap]m)?", re.IGNORECASE)
_AMOUNT = r"(?P<amount>\d{1,3}|" + "|".join(_NUMBERS) + r")(?:\s+of)?"
_UNIT = r"(?P<unit>day|week|month|year)s?"
_AGO = re.compile(rf"\b(?:a\s+)?{_AMOUNT}\s+{_UNIT}\s+(?P<way>ago|from now)\b", re.IGNORECASE)
_IN = re.compile(rf"\bin\s+{_AMOUNT}\s+{_UNIT}\b", re.IGNORECASE)
_PAST = re.compile(rf"\b(?:(?:in|over|during)\s+the\s+)?(?:last|past)\s+{_AMOUNT}\s+{_UNIT}\b", re.IGNORECASE)
_NAMED = re.compile(
    r"\b(?:(?P<which>last|this|next|past)\s+(?P<what>week|weekend|month|year|" + "|".join(_WEEKDAYS) + r")"
    r"|(?P<word>today|tonight|yesterday|tomorrow|day before yesterday))\b",
    re.IGNORECASE,
)
_WHEN = re.compile(
    r"\bwhen\b|\bhow long\b|\b(?:what|which)\s+(?:year|month|date|day|time|season|week)\b"
    r"|\bhow many (?:days|weeks|months|years)\b|\bhow (?:recently|often)\b",
    re.IGNORECASE,
)
# Most texts name no time: one look spares them all the others. Every date has a digit or a month's first letters, every
# relative expression and every question for a time one of these.
_DATE_HINTS = (*"0123456789", *(name[:3] for name in _MONTHS))
_SPAN_HINTS = ("day", "week", "month", "year", "tonight", "tomorrow")
_WHEN_HINTS = ("when", "date", "time", "season", "how long", "how recently", "how often")
_HINTS = (*_DATE_HINTS, *_SPAN_HINTS, *_WHEN_HINTS)
_DATE_HINT = re.compile("|".join((r"\d", *_DATE_HINTS)), re.IGNORECASE)
_SPAN_HINT = re.compile("|".join(_SPAN_HINTS), re.IGNORECASE)
_HINT = re.compile("|".join((r"\d", *_HINTS)), re.IGNORECASE)


class PartialDate(msgspec.Struct, frozen=True):
    """A date as far as it was said; None where a part is open."""

    year: int | None = None
    month: int | None = None
    day: int | None = None


class DaySpan(msgspec.Struct, frozen=True):
    """Days first..last, both included, as proleptic ordinals (``date.toordinal``)."""

    first: int
    last: int


class QueryTime(msgspec.Struct, frozen=True):
    """What a question says about time. ``asks_when``: the answer is a time."""

    asks_when: bool
    dates: tuple[PartialDate, ...]
    spans: tuple[DaySpan, ...]

    @property
    def is_bound(self) -> bool:
        """Whether the question names a time at all."""
        return bool(self.dates or self.spans)


_TIMELESS = QueryTime(False, (), ())


def query_time(text: str, now_s: float) -> QueryTime:
    """The time a question asks for or names; relative expressions are resolved against ``now_s``."""
    if not _hints(text, _HINTS, _HINT):
        return _TIMELESS
    return QueryTime(_WHEN.search(text) is not None, partial_dates(text), relative_spans(text, day_of(now_s)))


def _hints(text: str, parts: tuple[str, ...], pattern: re.Pattern[str]) -> bool:
    """Whether ``text`` has any of ``parts`` (lower case) in it. ``pattern`` says so too, more slowly, and knows which letters
    beyond ASCII are the same in another case."""
    return any(map(text.lower().__contains__, parts)) if text.isascii() else pattern.search(text) is not None


def day_of(seconds: float) -> int:
    """The UTC day of a moment, as an ordinal."""
    return dt.date(1970, 1, 1).toordinal() + int(seconds // DAY_S)


def partial_dates(text: str) -> tuple[PartialDate, ...]:
    """The dates in ``text``, each at its fullest, in no particular order but always the same."""
    if not _hints(text, _DATE_HINTS, _DATE_HINT):
        return ()
    found: list[PartialDate] = []
    taken: list[tuple[int, int]] = []
    for pattern in _DATES:
        for match in pattern.finditer(text):
            if any(start < match.end() and match.start() < end for start, end in taken):
                continue
            parts = match.groupdict()
            date = PartialDate(_int(parts.get("year")), _month(parts.get("month")), _int(parts.get("day")))
            taken.append(match.span())
            if _possible(date):
                found.append(date)
    return tuple(dict.fromkeys(found))


def relative_spans(text: str, today: int) -> tuple[DaySpan, ...]:
    """The stretches of days that relative expressions in ``text`` mean, seen from the day ``today``."""
    if not _hints(text, _SPAN_HINTS, _SPAN_HINT):
        return ()
    spans: list[DaySpan] = []
    for match in _AGO.finditer(text):
        sign = -1 if match["way"].lower() == "ago" else 1
        spans.append(_around(today, sign * _amount(match["amount"]), match["unit"].lower()))
    spans.extend(_around(today, _amount(match["amount"]), match["unit"].lower()) for match in _IN.finditer(text))
    for match in _PAST.finditer(text):
        reach = _around(today, -_amount(match["amount"]), match["unit"].lower())
        spans.append(DaySpan(reach.first, today))
    for match in _NAMED.finditer(text):
        if match["word"] is not None:
            word = match["word"].lower()
            shift = {"yesterday": -1, "tomorrow": 1, "day before yesterday": -2}.get(word, 0)
            spans.append(DaySpan(today + shift, today + shift))
        else:
            step = {"last": -1, "past": -1, "next": 1}.get(match["which"].lower(), 0)
            spans.append(_calendar(today, step, match["what"].lower()))
    return tuple(dict.fromkeys(spans))


def head_time(text: str) -> float | None:
    """The moment a content's head names (``1:56 pm on 8 May, 2023``) in Unix seconds UTC, None when it names no full date."""
    full = [date for date in partial_dates(text) if None not in (date.year, date.month, date.day)]
    if not full:
        return None
    date = full[0]
    assert date.year is not None and date.month is not None and date.day is not None
    moment = dt.datetime(date.year, date.month, date.day, tzinfo=dt.UTC)
    clock = _CLOCK.search(text)
    if clock is not None:
        hour, minute = int(clock["hour"]) % 24, int(clock["minute"]) % 60
        if clock["half"]:
            hour = hour % 12 + (12 if clock["half"].lower() == "pm" else 0)
        moment += dt.timedelta(hours=hour, minutes=minute)
    return moment.timestamp()


def day_closeness(when_s: NDArray[np.float64], query: QueryTime) -> NDArray[np.float32]:
    """0 to 1, float32[n]: how near each moment is to the days the question names; 0 when it names none."""
    days = dt.date(1970, 1, 1).toordinal() + np.floor_divide(when_s, DAY_S)
    best = np.zeros(len(when_s), np.float32)
    spans = [*query.spans, *(_single(date) for date in query.dates if None not in (date.year, date.month, date.day))]
    for span in spans:
        after, before = np.maximum(days - span.last, 0), np.maximum(span.first - days, 0)
        near = np.where(before > 0, BEFORE_SHARE * np.exp(-before / BEFORE_DAYS), np.exp(-after / AFTER_DAYS))
        best = np.maximum(best, near.astype(np.float32))
    return best


def month_match(when_s: NDArray[np.float64], query: QueryTime) -> NDArray[np.float32]:
    """1 where a moment lies in a month the question names (and its year, if said), 0.5 in a year named alone, else 0."""
    best = np.zeros(len(when_s), np.float32)
    if not query.dates:
        return best
    moments = when_s.astype("datetime64[s]")
    years = moments.astype("datetime64[Y]").astype(np.int64) + 1970
    months = moments.astype("datetime64[M]").astype(np.int64) % 12 + 1
    for date in query.dates:
        in_year = np.ones(len(when_s), bool) if date.year is None else years == date.year
        if date.month is None:
            best = np.maximum(best, 0.5 * in_year)
        else:
            best = np.maximum(best, (in_year & (months == date.month)).astype(np.float32))
    return best.astype(np.float32)


def _single(date: PartialDate) -> DaySpan:
    assert date.year is not None and date.month is not None and date.day is not None
    day = dt.date(date.year, date.month, date.day).toordinal()
    return DaySpan(day, day)


def _around(today: int, amount: int, unit: str) -> DaySpan:
    """The day, week, month or year that lies ``amount`` units from ``today``: the further, the vaguer."""
    days = {"day": 1, "week": 7, "month": 30, "year": 365}[unit]
    middle = today + amount * days
    slack = {"day": 0, "week": 3, "month": 15, "year": 182}[unit]
    return DaySpan(middle - slack, middle + slack)


def _calendar(today: int, step: int, what: str) -> DaySpan:
    date = dt.date.fromordinal(today)
    monday = today - date.weekday()
    if what == "week":
        return DaySpan(monday + 7 * step, monday + 7 * step + 6)
    if what == "weekend":
        return DaySpan(monday + 7 * step + 5, monday + 7 * step + 6)
    if what == "month":
        first = _first_of_month(date.year * 12 + date.month - 1 + step)
        return DaySpan(first, _first_of_month(date.year * 12 + date.month + step) - 1)
    if what == "year":
        return DaySpan(_first_of_month((date.year + step) * 12), _first_of_month((date.year + step + 1) * 12) - 1)
    weekday = _WEEKDAYS.index(what)
    if step == 0:
        return DaySpan(monday + weekday, monday + weekday)
    # "last Friday" is the nearest one before today, "next Friday" the nearest after.
    ahead = (weekday - date.weekday()) % 7 or 7
    behind = (date.weekday() - weekday) % 7 or 7
    day = today + ahead if step > 0 else today - behind
    return DaySpan(day, day)


def _first_of_month(months: int) -> int:
    year, month = divmod(months, 12)
    return dt.date(min(max(year, 1), 9999), month + 1, 1).toordinal()


def _amount(text: str) -> int:
    return min(int(text) if text.isdigit() else _NUMBERS[text.lower()], MAX_AMOUNT)


def _month(text: str | None) -> int | None:
    if text is None:
        return None
    return int(text) if text.isdigit() else _MONTH_OF[text.lower()]


def _int(text: str | None) -> int | None:
    return int(text) if text else None


def _possible(date: PartialDate) -> bool:
    try:
        dt.date(date.year or 2000, date.month or 1, date.day or 1)
    except ValueError:
        return False
    return True
