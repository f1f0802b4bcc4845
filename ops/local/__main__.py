"""`python -m ops.local up|down|status`: a node on this machine, kept in data/ and run/ of the working directory.

Variables of the environment win over what stands here, so `DAKERA_ROOT_API_KEY=... make up` does what it says.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shlex
import sys
import time
from pathlib import Path

from ops.local.processes import Background

RUN_DIR = Path("run")
DATA_DIR = Path("data")
READY_WAIT_S = 90.0
_POLL_S = 0.05


def node_environment(port: int) -> dict[str, str]:
    """What a node on one machine needs: data that stays, and no door to the network."""
    defaults = {
        "DAKERA_HOST": "127.0.0.1",
        "DAKERA_PORT": str(port),
        "DAKERA_STORAGE": "filesystem",
        "DAKERA_STORAGE_PATH": str(DATA_DIR),
    }
    return defaults | os.environ


def readiness(port: int) -> tuple[bool, str]:
    """Whether the node serves, and what it says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        return answer.status == 200, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return False, str(error)
    finally:
        connection.close()


def up(port: int) -> int:
    node = Background("node", RUN_DIR)
    if node.pid is None:
        if readiness(port)[1].startswith("{"):
            print(f"Something else answers on port {port}; choose another: make up PORT={port + 1}", file=sys.stderr)
            return 1
        DATA_DIR.mkdir(exist_ok=True)
        node.start([sys.executable, "-m", "node", "serve"], node_environment(port))
    deadline = time.monotonic() + READY_WAIT_S
    said = ""
    while node.pid is not None and time.monotonic() < deadline:
        ready, said = readiness(port)
        if ready:
            print(welcome(port, node))
            return 0
        time.sleep(_POLL_S)
    print(f"The node does not serve: {said}\n{node.last_lines(20)}\nIts log: {node.log}", file=sys.stderr)
    return 1


def welcome(port: int, node: Background) -> str:
    """What to type next. The commands can be pasted as they stand."""
    env = node_environment(port)
    key = env.get("DAKERA_ROOT_API_KEY", "") if env.get("DAKERA_AUTH_ENABLED", "true").lower() != "false" else ""
    url = f"http://127.0.0.1:{port}"

    def curl(path: str, body: dict[str, object]) -> str:
        parts = [f"curl -s {url}{path}", "-H 'Content-Type: application/json'"]
        if key:
            parts.append(f"-H {shlex.quote(f'Authorization: Bearer {key}')}")
        return " \\\n    ".join([*parts, f"-d {shlex.quote(json.dumps(body))}"])

    store = curl(
        "/v1/memory/store", {"agent_id": "ada", "content": "Ada takes her tea without milk.", "importance": 0.8}
    )
    recall = curl("/v1/memory/recall", {"agent_id": "ada", "query": "How does Ada like her tea?", "top_k": 3})
    return "\n".join(
        [
            f"Dakera serves on {url} (pid {node.pid}, log {node.log}, data {DATA_DIR}/).",
            "",
            "Store a memory:",
            f"  {store}",
            "",
            "Recall it:",
            f"  {recall}",
            "",
            "Stop: make down",
        ]
    )


def down() -> int:
    node = Background("node", RUN_DIR)
    if node.pid is None:
        print("No node is running.")
    elif node.stop():
        print("The node has stopped.")
    else:
        print(f"The node did not stop in time and was killed; its log: {node.log}", file=sys.stderr)
        return 1
    return 0


def status(port: int) -> int:
    node = Background("node", RUN_DIR)
    if node.pid is None:
        print("No node is running.")
        return 1
    ready, said = readiness(port)
    print(f"pid {node.pid}, {'ready' if ready else 'not ready'}: {said}")
    return 0 if ready else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.local", description=__doc__)
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument("--port", type=int, default=int(os.environ.get("DAKERA_PORT") or 3300))
    arguments = parser.parse_args()
    if arguments.action == "down":
        return down()
    return up(arguments.port) if arguments.action == "up" else status(arguments.port)


if __name__ == "__main__":
    sys.exit(main())
