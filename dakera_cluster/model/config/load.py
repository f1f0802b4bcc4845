"""From environment and file to `Settings`: environment over file over default, and every problem told at once.

Pure: the caller reads the environment and the file. Empty text counts as not given, because compose files pass
`NAME=${NAME:-}`. Raises only ConfigError. Called by the process entry, by tools and by tests.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from dakera_cluster.model.config.cluster import Cluster
from dakera_cluster.model.config.foreign import CLIENT_NAMES, is_foreign
from dakera_cluster.model.config.memory import MemoryLife
from dakera_cluster.model.config.models import Models
from dakera_cluster.model.config.observability import Observability
from dakera_cluster.model.config.retrieval import Retrieval
from dakera_cluster.model.config.server import Limits, Server
from dakera_cluster.model.config.settings import ROWS, SECTIONS, Settings
from dakera_cluster.model.config.storage import Storage, StorageKind
from dakera_cluster.model.config.variable import Row

_PREFIX = "DAKERA_"
_SHOWN_CHARS = 120


class Problem(msgspec.Struct, frozen=True):
    """One wrong value. ``value`` is already redacted where the setting is a secret, and empty where nothing was given."""

    name: str
    value: str
    expected: str

    def __str__(self) -> str:
        given = f"={self.value!r}" if self.value else " is not set"
        return f"{self.name}{given}: expected {self.expected}"


class ConfigError(ValueError):
    """The configuration cannot be used; ``problems`` lists everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class WarningKind(enum.StrEnum):
    UNKNOWN = "unknown"
    SHADOWED = "shadowed"
    NO_EFFECT = "no_effect"
    UNMET = "unmet"
    RISKY = "risky"


class ConfigWarning(msgspec.Struct, frozen=True):
    kind: WarningKind
    name: str
    message: str


class _Given(NamedTuple):
    """Where a value came from, as the operator wrote it."""

    name: str
    text: str


def load(env: Mapping[str, str], toml: Mapping[str, Any] | None = None) -> tuple[Settings, list[ConfigWarning]]:
    """Settings from variables and a parsed TOML file (None: no file). Raises ConfigError."""
    problems: list[Problem] = []
    warnings: list[ConfigWarning] = []
    filed, unread = _flatten(toml or {}, problems)
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    given: dict[tuple[str, str], _Given] = {}
    for row in ROWS:
        found = _find(row, env, filed, warnings)
        unread.discard(row.toml)
        if found is None:
            continue
        try:
            values[row.section][row.field] = row.var.kind.parse(found.text)
        except ValueError:
            problems.append(_problem(row, found))
            continue
        given[row.section, row.field] = found
        if not row.var.effect and row.var.relied_on and values[row.section][row.field] != row.default:
            warnings.append(
                ConfigWarning(WarningKind.UNMET, found.name, "NOT in force: this release does not do it yet")
            )
        elif not row.var.effect:
            warnings.append(ConfigWarning(WarningKind.NO_EFFECT, found.name, "accepted, but without effect"))
    warnings.extend(_unknown_variables(env))
    warnings.extend(_unknown_keys(unread))
    if ("storage", "path") in given and ("storage", "kind") not in given:
        values["storage"]["kind"] = StorageKind.FILESYSTEM
    settings = Settings(
        server=Server(**values["server"]),
        limits=Limits(**values["limits"]),
        storage=Storage(**values["storage"]),
        models=Models(**values["models"]),
        retrieval=Retrieval(**values["retrieval"]),
        memory=MemoryLife(**values["memory"]),
        cluster=Cluster(**values["cluster"]),
        observability=Observability(**values["observability"]),
    )
    if not problems:
        problems.extend(_contradictions(settings, given))
    if problems:
        raise ConfigError(problems)
    warnings.extend(_risks(settings))
    return settings, warnings


def _find(row: Row, env: Mapping[str, str], filed: Mapping[str, str], warnings: list[ConfigWarning]) -> _Given | None:
    """The value in force, by precedence: the canonical variable, its aliases in order, the file."""
    found = [_Given(name, env[name].strip()) for name in (row.var.name, *row.var.aliases) if env.get(name, "").strip()]
    for other in found[1:]:
        if other.text != found[0].text:
            message = f"ignored: {found[0].name} names the same setting and wins"
            warnings.append(ConfigWarning(WarningKind.SHADOWED, other.name, message))
    if found:
        return found[0]
    text = filed.get(row.toml)
    return None if text is None else _Given(row.toml, text)


def _problem(row: Row, found: _Given) -> Problem:
    shown = "***" if row.secret else found.text
    if len(shown) > _SHOWN_CHARS:
        shown = shown[:_SHOWN_CHARS] + "..."
    return Problem(found.name, shown, row.var.kind.expected)


