"""Kinds of values a setting can have: how the text of a variable becomes a typed value, and what to say when it does not.

Invariant: `parse` is pure and accepts exactly what `expected` describes; `parse(show(v)) == v` for every value that is
not a secret. A kind raises ValueError without a useful text; the message for the operator (name, value, what was expected)
is made by the loader, which alone knows the name. Used by the sections of the configuration table and by the loader.
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
E = TypeVar("E", bound=enum.StrEnum)

_SIZE_FACTOR = {
    "": 1,
    "b": 1,
    "k": 1024,
    "kb": 1000,
    "kib": 1024,
    "m": 1024**2,
    "mb": 1000**2,
    "mib": 1024**2,
    "g": 1024**3,
    "gb": 1000**3,
    "gib": 1024**3,
    "t": 1024**4,
    "tb": 1000**4,
    "tib": 1024**4,
}
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_NUMBER_WITH_UNIT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_LOG_LEVELS = ("trace", "debug", "info", "warn", "error", "off")
_LOG_TARGET = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]*")
_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Secret:
    """A value that is never printed by accident: its text comes out only where `reveal` is called."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class HostPort(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Kind(Protocol[T]):
    """What the loader needs of a kind of value."""

    @property
    def expected(self) -> str:
        """Completes the sentence `expected ...`."""
        ...

    @property
    def unit(self) -> str: ...

    def parse(self, text: str) -> T:
        """Raises ValueError."""
        ...

    def show(self, value: T) -> str: ...


class _Base(Generic[T]):
    @property
    def unit(self) -> str:
        return ""

    def show(self, value: T) -> str:
        return str(value)


def _range_text(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}" if high < 1e6 else f" from {low:g} to {high:.0f}"
    if low is not None:
        return f" of at least {low:g}"
    return ""


def _check_range(value: float, low: float | None, high: float | None) -> None:
    if (low is not None and value < low) or (high is not None and value > high):
        raise ValueError


