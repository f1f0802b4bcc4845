"""What an operator sees of the configuration: the real command, its exit status and its words."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dakera_cluster import __version__
from dakera_cluster.model.config import ConfigError, load
from node.settings import describe, log_warnings, read_settings


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DAKERA_")}
    return subprocess.run(
        [sys.executable, "-m", "node", *arguments],
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_wrong_values_stop_the_start_with_status_2_and_all_of_them_named() -> None:
    ended = run("serve", DAKERA_PORT="seventy", DAKERA_STORAGE="tape", DAKERA_ENCRYPTION_KEY="hush")
    assert ended.returncode == 2
    assert "3 wrong values" in ended.stderr
    for words in (
        "DAKERA_PORT='seventy'",
        "DAKERA_STORAGE='tape'",
        "DAKERA_ENCRYPTION_KEY='***'",
        "memory, filesystem",
    ):
        assert words in ended.stderr
    assert "hush" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_a_command_the_node_serves_and_so_reads_its_settings() -> None:
    assert run(DAKERA_PORT="seventy").returncode == 2


def test_a_file_that_is_not_there_or_not_toml_stops_the_start(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[server\nport = 3")
    for path in (tmp_path / "absent.toml", broken):
        ended = run("serve", "--config", str(path))
        assert ended.returncode == 2
        assert str(path) in ended.stderr


def test_version() -> None:
    assert run("--version").stdout == f"dakera {__version__}\n"


def test_an_unknown_model_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    ended = run("models", "pull", "gpt-2", DAKERA_MODEL_CACHE=str(tmp_path))
    assert ended.returncode == 1
    assert "minilm" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "dakera.toml"
    file.write_text('[server]\nport = 1234\nhost = "10.1.1.1"\n')
    settings, _ = read_settings({"DAKERA_PORT": "4321"}, file)
    assert (settings.server.host, settings.server.port) == ("10.1.1.1", 4321)


def test_a_single_problem_is_told_in_the_singular() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"DAKERA_PORT": "x"})
    assert describe(caught.value).startswith("dakera: the configuration has a wrong value:\n  DAKERA_PORT='x'")


def test_each_warning_is_a_line_but_names_without_effect_share_one(caplog: pytest.LogCaptureFixture) -> None:
    _, warnings = load({"DAKERA_CLUSTER_ROLE": "primary", "DAKERA_TIERED": "1", "DAKERA_PROT": "1", "DAKERA_HOTS": "1"})
    with caplog.at_level(logging.INFO):
        log_warnings(warnings)
    levels = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [message.split(":")[0] for level, message in levels if level == "WARNING"] == ["DAKERA_HOTS", "DAKERA_PROT"]
    assert [message for level, message in levels if level == "INFO"] == [
        "accepted, but without effect: DAKERA_TIERED, DAKERA_CLUSTER_ROLE"
    ]


def test_numpy_is_not_loaded_before_its_threads_are_bounded() -> None:
    program = """
import os, sys
import node.__main__ as entry
assert "numpy" not in sys.modules
entry._bound_math_threads(3)
import numpy
from dakera_cluster.index import vectors
print(os.environ["OPENBLAS_NUM_THREADS"], os.environ["OMP_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"])
"""
    env = {name: value for name, value in os.environ.items() if not name.endswith(("_NUM_THREADS", "_PARALLELISM"))}
    env["OMP_NUM_THREADS"] = "2"
    ended = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert ended.stdout == "3 2 false\n"
