"""The command `dakera`, also `python -m node`: serve, install a model, show the cluster, say the version.

Exit status: 0 after an orderly shutdown, 1 when the work failed, 2 when the command line or the configuration is wrong.
Imports of heavy parts wait until a command needs them, so that `dakera --version` and configuration errors are immediate.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dakera_cluster import __version__
from dakera_cluster.model.config import ConfigError
from dakera_cluster.model.errors import DakeraError
from node.logs import set_up_logs
from node.settings import describe, log_warnings, read_settings

EXIT_FAILED = 1
EXIT_MISUSED = 2
SWITCH_INTERVAL_S = 0.001
"""Longest wait of a thread for the interpreter. With Python's 5 ms the event loop and the model's thread idle behind a ranking
that computes, and eight clients get two thirds of the throughput."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.command == "models":
        return _pull(arguments.name, arguments.source)
    if arguments.command == "cluster":
        return _cluster(arguments.url, arguments.key, arguments.watch)
    return _serve(arguments.config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dakera",
        description="A self-hosted, replicated memory engine for AI agents. Without a command it serves.",
        epilog="Settings come from DAKERA_* variables; the README lists them all.",
    )
    parser.add_argument("--version", action="version", version=f"dakera {__version__}")
    parser.set_defaults(command="serve", config=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serve = commands.add_parser("serve", help="run a node (the default)")
    serve.add_argument("--config", type=Path, metavar="FILE", help="TOML file; variables win over it")
    models = commands.add_parser("models", help="models that run on the node")
    actions = models.add_subparsers(dest="action", metavar="ACTION", required=True)
    pull = actions.add_parser("pull", help="install a model into the cache, if it is not there")
    pull.add_argument("name", help="minilm, bge-small, e5-small, bge-large, bge-reranker-base, or a directory")
    pull.add_argument("--from", dest="source", type=Path, metavar="DIR", help="take the files from here, fetch nothing")
    cluster = commands.add_parser("cluster", help="the cluster as one of its nodes sees it")
    views = cluster.add_subparsers(dest="action", metavar="ACTION", required=True)
    status = views.add_parser("status", help="nodes, leader and shards; exits 0 healthy, 1 degraded, 3 no answer")
    status.add_argument("--url", help="a node or the balancer (DAKERA_URL, else this machine's DAKERA_PORT)")
    status.add_argument("--key", help="an admin's key (DAKERA_API_KEY, DAKERA_ROOT_API_KEY)")
    status.add_argument("--watch", action="store_true", help="keep looking, until interrupted")
    return parser


def _cluster(url: str | None, key: str | None, watch: bool) -> int:
    from node.cluster_status import show_status

    return show_status(url, key, watch=watch)


def _serve(config: Path | None) -> int:
    try:
        settings, warnings = read_settings(os.environ, config)
    except ConfigError as error:
        print(describe(error), file=sys.stderr)
        return EXIT_MISUSED
    set_up_logs(settings.observability)
    log_warnings(warnings)
    _bound_math_threads(settings.retrieval.index_threads)
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    import uvloop

    from node.wiring import run_node

    return uvloop.run(run_node(settings))


def _bound_math_threads(threads: int) -> None:
    """Keep the pools of the libraries for linear algebra to the threads that indexes may use; a variable that is set stays.

    Left alone they take every core for products of a millisecond, and their threads spin while they wait for one another:
    on a busy machine a recall then costs ten times the processor time. Read once, when numpy and faiss are imported.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    # The tokenizer's pool wakes for every question, and costs more than the question's words.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _pull(model: str, source: Path | None) -> int:
    try:
        settings, _ = read_settings(os.environ, None)
    except ConfigError as error:
        print(describe(error), file=sys.stderr)
        return EXIT_MISUSED

    from dakera_cluster.inference.cli import pull
    from dakera_cluster.inference.store import default_cache_dir

    named = settings.models.model_cache
    try:
        where = pull(model, Path(named).expanduser() if named else default_cache_dir(), print, source=source)
    except DakeraError as error:
        print(f"dakera: {error.message}", file=sys.stderr)
        return EXIT_FAILED
    print(where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
