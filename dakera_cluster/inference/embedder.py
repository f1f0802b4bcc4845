"""The encoder: texts in, pooled and token vectors out. Synchronous; one thread at a time.

Passes run on our own kernels where the model and the processor allow it (native_pass.py), else on ONNX Runtime.

Invariants: a text's vectors do not depend on the texts encoded with it (on our kernels bit for bit; on ONNX Runtime, measured
on MiniLM int8, to a cosine of 0.999999 or better: the rest is the order of float additions over padding). Memory of a forward
pass is bounded by `max_batch_tokens`. Vectors are stored with their rows, so nothing relies on two machines agreeing bit for bit:
different CPUs round differently.

Called by the service, which owns the thread, and by benchmarks that want the bare rate of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from dakera_cluster.inference.encoding import Encoded, EncodedText
from dakera_cluster.inference.models import ModelSpec, TextKind
from dakera_cluster.inference.native_pass import NativePass, native_pass
from dakera_cluster.inference.onnx_pass import Device, OnnxPass, check_device
from dakera_cluster.inference.store import InstalledModel
from dakera_cluster.inference.word_pieces import word_pieces
from dakera_cluster.native.encoder import Wanted

MAX_BATCH_TOKENS = 256
"""Padded tokens of one forward pass. On one core the rate peaks here (activations stay in cache): 1,024 is slower."""
MAX_TEXT_CHARS_PER_TOKEN = 64
"""Characters beyond this many a token of the limit are not even tokenised: no text of words reaches them."""


class TextEncoder:
    """Encodes texts with one installed model. Not thread-safe by contract: one caller at a time."""

    def __init__(
        self,
        model: InstalledModel,
        threads: int = 1,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        device: Device = Device.CPU,
        *,
        native: bool = True,
    ) -> None:
        """Loads weights and tokenizer. `threads` work on one forward pass. Without `native`, ONNX Runtime runs the model
        whatever the processor could do.

        Raises InvalidRequestError for a device the installed ONNX Runtime lacks and ModelFormatError for a graph that is
        no encoder.
        """
        check_device(device)
        self.spec: ModelSpec = model.spec
        self.fingerprint = model.fingerprint
        self._max_batch_tokens = max_batch_tokens
        self._tokenizer = _tokenizer(model.tokenizer_path, self.spec.max_tokens)
        self._words = word_pieces(self._tokenizer, self.spec.max_tokens)
        special = _special(self._tokenizer)
        own = native_pass(model, special, threads) if native and device is Device.CPU else None
        self._pass: NativePass | OnnxPass = own or OnnxPass(
            model.graph_path, self.spec.pooling, special, threads, device
        )

    @property
    def is_native(self) -> bool:
        """Whether our own kernels run it."""
        return isinstance(self._pass, NativePass)

    @property
    def dimension(self) -> int:
        return self.spec.dimension

    def encode(self, texts: Sequence[str], kind: TextKind, tokens: bool = False) -> Encoded:
        """Vectors of n texts, in order; token vectors only when `tokens` is set. Texts are cut at the model's limit."""
        ids = self.tokenize(texts, kind)
        found: dict[int, EncodedText] = {}
        for batch in self.batches(ids):
            found.update(zip(batch, self.forward([ids[index] for index in batch], kind, tokens), strict=True))
        return Encoded([found[index] for index in range(len(texts))], self.dimension)

    def tokenize(self, texts: Sequence[str], kind: TextKind) -> list[list[int]]:
        """Word-piece ids of each text with its prefix and special tokens, cut at the model's limit."""
        prefix = self.spec.prefix(kind)
        limit = self.spec.max_tokens * MAX_TEXT_CHARS_PER_TOKEN
        texts = [prefix + text[:limit] for text in texts]
        words = self._words
        found = [None if words is None else words.ids(text) for text in texts]
        rest = [place for place, ids in enumerate(found) if ids is None]
        if rest:
            encodings = self._tokenizer.encode_batch_fast([whole(texts[place]) for place in rest])
            for place, encoding in zip(rest, encodings, strict=True):
                found[place] = encoding.ids
        return [ids for ids in found if ids is not None]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The word pieces of ids, continuations with their leading `##`. Raises KeyError for an id out of the vocabulary."""
        pieces = []
        for piece_id in ids:
            piece = self._tokenizer.id_to_token(piece_id)
            if piece is None:
                raise KeyError(piece_id)
            pieces.append(piece)
        return pieces

    def piece_id(self, piece: str) -> int | None:
        """The id of a word piece, None when the vocabulary lacks it."""
        found: int | None = self._tokenizer.token_to_id(piece)
        return found

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Where each word piece of the whole text begins and ends (characters), special tokens left out, nothing cut off.

        Safe beside a running forward pass, from any thread.
        """
        first = self._tokenizer.encode(whole(text))
        return [
            span
            for window in (first, *first.overflowing)
            for span, special in zip(window.offsets, window.special_tokens_mask, strict=True)
            if not special
        ]

    def batches(self, ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Indices in order of length, grouped so that a group, padded to its longest, keeps to the token budget.

        Each group is one forward pass. A text longer than the budget is a group of its own.
        """
        groups: list[list[int]] = []
        for index in sorted(range(len(ids)), key=lambda index: len(ids[index])):
            if groups and (len(groups[-1]) + 1) * len(ids[index]) <= self._max_batch_tokens:
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups

    def forward(self, ids: Sequence[Sequence[int]], kind: TextKind, tokens: bool) -> list[EncodedText]:
        """One forward pass over texts already tokenised."""
        if not tokens:
            return self._pass.run(ids, Wanted.NOTHING)
        return self._pass.run(ids, Wanted.SIGNS_AND_HALVES if kind is TextKind.QUERY else Wanted.SIGNS)


def whole(text: str) -> str:
    """The text with lone surrogates replaced, which the tokenizer would refuse, and with it everybody in the batch."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _tokenizer(path: Path, max_tokens: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def _special(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of the pieces that stand for nothing of a text."""
    return frozenset(piece_id for piece_id, piece in tokenizer.get_added_tokens_decoder().items() if piece.special)
