"""Word-piece ids of plain texts, put together from those of their words; each word is asked of the tokenizer once.

A BERT tokenizer cuts a text at spaces and punctuation and then looks at every word alone. So the ids of a text in printable
ASCII are those of its words, one behind the other, and words come again: of a question this takes a tenth of the tokenizer's
time, and lets nobody else take the interpreter. Texts of anything else, long ones, and texts that name a token of the
tokenizer's own are left to it.

Called by embedder.py; any number of threads may.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

MAX_WORDS = 1 << 14
"""Remembered, with their ids about 4 MB; over the bound all are forgotten."""
MAX_PLAIN_CHARS = 1024
"""Of a text: cutting a longer one would keep the interpreter from others for too long."""
_WORD = re.compile("[A-Za-z0-9]+|[^A-Za-z0-9 ]")
_SAMPLE = "Who's on (page) 42, un_believable?"


class WordPieces:
    """See the module. For one tokenizer, whose truncation is set to ``max_tokens``."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._lowers = bool(tokenizer.normalizer.lowercase)
        self._first, self._last = tokenizer.encode("").ids
        own = [re.escape(piece.content.lower()) for piece in tokenizer.get_added_tokens_decoder().values()]
        self._own = re.compile("|".join(own)) if own else None
        self._known: dict[str, tuple[int, ...]] = {}

    def ids(self, text: str) -> list[int] | None:
        """With the two special tokens around them; None for a text that is the tokenizer's own business."""
        if len(text) > MAX_PLAIN_CHARS or not text.isascii() or not text.isprintable():
            return None
        lowered = text.lower()
        if self._own is not None and self._own.search(lowered):
            return None
        words = _WORD.findall(lowered if self._lowers else text)
        known = self._known
        try:
            parts = [known[word] for word in words]
        except KeyError:
            parts = self._learned(words)
        ids = [self._first, *chain.from_iterable(parts), self._last]
        return ids if len(ids) <= self._max_tokens else None

    def _learned(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        # Looked up once: another thread may forget them all meanwhile.
        found = {word: self._known.get(word) for word in words}
        missing = [word for word, ids in found.items() if ids is None]
        encodings = self._tokenizer.encode_batch_fast(missing, add_special_tokens=False)
        learned = {word: tuple(encoding.ids) for word, encoding in zip(missing, encodings, strict=True)}
        if len(self._known) + len(learned) > MAX_WORDS:
            self._known.clear()
        self._known.update(learned)
        return [found[word] or learned[word] for word in words]


def word_pieces(tokenizer: Tokenizer, max_tokens: int) -> WordPieces | None:
    """None for a tokenizer that does not work as BERT's does."""
    parts = (
        (tokenizer.normalizer, BertNormalizer),
        (tokenizer.pre_tokenizer, BertPreTokenizer),
        (tokenizer.model, WordPiece),
    )
    if not all(isinstance(part, kind) for part, kind in parts) or len(tokenizer.encode("").ids) != 2:
        return None
    made = WordPieces(tokenizer, max_tokens)
    return made if made.ids(_SAMPLE) in (None, tokenizer.encode(_SAMPLE).ids) else None
