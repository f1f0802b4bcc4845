from __future__ import annotations

import json
from pathlib import Path

import pytest

from dakera_cluster.inference.models import (
    ModelFormatError,
    Pooling,
    Precision,
    TextKind,
    UnknownModelError,
    resolve,
    spellings,
)

from .conftest import HIDDEN, POSITIONS, write_tiny_model

SPELLINGS = {
    "minilm": ["MiniLML6V2", "minilm", "minilm-l6-v2", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"],
    "bge-small": ["BGESmallENV15", "bge-small", "bge-small-en-v1.5", "BAAI/bge-small-en-v1.5"],
    "e5-small": ["E5SmallV2", "e5-small", "e5-small-v2", "intfloat/e5-small-v2"],
    "bge-large": ["BGELargeENV15", "bge-large", "bge-large-en-v1.5", "BAAI/bge-large-en-v1.5"],
}


@pytest.mark.parametrize(("name", "spelling"), [(name, s) for name, all_of in SPELLINGS.items() for s in all_of])
def test_every_documented_spelling_names_its_model_in_any_case(name: str, spelling: str) -> None:
    for written in (spelling, spelling.lower(), spelling.upper(), f" {spelling} "):
        assert resolve(written).name == name


def test_models_have_the_shape_their_authors_publish() -> None:
    bge = "Represent this sentence for searching relevant passages: "
    expected = {
        "minilm": (384, Pooling.MEAN, 256, "", ""),
        "bge-small": (384, Pooling.CLS, 512, bge, ""),
        "e5-small": (384, Pooling.MEAN, 512, "query: ", "passage: "),
        "bge-large": (1024, Pooling.CLS, 512, bge, ""),
    }
    for name, shape in expected.items():
        spec = resolve(name)
        prefixes = (spec.prefix(TextKind.QUERY), spec.prefix(TextKind.PASSAGE))
        assert (spec.dimension, spec.pooling, spec.max_tokens, *prefixes) == shape


def test_an_unknown_spelling_lists_what_is_accepted() -> None:
    with pytest.raises(UnknownModelError) as caught:
        resolve("gpt-9")
    assert "gpt-9" in caught.value.message
    assert all(spelling in caught.value.message for spelling in spellings())
    assert {"MiniLML6V2", "bge-large"} <= set(spellings())


def test_a_directory_is_a_model_with_the_settings_of_its_files(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "own", "cls", {"query": "query : ", "document": "passage : "})
    spec = resolve(str(folder))
    assert (spec.name, spec.dimension, spec.pooling, spec.max_tokens) == ("own", HIDDEN, Pooling.CLS, POSITIONS)
    assert (spec.query_prefix, spec.passage_prefix) == ("query : ", "passage : ")
    assert spec.pull_command(Precision.INT8) == f"dakera models pull {folder}"
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    assert resolve(str(folder)).max_tokens == 16


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", '{"hidden_size": "many"}', "hidden_size"),
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', "pooling"),
        ("1_Pooling/config.json", '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}', "pooling"),
    ],
)
def test_a_directory_that_is_no_model_says_why(tiny: Path, file: str, text: str, says: str) -> None:
    (tiny / file).write_text(text)
    with pytest.raises(ModelFormatError, match=says):
        resolve(str(tiny))


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"config\.json is missing"):
        resolve(str(tmp_path))
