"""Where the settings of this process come from: its environment, and one TOML file when it is named.

The parsing itself is pure and lives in `dakera_cluster.model.config`; here are only the file and the texts an operator
sees. Called by the process entry.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from dakera_cluster.model.config import ConfigError, ConfigWarning, Problem, Settings, WarningKind, load

log = logging.getLogger(__name__)


def read_settings(env: Mapping[str, str], file: Path | None) -> tuple[Settings, list[ConfigWarning]]:
    """Settings from ``env`` and ``file``. Raises ConfigError, also for a file that cannot be read or parsed."""
    if file is None:
        return load(env)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([Problem("--config", str(file), f"a readable TOML file ({error.strerror})")]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([Problem("--config", str(file), f"a TOML file ({error})")]) from None
    return load(env, table)


def log_warnings(warnings: Sequence[ConfigWarning]) -> None:
    """One line a warning, but one line for all names without effect: stacks set dozens of them."""
    idle = [warning.name for warning in warnings if warning.kind is WarningKind.NO_EFFECT]
    for warning in warnings:
        if warning.kind is not WarningKind.NO_EFFECT:
            log.warning("%s: %s", warning.name, warning.message)
    if idle:
        log.info("accepted, but without effect: %s", ", ".join(idle))


def describe(error: ConfigError) -> str:
    """What is printed before the process gives up."""
    count = len(error.problems)
    head = "the configuration has a wrong value" if count == 1 else f"the configuration has {count} wrong values"
    return "\n".join([f"dakera: {head}:", *(f"  {problem}" for problem in error.problems)])
