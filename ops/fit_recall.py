"""Fits the weights of the ranking model and says how well they hold.

    python -m ops.fit_recall --data a.json b.json ... [--write] [--model minilm] [--cache DIR]

One file is one kind of memory. The table has four blocks: fitted on everything; with a third of each kind's conversations
held out at a time; the same for conversations stored as one talk without sessions and times; with each kind left out whole,
which is what an unseen kind may expect. ``--write`` replaces dakera_cluster/retrieval/shipped/weights.json.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from dakera_cluster.inference import store
from dakera_cluster.inference.embedder import TextEncoder
from dakera_cluster.retrieval.engine import prepare
from dakera_cluster.retrieval.features import NAMES
from dakera_cluster.retrieval.model import Model
from dakera_cluster.retrieval.options import Settings
from dakera_cluster.retrieval.query import QueryFeatures
from ops.recall import metrics
from ops.recall.data import Asked, Maker, Question, load
from ops.recall.learning import FITTED, PENALTY, Pool, fitted, minimised

FOLDS = 3
ALTERED_SHARE = 0.25
"""What a question weighs that is asked of a conversation run together. Without them the fit takes long talks for one subject
after another, because those it is shown are, and loses where a client keeps all it ever heard in one session."""
TARGET = Path(__file__).parent.parent / "dakera_cluster" / "retrieval" / "shipped" / "weights.json"


def pools(path: Path, maker: Maker) -> list[Pool]:
    """What the model may order for each question of a file, altered stores included."""
    ways = [way for conversation in load(path).conversations for way in enumerate(maker.ways_of_asking(conversation))]
    return [
        _pool(asked, question, query, is_altered=place > 0)
        for place, asked in ways
        for question, query in asked.questions
    ]


def _pool(asked: Asked, question: Question, query: QueryFeatures, *, is_altered: bool) -> Pool:
    prepared = prepare(asked.view, query, Settings())
    evidence = set(question.evidence)
    gold = np.array([asked.view.ids[slot] in evidence for slot in prepared.pool.slots.tolist()], bool)
    share = ALTERED_SHARE if is_altered else 1.0
    return Pool(
        np.ascontiguousarray(prepared.pool.values.T), gold, len(evidence), asked.conversation.id, share, is_altered
    )


def measured(kind: Sequence[Pool], weights: dict[str, float]) -> list[tuple[float, float]]:
    """``(hit@10, nDCG@10)`` of each question."""
    model = Model(weights=weights, middle=0.0, spread=1.0)
    result = []
    for pool in kind:
        order = np.argsort(-model.relevance(pool.values), kind="stable")
        ranked = [str(place) for place in order[: metrics.NDCG_AT].tolist()]
        # Evidence outside the pool counts as missed.
        missed = [f"missed {n}" for n in range(pool.evidence - int(pool.gold.sum()))]
        gold = {*map(str, np.flatnonzero(pool.gold).tolist()), *missed}
        result.append((metrics.hit(ranked, gold, 10), metrics.ndcg(ranked, gold)))
    return result


def of_form(kind: Sequence[Pool], *, is_altered: bool = False) -> list[Pool]:
    return [pool for pool in kind if pool.is_altered == is_altered]


def held_out(kinds: Sequence[Sequence[Pool]], *, is_altered: bool = False) -> list[list[tuple[float, float]]]:
    """Each conversation measured by weights fitted without it, as it is or altered."""
    folds = [{group: place % FOLDS for place, group in enumerate(sorted({p.group for p in kind}))} for kind in kinds]
    result: list[list[tuple[float, float]]] = [[] for _ in kinds]
    for fold in range(FOLDS):
        weights = fitted([[p for p in kind if of[p.group] != fold] for kind, of in zip(kinds, folds, strict=True)])
        for rows, kind, of in zip(result, kinds, folds, strict=True):
            tested = of_form(kind, is_altered=is_altered)
            rows += measured([pool for pool in tested if of[pool.group] == fold], weights)
    return result


def left_out(kinds: Sequence[Sequence[Pool]]) -> list[list[tuple[float, float]]]:
    """Each kind measured by weights fitted on the others."""
    return [
        measured(of_form(kind), fitted([other for other in kinds if other is not kind])) if len(kinds) > 1 else []
        for kind in kinds
    ]


def calibrated(kinds: Sequence[Sequence[Pool]], weights: dict[str, float]) -> tuple[float, float]:
    """``(middle, spread)`` of the score: 0.5 where a memory of the first ten is as likely evidence as not."""
    model = Model(weights=weights, middle=0.0, spread=1.0)
    relevance, gold = [], []
    for kind in kinds:
        for pool in of_form(kind):
            level = model.relevance(pool.values)
            head = np.argsort(-level, kind="stable")[:10]
            relevance.append(level[head])
            gold.append(pool.gold[head])
    level, is_gold = np.concatenate(relevance), np.concatenate(gold).astype(float)

    def loss(line: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        guess = line[0] * level + line[1]
        gap = 1 / (1 + np.exp(-np.clip(guess, -50, 50))) - is_gold
        return float((np.logaddexp(0, guess) - is_gold * guess).mean()), np.array([(gap * level).mean(), gap.mean()])

    slope, offset = minimised(loss, np.array([0.5, 0.0])).tolist()
    return -offset / slope, 1 / slope


def row(name: str, values: Sequence[tuple[float, float]]) -> str:
    hits, gains = [h for h, _ in values], [g for _, g in values]
    cells = []
    for sample in (hits, gains):
        low, high = metrics.interval(sample)
        cells.append(f"{100 * np.mean(sample):5.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    return f"| {name} | {len(values)} | {cells[0]} | {cells[1]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--cache", type=Path, default=store.default_cache_dir())
    asked = parser.parse_args()
    encoder = TextEncoder(store.find(asked.model, asked.cache))
    maker = Maker(encoder)
    kinds = [pools(path, maker) for path in asked.data]
    weights = {name: round(value, 3) for name, value in fitted(kinds).items()}
    blocks = {
        "fitted on all": [measured(of_form(kind), weights) for kind in kinds],
        "a third of the conversations held out": held_out(kinds),
        "the same, each conversation run together": held_out(kinds, is_altered=True),
        "the kind left out": left_out(kinds),
    }
    for title, values in blocks.items():
        print(f"\n{title}\n| kind | questions | hit@10 | nDCG@10 |\n|---|---|---|---|")
        for path, part in zip(asked.data, values, strict=True):
            if part:
                print(row(path.stem, part))
    print("\n" + "\n".join(f"{name:14s} {weights[name]:+.3f}  {NAMES[name]}" for name in FITTED))
    if asked.write:
        middle, spread = calibrated(kinds, weights)
        digests = {f"data_{n}": hashlib.sha256(path.read_bytes()).hexdigest() for n, path in enumerate(asked.data, 1)}
        provenance = {"tool": "ops.fit_recall", "model": encoder.fingerprint, "penalty": str(PENALTY), **digests}
        model = Model(weights=weights, middle=round(middle, 3), spread=round(spread, 3), provenance=provenance)
        TARGET.write_bytes(msgspec.json.format(msgspec.json.encode(model), indent=1) + b"\n")


if __name__ == "__main__":
    main()
