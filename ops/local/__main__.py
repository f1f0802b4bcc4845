"""`python -m ops.local up|down|status|demo-failover`: the stack on this machine, in data/ and run/ of the working directory.

Variables of the environment win over what stands here, so `DAKERA_ROOT_API_KEY=... make up` does what it says.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time

from ops.local import balancer, bucket
from ops.local.stack import Options, Stack, StackError, given_settings
from ops.local.welcome import welcome

INTERRUPTED = 130
"""What a shell calls a command that was interrupted."""


def up(port: int, nodes: int, bucket_name: str) -> int:
    started = time.monotonic()
    before = Stack.running()
    options = Options(
        port=port,
        nodes=nodes,
        bucket=bucket.choose(bucket_name if nodes > 1 else bucket.BucketKind.DIRECTORY),
        redis=nodes > 1 and shutil.which("redis-server") is not None,
        given=given_settings(os.environ),
    )
    if before is not None and before.options != options and any(before.process(n).pid for n in before.names):
        raise StackError("A stack with other settings runs already: make down")
    stack = Stack(options)
    if nodes > 1:
        what = f"{nodes} nodes, Traefik, {'Redis, ' if options.redis else ''}bucket: {options.bucket}"
        print(f"Starting {what} ...", flush=True)
        if not options.redis:
            print(
                "redis-server is not installed: the stack runs without it (no shared cache, counters or event fan-out)."
            )
    stack.start(lambda line: print(line, flush=True))
    print(welcome(stack, time.monotonic() - started))
    return 0


def down() -> int:
    stack = Stack.running()
    if stack is None:
        print("Nothing is running.")
        return 0
    killed = stack.stop()
    for name in killed:
        print(f"{name} did not stop in time and was killed; its log: {stack.process(name).log}", file=sys.stderr)
    print("The stack has stopped." if not stack.alone else "The node has stopped.")
    return 1 if killed else 0


def status() -> int:
    """One line a process. 0 when all of them run and every node is ready."""
    stack = Stack.running()
    if stack is None:
        print("Nothing is running.")
        return 1
    rotation = {} if stack.alone else balancer.in_rotation(stack.layout)
    fine = True
    for name in stack.names:
        pid = stack.process(name).pid
        said = "running" if pid is not None else "not running"
        fine = fine and pid is not None
        if name in stack.node_names:
            answer = stack.ready(name)
            fine = fine and answer.ok
            said += ", ready" if answer.ok else ", not ready"
            if not stack.alone:
                routed = rotation.get(stack.node_url(name), False)
                said += ", gets requests" if routed else ", gets no requests"
            said += f", {stack.node_url(name)}"
        print(f"{name:<8} {pid or '-':>8}  {said}")
    if not stack.alone:
        print(f"More: .venv/bin/dakera cluster status --url {stack.layout.url}")
    return 0 if fine else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.local", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    start = actions.add_parser("up", help="start the stack")
    start.add_argument("--port", type=int, default=int(os.environ.get("DAKERA_PORT") or 3300))
    start.add_argument("--nodes", type=int, default=3)
    start.add_argument("--bucket", default="dir", help="dir or s3")
    actions.add_parser("down", help="stop it")
    actions.add_parser("status", help="what of it runs")
    demo = actions.add_parser("demo-failover", help="kill the leader under load")
    demo.add_argument("--rate", type=float, default=50.0, help="requests per second")
    demo.add_argument("--plain", action="store_true", help="lines instead of a live picture")
    arguments = parser.parse_args()
    try:
        if arguments.action == "down":
            return down()
        if arguments.action == "status":
            return status()
        if arguments.action == "demo-failover":
            from ops.local.failover import demo_failover

            return demo_failover(arguments.rate, arguments.plain)
        return up(arguments.port, arguments.nodes, arguments.bucket)
    except (StackError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
