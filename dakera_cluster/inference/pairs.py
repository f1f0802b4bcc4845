"""A pair model: a question and texts in, the relevance of each text out, on ONNX Runtime. Synchronous; one thread at a time.

Invariants: the two texts and the special tokens around them are joined as the model's own tokenizer.json says
(`[CLS] q [SEP] d [SEP]` with token types for BERT, `<s> q </s></s> d </s>` for XLM-RoBERTa); a text's relevance does not
depend on the texts scored with it, and equal pairs get equal numbers: logits are rounded to `DECIMALS`, far above what the
order of float additions over padding changes and far below what tells two texts apart.

Called by the reranker, which owns the thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dakera_cluster.inference.embedder import MAX_BATCH_TOKENS, MAX_TEXT_CHARS_PER_TOKEN, whole
from dakera_cluster.inference.models import ModelFormatError
from dakera_cluster.inference.onnx_pass import Device, open_session
from dakera_cluster.inference.store import InstalledModel
from dakera_cluster.model.errors import DakeraError

DECIMALS = 4
QUERY_SHARE = 2
"""A question takes the model's limit divided by this at most: what is asked must not crowd out what is judged."""
_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


class Pair(msgspec.Struct, frozen=True):
    """A question and a text as the model reads them: token ids, and of each token to which of the two it belongs."""

    ids: list[int]
    types: list[int]


class PairScorer:
    """Scores pairs with one installed model: a graph of our builder (`relevance`: float32[n]) or any graph whose first or
    only output is `logits`: float32[n] or float32[n, 1 or 2]. Not thread-safe by contract: one caller at a time."""

    def __init__(
        self,
        model: InstalledModel,
        threads: int = 1,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        device: Device = Device.CPU,
    ) -> None:
        """Raises ModelFormatError for a graph or a tokenizer that is no pair model's, InvalidRequestError for a device
        that is not there."""
        self.spec = model.spec
        self.fingerprint = model.fingerprint
        self._max_batch_tokens = max_batch_tokens
        try:
            self._tokenizer = _pair_tokenizer(model.tokenizer_path, self.spec.max_tokens)
            self._questions = Tokenizer.from_file(str(model.tokenizer_path))
            self._questions.no_padding()
            self._questions.enable_truncation(max(1, self.spec.max_tokens // QUERY_SHARE))
            self._session = open_session(model.graph_path, threads, device)
        except DakeraError:
            raise
        except Exception as error:
            # Both libraries raise types of their own for a file they cannot read.
            raise ModelFormatError(f"{self.spec.name} cannot be read: {error}") from error
        self._inputs = [value.name for value in self._session.get_inputs()]
        outputs = [value.name for value in self._session.get_outputs()]
        if not set(self._inputs) <= _INPUTS:
            raise ModelFormatError(f"{model.graph_path}: unknown inputs among {', '.join(self._inputs)}")
        named = [name for name in ("relevance", "logits") if name in outputs]
        if not named and len(outputs) > 1:
            raise ModelFormatError(f"{model.graph_path}: no output named logits, found {', '.join(outputs)}")
        self._output = (named or outputs)[0]

    def pairs(self, query: str, texts: Sequence[str]) -> list[Pair]:
        """A question with each of n texts; a text is cut to what the model reads beside the question."""
        chars = self.spec.max_tokens * MAX_TEXT_CHARS_PER_TOKEN
        query = whole(query[:chars])
        cut = self._questions.encode(query, add_special_tokens=False)
        query = query[: cut.offsets[-1][1]] if cut.offsets else ""
        encodings = self._tokenizer.encode_batch([(query, whole(text[:chars])) for text in texts])
        return [Pair(encoding.ids, encoding.type_ids) for encoding in encodings]

    def batches(self, pairs: Sequence[Pair]) -> list[range]:
        """The pairs in their own order, cut so that a group, padded to its longest, keeps to the token budget.

        In order, because time may run out: what stands first is scored first. A pair beyond the budget is a group.
        """
        groups: list[range] = []
        start, longest = 0, 0
        for place, pair in enumerate(pairs):
            longest = max(longest, len(pair.ids))
            if place > start and (place - start + 1) * longest > self._max_batch_tokens:
                groups.append(range(start, place))
                start, longest = place, len(pair.ids)
        if len(pairs) > start:
            groups.append(range(start, len(pairs)))
        return groups

    def forward(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """One forward pass: float64[n] logits, higher is more relevant. Raises ModelFormatError for an answer of another
        shape or one that is not finite."""
        shape = (len(pairs), max(len(pair.ids) for pair in pairs))
        inputs = {name: np.zeros(shape, np.int64) for name in (*self._inputs, *_INPUTS)}
        for row, pair in enumerate(pairs):
            inputs["input_ids"][row, : len(pair.ids)] = pair.ids
            inputs["token_type_ids"][row, : len(pair.ids)] = pair.types
            inputs["attention_mask"][row, : len(pair.ids)] = 1
        (answer,) = self._session.run([self._output], {name: inputs[name] for name in self._inputs})
        logits = np.asarray(answer, np.float64)
        if logits.ndim == 2 and logits.shape[1] == 2:
            logits = logits[:, 1] - logits[:, 0]
        if logits.size != len(pairs) or not np.isfinite(logits).all():
            raise ModelFormatError(f"{self.spec.name} answers {np.shape(answer)}, not one finite number a pair")
        return np.asarray(np.round(logits.reshape(-1), DECIMALS))


def _pair_tokenizer(path: Path, max_tokens: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    # A pair without special tokens between its texts runs, and means nothing to the model.
    if tokenizer.num_special_tokens_to_add(is_pair=True) < 2:
        raise ModelFormatError(f"{path.name}: its post-processor does not say how two texts are joined")
    tokenizer.enable_truncation(max_tokens, strategy="only_second")
    return tokenizer
