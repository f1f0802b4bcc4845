from types import SimpleNamespace
from typing import Any, cast

from ops.bench.rounds import Engine, recall_steps


def test_every_step_a_recall_accounts_for_is_in_the_table() -> None:
    def answer(late_us: int) -> dict[str, Any]:
        return {
            "query_embedding_time_ms": 1.5,
            "explain": {"timings_us": {"words": 120, "late": late_us}},
            "memories": [{"explain": {"age_ms": 9}}],
        }

    load = SimpleNamespace(call=lambda *_, **__: [answer(300), answer(500), answer(900)])
    steps = recall_steps(cast(Engine, SimpleNamespace(load=load)), "a", ["?"] * 3, 10)
    assert steps == {"query_embedding_time": 1.5, "words": 0.12, "late": 0.5}
