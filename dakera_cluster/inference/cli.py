"""The functions behind `dakera models`. Also runs as a module: the store builds directories of models through it, in a
process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from dakera_cluster.inference import store
from dakera_cluster.inference.models import Precision, Task
from dakera_cluster.inference.sources import Progress
from dakera_cluster.model.errors import DakeraError


def pull(
    model: str,
    cache_dir: Path,
    progress: Progress,
    *,
    source: Path | None = None,
    precision: Precision = Precision.INT8,
) -> Path:
    """`dakera models pull MODEL [--from DIR] [--precision fp32]`: installs a model, embedding or reranker, and returns where.

    Raises DakeraError with a text for people.
    """
    return store.pull(model, cache_dir, progress, source=source, precision=precision)


def main(arguments: list[str]) -> int:
    model, cache_dir, precision, *task = arguments
    try:
        store.pull(model, Path(cache_dir), print, precision=Precision(precision), task=Task(task[0]) if task else None)
    except DakeraError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