@dataclass(frozen=True, slots=True)
class Int(_Base[int]):
    low: int | None = 0
    high: int | None = 2**63 - 1
    of: str = ""

    @property
    def unit(self) -> str:
        return self.of

    @property
    def expected(self) -> str:
        return "a whole number" + _range_text(self.low, None if self.high == 2**63 - 1 else self.high)

    def parse(self, text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", text):
            raise ValueError
        value = int(text)
        _check_range(value, self.low, self.high)
        return value


PORT = Int(1, 65535, of="port")


@dataclass(frozen=True, slots=True)
class Float(_Base[float]):
    low: float | None = 0.0
    high: float | None = None
    of: str = ""

    @property
    def unit(self) -> str:
        return self.of

    @property
    def expected(self) -> str:
        return "a number" + _range_text(self.low, self.high)

    def parse(self, text: str) -> float:
        if not re.fullmatch(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?", text):
            raise ValueError
        value = float(text)
        _check_range(value, self.low, self.high)
        return value

    def show(self, value: float) -> str:
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)


@dataclass(frozen=True, slots=True)
class Bool(_Base[bool]):
    also_true: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        return "true or false (also 1, 0, yes, no, on, off" + "".join(f", {word}" for word in self.also_true) + ")"

    def parse(self, text: str) -> bool:
        word = text.lower()
        if word in ("true", "1", "yes", "on", *self.also_true):
            return True
        if word in ("false", "0", "no", "off"):
            return False
        raise ValueError

    def show(self, value: bool) -> str:
        return "true" if value else "false"


@dataclass(frozen=True, slots=True)
class Size(_Base[int]):
    """A count of bytes. K, M, G and KiB, MiB, GiB are powers of 1024; KB, MB, GB powers of 1000."""

    low: int = 0

    @property
    def unit(self) -> str:
        return "bytes"

    @property
    def expected(self) -> str:
        least = f" of at least {self.low}" if self.low else ""
        return f"a number of bytes{least}, such as 536870912, 512MiB or 1G"

    def parse(self, text: str) -> int:
        match = _NUMBER_WITH_UNIT.fullmatch(text.lower())
        if match is None or match[2] not in _SIZE_FACTOR:
            raise ValueError
        value = float(match[1]) * _SIZE_FACTOR[match[2]] if "." in match[1] else int(match[1]) * _SIZE_FACTOR[match[2]]
        if value != int(value) or value > 2**63 - 1:
            raise ValueError
        _check_range(value, self.low, None)
        return int(value)


@dataclass(frozen=True, slots=True)
class Duration(_Base[int]):
    """A time in whole units of `of` (ms, s, min, h or d); a bare number is in that unit, a suffix names another."""

    of: str
    low: int = 0
    high: int | None = None

    @property
    def unit(self) -> str:
        return self.of

    @property
    def expected(self) -> str:
        return f"a time in {self.of}{_range_text(self.low, self.high)}, or with a unit such as 500ms, 30s, 5m, 2h, 7d"

    def parse(self, text: str) -> int:
        match = _NUMBER_WITH_UNIT.fullmatch(text.lower())
        if match is None or (match[2] and match[2] not in _UNIT_MS):
            raise ValueError
        value = float(match[1]) * _UNIT_MS[match[2] or self.of] / _UNIT_MS[self.of]
        if value != int(value) or value > 2**53:
            raise ValueError
        _check_range(value, self.low, self.high)
        return int(value)


@dataclass(frozen=True, slots=True)
class Choice(_Base[E]):
    """One of an enum's values; `spellings` maps further accepted words (lower case) to them."""

    of: type[E]
    spellings: Mapping[str, E] | None = None

    @property
    def expected(self) -> str:
        also = f" (also {', '.join(self.spellings)})" if self.spellings else ""
        return "one of " + ", ".join(self.of) + also

    def parse(self, text: str) -> E:
        word = text.lower()
        if self.spellings and word in self.spellings:
            return self.spellings[word]
        return self.of(word)

    def show(self, value: E) -> str:
        return value.value


@dataclass(frozen=True, slots=True)
class Text(_Base[str]):
    """Any text without control characters."""

    pattern: re.Pattern[str] | None = None
    says: str = "text without control characters"

    @property
    def expected(self) -> str:
        return self.says

    def parse(self, text: str) -> str:
        if not text.isprintable() or (self.pattern is not None and not self.pattern.fullmatch(text)):
            raise ValueError
        return text


BUCKET = Text(_BUCKET, "a bucket name: 3 to 63 lower-case letters, digits, dots and hyphens")
NODE_ID = Text(_NODE_ID, "a node id: 1 to 64 letters, digits, dots, hyphens and underscores")


@dataclass(frozen=True, slots=True)
class Path(_Base[str]):
    @property
    def expected(self) -> str:
        return "a path"

    def parse(self, text: str) -> str:
        if "\0" in text:
            raise ValueError
        return text


@dataclass(frozen=True, slots=True)
class SecretText(_Base[Secret]):
    least_chars: int = 1

    @property
    def expected(self) -> str:
        return f"a secret of at least {self.least_chars} printable characters"

    def parse(self, text: str) -> Secret:
        if len(text) < self.least_chars or not text.isprintable():
            raise ValueError
        return Secret(text)

    def show(self, value: Secret) -> str:
        return "***"


@dataclass(frozen=True, slots=True)
class SecretKey(SecretText):
    """`key_bytes` bytes in hexadecimal or base64."""

    key_bytes: int = 32

    @property
    def expected(self) -> str:
        return f"{self.key_bytes} bytes as {2 * self.key_bytes} hexadecimal digits or as base64"

    def parse(self, text: str) -> Secret:
        try:
            key = bytes.fromhex(text) if len(text) == 2 * self.key_bytes else base64.b64decode(text, validate=True)
        except binascii.Error:
            raise ValueError from None
        if len(key) != self.key_bytes:
            raise ValueError
        return Secret(text)


@dataclass(frozen=True, slots=True)
class Url(_Base[str]):
    """An absolute URL, kept without a trailing slash. User and password are allowed and hidden when shown."""

    schemes: tuple[str, ...] = ("http", "https")

    @property
    def expected(self) -> str:
        return "a URL starting with " + " or ".join(f"{scheme}://" for scheme in self.schemes)

    def parse(self, text: str) -> str:
        parts = urlsplit(text)
        if parts.scheme.lower() not in self.schemes or (not parts.hostname and parts.scheme != "unix"):
            raise ValueError
        if not text.isprintable() or " " in text or parts.port == 0:
            raise ValueError
        return text.rstrip("/")

    def show(self, value: str) -> str:
        return re.sub(r"//[^/@]*@", "//***@", value)


def parse_host_port(text: str, default_port: int | None) -> HostPort:
    """`host:port`, `[v6]:port`, and with a default also a bare `host`. Raises ValueError."""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or not re.fullmatch(r"[0-9A-Fa-f:.%a-z]+", host) or (rest and not rest.startswith(":")):
            raise ValueError
        port_text = rest[1:]
    else:
        host, _, port_text = text.partition(":")
        if not _HOST.fullmatch(host):
            raise ValueError
    if not port_text and default_port is not None and not text.endswith(":"):
        return HostPort(host, default_port)
    return HostPort(host, PORT.parse(port_text))


@dataclass(frozen=True, slots=True)
class Endpoint(_Base[HostPort]):
    default_port: int | None = None

    @property
    def expected(self) -> str:
        return "host:port" + ("" if self.default_port is None else f" (port {self.default_port} when left out)")

    def parse(self, text: str) -> HostPort:
        return parse_host_port(text, self.default_port)


@dataclass(frozen=True, slots=True)
class Many(_Base[tuple[T, ...]]):
    """A comma-separated list; blanks around and empty items are dropped."""

    item: Kind[T]

    @property
    def expected(self) -> str:
        return f"a comma-separated list, each {self.item.expected}"

    def parse(self, text: str) -> tuple[T, ...]:
        return tuple(self.item.parse(part.strip()) for part in text.split(",") if part.strip())

    def show(self, value: tuple[T, ...]) -> str:
        return ",".join(self.item.show(item) for item in value)


@dataclass(frozen=True, slots=True)
class LogFilter(_Base[str]):
    """`level` and `target=level`, comma-separated, as in `info,dakera=debug`."""

    @property
    def expected(self) -> str:
        return "a level (trace, debug, info, warn, error, off), and optionally target=level, as in info,dakera=debug"

    def parse(self, text: str) -> str:
        parts = [part.strip() for part in text.lower().split(",") if part.strip()]
        if not parts:
            raise ValueError
        for part in parts:
            target, given, level = part.rpartition("=")
            if level not in _LOG_LEVELS or (given and not _LOG_TARGET.fullmatch(target)):
                raise ValueError
        return ",".join(parts)
