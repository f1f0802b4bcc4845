"""The model store: a directory of built models, each complete and checksummed or absent.

Invariants: an entry appears by one rename of a finished directory, under a lock file, so concurrent pulls and a crash at
any instant leave a whole entry or none. Its manifest holds the SHA-256 of every file, checked each time it is opened.
The entry's name carries precision and builder version: a new builder never reads an old graph.

`pull` is called by `dakera models pull` and by the image build; `find` by a starting node, which never fetches. The one
exception is a directory given as the model: it is on this machine already, so `find_or_build` builds it when first met.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from dakera_cluster.inference.models import (
    ModelFormatError,
    ModelSpec,
    Pooling,
    Precision,
    Task,
    read_directory,
    resolve,
)
from dakera_cluster.inference.sources import (
    HashMismatchError,
    ModelFetchError,
    Progress,
    fetch_hub,
    fetch_minilm,
    sha256,
)
from dakera_cluster.model.errors import ModelUnavailableError

ENTRY_VERSION = 2
"""Of the built graph and the entry's layout: raise it whenever the same weights would give other vectors."""
RERANKER_VERSION = 1
"""The same, of rerankers: their graphs change at other times."""
MANIFEST = "manifest.json"
GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
BUILD_TIMEOUT_S = 600


class Manifest(msgspec.Struct, frozen=True):
    """What an entry was made of. `files` and `sources`: SHA-256 by file name, of the entry and of what it was built from."""

    name: str
    dimension: int
    pooling: Pooling
    max_tokens: int
    query_prefix: str
    passage_prefix: str
    precision: Precision
    entry_version: int
    files: dict[str, str]
    sources: dict[str, str]
    task: Task = Task.EMBEDDING


class InstalledModel(msgspec.Struct, frozen=True):
    """A verified entry of the store."""

    spec: ModelSpec
    precision: Precision
    graph_path: Path
    tokenizer_path: Path
    fingerprint: str
    """Names the vectors this model makes: model, precision and a digest of graph and tokenizer. Rows carry it."""


