"""What `make up` says when the stack serves: where it is, and what to type next. The commands can be pasted as they stand."""

from __future__ import annotations

import json
import shlex

from ops.local.bucket import BucketKind
from ops.local.stack import Stack


def welcome(stack: Stack, took_s: float) -> str:
    lines = [
        *_where(stack, took_s),
        "",
        "Store a memory:",
        f"  {_store(stack)}",
        "",
        "Recall it:",
        f"  {_recall(stack)}",
        "",
    ]
    if not stack.alone:
        auth = " --key $DAKERA_ROOT_API_KEY" if stack.key else ""
        lines += [
            f"Watch the cluster:       .venv/bin/dakera cluster status --url {stack.layout.url}{auth} --watch",
            f"Balancer's dashboard:    {stack.layout.dashboard_url}/dashboard/",
            "Kill the leader, live:   make demo-failover",
        ]
    lines.append("Stop:                    make down" if not stack.alone else "Stop: make down")
    return "\n".join(lines)


def _where(stack: Stack, took_s: float) -> list[str]:
    layout = stack.layout
    if stack.alone:
        node = stack.process("node")
        return [f"Dakera serves on {layout.url} (pid {node.pid}, log {node.log}, data {layout.data_dir}/)."]
    nodes = ", ".join(f"{name} {stack.node_url(name)}" for name in stack.node_names)
    lines = [
        f"Dakera serves on {layout.url}: {stack.options.nodes} nodes behind Traefik, ready after {took_s:.1f} s.",
        f"  nodes   {nodes}",
    ]
    if stack.options.bucket is BucketKind.DIRECTORY:
        lines.append(f"  bucket  {stack.home}/bucket")
    else:
        console = f", console http://127.0.0.1:{layout.bucket_console_port}"
        shown = console if stack.options.bucket is BucketKind.MINIO else ""
        lines.append(f"  bucket  {stack.options.bucket} at http://127.0.0.1:{layout.bucket_port}{shown}")
    if stack.options.redis:
        lines.append(f"  redis   redis://127.0.0.1:{layout.redis_port}")
    return [*lines, f"  data    {stack.home}/, logs {layout.run_dir}/*.log"]


def _store(stack: Stack) -> str:
    fact = {"agent_id": "ada", "content": "Ada takes her tea without milk.", "importance": 0.8}
    return _curl(stack, "/v1/memory/store", fact)


def _recall(stack: Stack) -> str:
    return _curl(stack, "/v1/memory/recall", {"agent_id": "ada", "query": "How does Ada like her tea?", "top_k": 3})


def _curl(stack: Stack, path: str, body: dict[str, object]) -> str:
    parts = [f"curl -s {stack.layout.url}{path}", "-H 'Content-Type: application/json'"]
    if stack.key:
        parts.append(f"-H {shlex.quote(f'Authorization: Bearer {stack.key}')}")
    return " \\\n    ".join([*parts, f"-d {shlex.quote(json.dumps(body))}"])
