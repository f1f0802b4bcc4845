"""Traefik on this machine, with the very files the compose stack mounts.

The dynamic file is used where it stands: it takes the nodes from two variables. The static file cannot take variables, so
a copy of it is written with its three addresses and its directory replaced, each exactly once: a static file that no longer
has them stops the start instead of listening on every interface.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ops.local.layout import HOST, Layout
from ops.local.web import get

ROOT = Path(__file__).resolve().parents[2]
STATIC_FILE = ROOT / "traefik" / "traefik.yml"
DYNAMIC_DIR = ROOT / "traefik" / "dynamic"
SERVICE = "nodes@file"
_ATTEMPTS = f'traefik_service_requests_total{{*service="{SERVICE}"*'
_REQUESTS = 'traefik_entrypoint_requests_total{*entrypoint="web"*'


def find_program(name: str) -> str | None:
    """Path of a program beside this interpreter, on PATH, or where Go installs."""
    beside = Path(sys.executable).parent / name
    gone = Path.home() / "go" / "bin" / name
    return str(beside) if beside.exists() else shutil.which(name) or (str(gone) if gone.exists() else None)


def local_static(text: str, layout: Layout) -> str:
    """The static file's text for loopback. Raises ValueError when something to be replaced is not there exactly once."""
    replacements = {
        'address: ":3000"': f'address: "{HOST}:{layout.port}"',
        'address: ":50051"': f'address: "{HOST}:{layout.grpc_port}"',
        'address: ":8080"': f'address: "{HOST}:{layout.dashboard_port}"',
        "directory: /etc/traefik/dynamic": f'directory: "{DYNAMIC_DIR}"',
    }
    for old, new in replacements.items():
        if text.count(old) != 1:
            raise ValueError(f"{STATIC_FILE.name}: expected {old!r} once, found it {text.count(old)} times")
        text = text.replace(old, new)
    return text


def command(program: str, layout: Layout) -> Sequence[str]:
    """Write the static file for ``layout`` and say how to run Traefik with it."""
    static = layout.run_dir / "traefik.yml"
    static.parent.mkdir(parents=True, exist_ok=True)
    static.write_text(local_static(STATIC_FILE.read_text(), layout))
    return [program, f"--configFile={static}"]


def environment(layout: Layout, nodes: Sequence[int]) -> Mapping[str, str]:
    return {
        "DAKERA_LB_NODES": ",".join(f"{HOST}:{layout.node_port(number)}" for number in nodes),
        "DAKERA_LB_GRPC": ",".join(f"{HOST}:{layout.node_grpc_port(number)}" for number in nodes),
    }


def in_rotation(layout: Layout) -> dict[str, bool]:
    """URL of each node -> whether Traefik sends it requests. Empty while Traefik does not answer."""
    answer = get(f"{layout.dashboard_url}/api/http/services/{SERVICE}").json()
    if not isinstance(answer, dict):
        return {}
    return {url: state == "UP" for url, state in answer.get("serverStatus", {}).items()}


def retries(layout: Layout) -> int:
    """Attempts of Traefik beyond the first of each request, since it started: what its service counts more than its door.
    (Its own counter of retries stays silent for middlewares of the file provider.)"""
    lines = get(f"{layout.dashboard_url}/metrics").text.splitlines()
    return max(0, _total(lines, _ATTEMPTS) - _total(lines, _REQUESTS))


def _total(lines: Sequence[str], pattern: str) -> int:
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if fnmatchcase(line, pattern))