def default_cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`DAKERA_MODEL_CACHE`, else `~/.cache/dakera/models`."""
    return Path(environ.get("DAKERA_MODEL_CACHE") or "~/.cache/dakera/models").expanduser()


def find(
    model: str, cache_dir: Path, precision: Precision = Precision.INT8, task: Task = Task.EMBEDDING
) -> InstalledModel:
    """The installed model of a task that a spelling or directory names.

    Raises UnknownModelError, ModelUnavailableError (not installed; the message is the command to run) and
    HashMismatchError (the entry is damaged).
    """
    spec = resolve(model, task)
    path = entry_path(spec, cache_dir, precision)
    if not (path / MANIFEST).is_file():
        command = spec.pull_command(precision)
        raise ModelUnavailableError(
            f"the {task} model {spec.name} is not installed under {cache_dir}: run `{command}`",
            details={"model": spec.name, "run": command},
        )
    return _open(path, spec, precision)


def find_or_build(
    model: str, cache_dir: Path, precision: Precision = Precision.INT8, task: Task = Task.EMBEDDING
) -> InstalledModel:
    """Like `find`, but a directory that was not built yet is built now, in a process of its own (the builder's memory
    must not stay with the node). Raises ModelFormatError when it cannot be built."""
    spec = resolve(model, task)
    if spec.directory is not None and not (entry_path(spec, cache_dir, precision) / MANIFEST).is_file():
        command = [
            sys.executable,
            "-m",
            "dakera_cluster.inference.cli",
            model,
            str(cache_dir),
            precision.value,
            task.value,
        ]
        built = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
        if built.returncode:
            raise ModelFormatError(f"{model} cannot be built: {built.stderr.strip()}")
    return find(model, cache_dir, precision, task)


def pull(
    model: str,
    cache_dir: Path,
    progress: Progress = lambda line: None,
    *,
    precision: Precision = Precision.INT8,
    source: Path | None = None,
    task: Task | None = None,
) -> Path:
    """Installs a model and returns its entry. Does nothing when a whole entry is there; replaces a damaged one.

    `model` is a spelling of the catalogue or a directory; `source` gives the files of a catalogue model from a directory
    instead of the network; `task` is what a directory is built for (None: what its config.json says).
    Raises UnknownModelError, ModelFetchError, HashMismatchError or ModelFormatError.
    """
    spec = resolve(model, task)
    path = entry_path(spec, cache_dir, precision)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _lock(cache_dir / f".{path.name}.lock"):
        try:
            if (path / MANIFEST).is_file():
                _open(path, spec, precision)
                progress(f"{spec.name} is installed in {path}")
                return path
        except HashMismatchError as error:
            progress(f"replacing a damaged entry: {error.message}")
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=f".{path.name}.") as scratch:
            files, entry = Path(scratch, "files"), Path(scratch, "entry")
            files.mkdir()
            entry.mkdir()
            _fetch(spec, source, files, progress)
            progress(f"building {spec.name} ({precision})")
            _build(spec, files, entry, precision)
            shutil.rmtree(path, ignore_errors=True)
            entry.rename(path)
            _sync(cache_dir)
        progress(f"installed {spec.name} in {path}")
    return path


def entry_path(spec: ModelSpec, cache_dir: Path, precision: Precision) -> Path:
    """Where the entry of a model is kept. A directory's name is followed by a digest of its files' sizes and times, so
    that changed weights are a new entry and an unchanged directory is not read again."""
    name = spec.name
    if spec.directory is not None:
        stamp = hashlib.sha256()
        for file in sorted(spec.directory.rglob("*")):
            if file.is_file():
                status = file.stat()
                stamp.update(f"{file.relative_to(spec.directory)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        name = f"{name}-{stamp.hexdigest()[:12]}"
    if spec.task is Task.RERANKER:
        return cache_dir / f"{name}-reranker-{precision}-v{RERANKER_VERSION}"
    return cache_dir / f"{name}-{precision}-v{ENTRY_VERSION}"


def _fetch(spec: ModelSpec, source: Path | None, target: Path, progress: Progress) -> None:
    folder = source if source is not None else spec.directory
    if folder is not None:
        graph = folder / GRAPH
        weights = folder / "model.safetensors"
        for name in ("config.json", TOKENIZER):
            if not (folder / name).is_file():
                raise ModelFormatError(f"{folder}: {name} is missing")
        if not weights.is_file() and not graph.is_file():
            raise ModelFormatError(f"{folder}: neither model.safetensors nor model.onnx is there")
        for file in (folder / "config.json", folder / TOKENIZER, weights if weights.is_file() else graph):
            shutil.copyfile(file, target / file.name)
        if source is not None and (dimension := read_directory(source).dimension) != spec.dimension:
            raise ModelFormatError(
                f"{source} has dimension {dimension}, {spec.name} has {spec.dimension}: not the same model"
            )
    elif spec.name == "minilm":
        fetch_minilm(target, progress)
    else:
        fetch_hub(spec, target, progress)


def _build(spec: ModelSpec, files: Path, entry: Path, precision: Precision) -> None:
    if (files / "model.safetensors").is_file():
        try:
            from dakera_cluster.inference import build
        except ImportError as error:
            raise ModelFetchError(f"building a model needs the package {error.name}") from error
        config, weights = build.read_config(files / "config.json", spec.task), files / "model.safetensors"
        if spec.task is Task.RERANKER:
            build.build_reranker(config, weights, entry / GRAPH, precision)
        else:
            build.build(config, weights, entry / GRAPH, spec.pooling, precision)
    else:
        shutil.copyfile(files / GRAPH, entry / GRAPH)
    shutil.copyfile(files / TOKENIZER, entry / TOKENIZER)
    manifest = Manifest(
        name=spec.name,
        dimension=spec.dimension,
        pooling=spec.pooling,
        max_tokens=spec.max_tokens,
        query_prefix=spec.query_prefix,
        passage_prefix=spec.passage_prefix,
        precision=precision,
        entry_version=RERANKER_VERSION if spec.task is Task.RERANKER else ENTRY_VERSION,
        files={name: sha256(entry / name) for name in (GRAPH, TOKENIZER)},
        sources={file.name: sha256(file) for file in sorted(files.iterdir())},
        task=spec.task,
    )
    (entry / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    for file in entry.iterdir():
        _sync(file)


def _open(path: Path, spec: ModelSpec, precision: Precision) -> InstalledModel:
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
        for name, expected in manifest.files.items():
            if sha256(path / name) != expected:
                raise HashMismatchError(f"{path / name} is damaged: run `{spec.pull_command(precision)}`")
    except (msgspec.MsgspecError, FileNotFoundError) as error:
        raise HashMismatchError(f"{path} is damaged ({error}): run `{spec.pull_command(precision)}`") from error
    digest = hashlib.sha256("".join(f"{name}={value};" for name, value in sorted(manifest.files.items())).encode())
    return InstalledModel(
        spec=spec,
        precision=precision,
        graph_path=path / GRAPH,
        tokenizer_path=path / TOKENIZER,
        fingerprint=f"{spec.name}-{precision}-{digest.hexdigest()[:12]}",
    )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Excludes other pulls of the same entry, in this process and others; freed by the system when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
