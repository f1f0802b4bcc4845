from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from dakera_cluster.inference import cli, store
from dakera_cluster.inference.embedder import TextEncoder
from dakera_cluster.inference.models import ModelFormatError, Pooling, Precision, TextKind, UnknownModelError
from dakera_cluster.inference.sources import HashMismatchError
from dakera_cluster.model.errors import ModelUnavailableError

from .conftest import tiny_weights, write_tiny_model


def quiet(line: str) -> None:
    pass


def test_a_model_that_is_not_installed_says_exactly_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError) as caught:
        store.find("MiniLML6V2", tmp_path)
    assert "run `dakera models pull minilm`" in caught.value.message
    assert caught.value.details == {"model": "minilm", "run": "dakera models pull minilm"}
    with pytest.raises(ModelUnavailableError, match="dakera models pull minilm --precision fp32"):
        store.find("minilm", tmp_path, Precision.FP32)


def test_pull_installs_once_and_says_so(tiny: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    first = cli.pull(str(tiny), tmp_path / "cache", lines.append)
    written = {file: file.stat().st_mtime_ns for file in first.iterdir()}
    assert any(line.startswith("building tiny") for line in lines)
    lines.clear()
    assert cli.pull(str(tiny), tmp_path / "cache", lines.append) == first
    assert lines == [f"tiny is installed in {first}"]
    assert {file: file.stat().st_mtime_ns for file in first.iterdir()} == written
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")] == [first.name]


def test_the_manifest_holds_the_sum_of_every_file(tiny: Path, tmp_path: Path) -> None:
    entry = store.pull(str(tiny), tmp_path / "cache")
    manifest = msgspec.json.decode((entry / "manifest.json").read_bytes(), type=store.Manifest)
    assert manifest.files == {name: store.sha256(entry / name) for name in ("model.onnx", "tokenizer.json")}
    assert manifest.sources["model.safetensors"] == store.sha256(tiny / "model.safetensors")
    assert (manifest.name, manifest.pooling, manifest.precision) == ("tiny", Pooling.MEAN, Precision.INT8)


@pytest.mark.parametrize("file", ["model.onnx", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_entry_is_refused_and_replaced_by_the_next_pull(
    tiny: Path, tmp_path: Path, file: str, damage: str
) -> None:
    cache = tmp_path / "cache"
    target = store.pull(str(tiny), cache) / file
    whole = target.read_bytes()
    if damage == "remove":
        target.unlink()
    else:
        place = 0 if file == "manifest.json" else len(whole) // 2
        target.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises((HashMismatchError, ModelUnavailableError), match="dakera models pull"):
        store.find(str(tiny), cache)
    store.pull(str(tiny), cache)
    assert target.read_bytes() == whole
    store.find(str(tiny), cache)


def test_concurrent_pulls_leave_one_whole_entry(tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    lines: list[str] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            store.pull(str(tiny), cache, lines.append)
        except BaseException as error:
            failures.append(error)

    command = [sys.executable, "-m", "dakera_cluster.inference.cli", str(tiny), str(cache), "int8"]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outputs = [other.communicate()[0] for other in others]
    assert not failures and all(other.returncode == 0 for other in others)
    assert ("\n".join([*lines, *outputs])).count("building tiny") == 1
    store.find(str(tiny), cache)


def test_a_failed_pull_leaves_nothing_and_the_next_one_works(tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    weights = (tiny / "model.safetensors").read_bytes()
    config = (tiny / "config.json").read_text()
    (tiny / "config.json").write_text(config.replace('"bert"', '"t5"'))
    with pytest.raises(ModelFormatError, match="t5"):
        store.pull(str(tiny), cache)
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    (tiny / "config.json").write_text(config)
    assert (tiny / "model.safetensors").read_bytes() == weights
    store.pull(str(tiny), cache)


def test_changed_weights_are_another_model_with_another_fingerprint(tiny: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    cache = tmp_path / "cache"
    store.pull(str(tiny), cache)
    before = store.find(str(tiny), cache)
    assert store.find(str(tiny), cache).fingerprint == before.fingerprint
    save_file(tiny_weights(seed=8), tiny / "model.safetensors")
    with pytest.raises(ModelUnavailableError):
        store.find(str(tiny), cache)
    store.pull(str(tiny), cache)
    assert store.find(str(tiny), cache).fingerprint != before.fingerprint
    store.pull(str(tiny), cache, precision=Precision.FP32)
    assert store.find(str(tiny), cache, Precision.FP32).fingerprint != store.find(str(tiny), cache).fingerprint


def test_building_twice_gives_the_same_fingerprint(tiny: Path, tmp_path: Path) -> None:
    for cache in ("one", "two"):
        store.pull(str(tiny), tmp_path / cache)
    assert store.find(str(tiny), tmp_path / "one").fingerprint == store.find(str(tiny), tmp_path / "two").fingerprint


def test_a_directory_is_built_when_first_met_without_onnx_in_this_process(tiny: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dakera_cluster.inference import store\n"
        "print(store.find_or_build(sys.argv[1], Path(sys.argv[2])).fingerprint, 'onnx' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tiny), str(tmp_path / "cache")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.split() == [store.find(str(tiny), tmp_path / "cache").fingerprint, "False"]


def test_a_directory_that_cannot_be_built_says_why(tiny: Path, tmp_path: Path) -> None:
    (tiny / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"neither model\.safetensors nor model\.onnx"):
        store.find_or_build(str(tiny), tmp_path / "cache")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_directory_may_hold_a_graph_that_stops_at_the_last_hidden_state(tmp_path: Path, pooling: str) -> None:
    import onnx

    built = write_tiny_model(tmp_path / "built", pooling)
    cache = tmp_path / "cache"
    store.pull(str(built), cache, precision=Precision.FP32)
    expected = TextEncoder(store.find(str(built), cache, Precision.FP32))

    exported = write_tiny_model(tmp_path / "exported", pooling)
    (exported / "model.safetensors").unlink()
    graph = onnx.load(store.find(str(built), cache, Precision.FP32).graph_path)
    for node in graph.graph.node:
        node.output[:] = ["last_hidden_state" if name == "tokens" else name for name in node.output]
    del graph.graph.output[:]
    graph.graph.output.append(
        onnx.helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, ["batch", "seq", 32])
    )
    onnx.save(graph, exported / "model.onnx")
    store.pull(str(exported), cache)
    found = TextEncoder(store.find(str(exported), cache))
    texts = ["the cat sat", "hello", "deep blue sea . red fish"]
    for kind in TextKind:
        ours, theirs = expected.encode(texts, kind, tokens=True), found.encode(texts, kind, tokens=True)
        np.testing.assert_allclose(theirs.vectors, ours.vectors, atol=1e-5)
        assert ours.tokens is not None and theirs.tokens is not None
        for one, other in zip(ours.tokens, theirs.tokens, strict=True):
            np.testing.assert_array_equal(one.signs, other.signs)


def test_a_catalogue_model_comes_from_a_directory_only_if_it_fits(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="has dimension 32, bge-small has 384: not the same model"):
        store.pull("bge-small", tmp_path / "cache", source=tiny)


def test_the_module_reports_errors_as_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dakera_cluster.inference.cli", "gpt-9", str(tmp_path), "int8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("unknown model 'gpt-9'") and len(done.stderr.splitlines()) == 1
    with pytest.raises(UnknownModelError):
        cli.pull("gpt-9", tmp_path, quiet)


def test_the_cache_directory_follows_the_environment(tmp_path: Path) -> None:
    assert store.default_cache_dir({"DAKERA_MODEL_CACHE": str(tmp_path)}) == tmp_path
    assert store.default_cache_dir({}) == Path.home() / ".cache" / "dakera" / "models"


def test_minilm_has_the_pinned_files(minilm: TextEncoder) -> None:
    entry = store.pull("minilm", store.default_cache_dir())
    sources = json.loads((entry / "manifest.json").read_text())["sources"]
    assert sources["model.safetensors"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert sources["tokenizer.json"] == "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