def _flatten(toml: Mapping[str, Any], problems: list[Problem]) -> tuple[dict[str, str], set[str]]:
    """`section.key` -> text as a variable would hold it, and the set of all keys."""
    filed: dict[str, str] = {}
    secret_keys = {row.toml for row in ROWS if row.secret}
    for key, value in _leaves("", toml):
        text = _as_text(value)
        if text is None:
            shown = "***" if key in secret_keys else str(value)[:_SHOWN_CHARS]
            problems.append(Problem(key, shown, "text, a number, true or false, or a list of texts"))
        else:
            filed[key] = text
    return {key: text for key, text in filed.items() if text}, set(filed)


def _leaves(prefix: str, table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from _leaves(path, value)
        else:
            yield path, value


def _as_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return None


def _known_names() -> list[str]:
    return [name for row in ROWS for name in (row.var.name, *row.var.aliases)]


def _unknown_variables(env: Mapping[str, str]) -> Iterator[ConfigWarning]:
    known = _known_names()
    for name in sorted(env):
        if name.startswith(_PREFIX) and name not in known and not is_foreign(name):
            near = difflib.get_close_matches(name, [*known, *CLIENT_NAMES], n=1, cutoff=0.75)
            yield ConfigWarning(WarningKind.UNKNOWN, name, "unknown variable" + _did_you_mean(near))


def _unknown_keys(unread: set[str]) -> Iterator[ConfigWarning]:
    known = [row.toml for row in ROWS]
    for key in sorted(unread):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        yield ConfigWarning(WarningKind.UNKNOWN, key, "unknown key of the configuration file" + _did_you_mean(near))


def _did_you_mean(near: list[str]) -> str:
    return f", did you mean {near[0]}?" if near else ""


def _contradictions(settings: Settings, given: Mapping[tuple[str, str], _Given]) -> Iterator[Problem]:
    """Values that are each right and cannot stand together."""

    def problem(section: str, field: str, expected: str) -> Problem:
        row = next(row for row in ROWS if (row.section, row.field) == (section, field))
        found = given.get((section, field))
        if found is not None:
            return msgspec.structs.replace(_problem(row, found), expected=expected)
        shown = "" if row.default is None else row.default_text
        return Problem(row.var.name, shown, expected)

    cluster, storage = settings.cluster, settings.storage
    if cluster.probe_timeout_ms >= cluster.probe_interval_ms:
        expected = f"less than the probe interval ({cluster.probe_interval_ms} ms)"
        yield problem("cluster", "probe_timeout_ms", expected)
    if cluster.enabled and not storage.kind.in_s3 and storage.bucket_path is None:
        expected = "a directory that all nodes share, or DAKERA_STORAGE=s3: a cluster decides through its bucket"
        yield problem("storage", "bucket_path", expected)
    if cluster.gossip_key_previous is not None and cluster.gossip_key is None:
        yield problem("cluster", "gossip_key", "the new key, because DAKERA_GOSSIP_KEY_PREVIOUS is set")
    if (cluster.peer_tls_cert is None) != (cluster.peer_tls_key is None):
        missing = "peer_tls_key" if cluster.peer_tls_key is None else "peer_tls_cert"
        yield problem("cluster", missing, "to be set together with its certificate or key")
    if (storage.s3_access_key is None) != (storage.s3_secret_key is None):
        missing = "s3_secret_key" if storage.s3_secret_key is None else "s3_access_key"
        yield problem("storage", missing, "to be set together with the other half of the bucket's credentials")
    if ("storage", "encryption") in given and storage.encryption_key is None and storage.kind is not StorageKind.MEMORY:
        yield problem("storage", "encryption_key", "a key, because encryption at rest is asked for by name")
    if settings.limits.rate_limit_rps and not settings.limits.rate_limit_burst:
        yield problem("limits", "rate_limit_burst", "at least 1 while RATE_LIMIT_RPS is not 0")


def _risks(settings: Settings) -> Iterator[ConfigWarning]:
    if settings.cluster.enabled and settings.storage.kind is StorageKind.MEMORY:
        message = "memory in a cluster: a node that restarts has to be filled again by its peers"
        yield ConfigWarning(WarningKind.RISKY, "DAKERA_STORAGE", message)
    if settings.cluster.enabled and settings.cluster.replication_factor < 3:
        message = f"{settings.cluster.replication_factor}: no write survives the loss of one node"
        yield ConfigWarning(WarningKind.RISKY, "DAKERA_REPLICATION_FACTOR", message)
