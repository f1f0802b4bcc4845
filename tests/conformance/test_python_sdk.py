"""The official Python clients work unchanged: every method whose route the node has, every version, both modes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from dakera_cluster.api.routes import ROUTES
from tests.conformance import walk
from tests.support.node_process import ROOT, NodeProcess

VERSIONS = ("0.11.54", "0.11.55", "0.12.12")
MODES = ("sync", "async")
SDK_CACHE = ROOT / ".cache" / "sdk"
INSTALL_TIMEOUT_S = 300
WALK_TIMEOUT_S = 300


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    process = NodeProcess(tmp_path_factory.mktemp("node") / "node.log").start()
    yield process
    process.stop()


@cache
def installed(version: str) -> Path:
    """The directory that holds this version of the client, fetched once."""
    target = SDK_CACHE / version
    if not (target / "dakera").is_dir():
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, f"dakera=={version}"],
            check=True,
            timeout=INSTALL_TIMEOUT_S,
        )
    return target


class Walked:
    """What one version and mode did."""

    def __init__(self, lines: list[str]) -> None:
        records = [json.loads(line) for line in lines]
        self.routes: dict[str, list[list[str]]] = records[-1]["routes"]
        self.errors: dict[str, str | None] = {record["step"]: record["error"] for record in records[:-1]}
        self.covered = {method for record in records[:-1] for method in record["covers"]}


_walked: dict[tuple[str, str], Walked] = {}


@pytest.fixture
def walked(node: NodeProcess, version: str, mode: str) -> Walked:
    if (version, mode) not in _walked:
        script = Path(walk.__file__)
        done = subprocess.run(
            [sys.executable, script, installed(version), mode, node.url, node.key],
            capture_output=True,
            text=True,
            timeout=WALK_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        _walked[version, mode] = Walked(done.stdout.splitlines())
    return _walked[version, mode]


@pytest.mark.parametrize("step", list(walk.STEPS))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", VERSIONS)
def test_step(walked: Walked, step: str) -> None:
    if step not in walked.errors:
        pytest.skip("this version has no such method")
    assert walked.errors[step] is None, walked.errors[step]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_method_whose_route_the_node_has_is_walked(walked: Walked) -> None:
    table = {(route.method, re.sub(r"\{[^}]*\}", "{}", path)) for route in ROUTES for path in route.paths}
    in_scope = {name for name, calls in walked.routes.items() if any(tuple(call) in table for call in calls)}
    assert in_scope - walked.covered - {"ops_shutdown"} == set()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_node_survives_the_walk(walked: Walked, node: NodeProcess) -> None:
    assert node.running
    assert "Traceback" not in node.log()
