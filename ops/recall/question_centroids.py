"""Makes dakera_cluster/retrieval/shipped/questions.json from ops/recall/questions.txt.

    python -m ops.recall.question_centroids [--model minilm] [--cache DIR]

Each kind gets CENTROIDS means of its embedded questions (k-means from a fixed start), so that a kind may have several faces.
"""

from __future__ import annotations

import argparse
import base64
from pathlib import Path

import msgspec
import numpy as np

from dakera_cluster.inference import store
from dakera_cluster.inference.embedder import TextEncoder
from dakera_cluster.inference.models import TextKind
from dakera_cluster.retrieval.classify import Centroids, QuestionKind

CENTROIDS = 4
ROUNDS = 20
MARGIN = 0.05
SOURCE = Path(__file__).parent / "questions.txt"
TARGET = Path(__file__).parent.parent.parent / "dakera_cluster" / "retrieval" / "shipped" / "questions.json"


def read(path: Path) -> dict[QuestionKind, list[str]]:
    """The questions by kind."""
    found: dict[QuestionKind, list[str]] = {}
    kind = None
    for line in path.read_text().splitlines():
        if line.startswith("["):
            kind = QuestionKind(line.strip("[] "))
        elif line and not line.startswith("#") and kind is not None:
            found.setdefault(kind, []).append(line)
    return found


def means(rows: np.ndarray, count: int) -> np.ndarray:
    """Centres of ``rows`` (norm 1) by spherical k-means, each started from the row farthest from those before it."""
    centres = [rows.mean(axis=0)]
    while len(centres) < count:
        centres.append(rows[int(np.argmin((rows @ np.array(centres).T).max(axis=1)))])
    found = np.array(centres)
    for _ in range(ROUNDS):
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        nearest = np.argmax(rows @ found.T, axis=1)
        found = np.array([rows[nearest == c].mean(axis=0) if (nearest == c).any() else found[c] for c in range(count)])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--cache", type=Path, default=store.default_cache_dir())
    asked = parser.parse_args()
    encoder = TextEncoder(store.find(asked.model, asked.cache))
    vectors = {}
    for kind, questions in read(SOURCE).items():
        rows = np.asarray(encoder.encode(questions, TextKind.QUERY).vectors, dtype=np.float32)
        vectors[kind] = base64.b64encode(means(rows, CENTROIDS).astype("<f2").tobytes()).decode()
    found = Centroids(model=encoder.fingerprint, margin=MARGIN, vectors=vectors)
    TARGET.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")


if __name__ == "__main__":
    main()
