"""The words that a model's tokenizer holds whole: what its texts are about, without any data to license."""

from __future__ import annotations

from typing import Any, Final

_ENDS: Final = "</w>"
"""Behind a token that ends a word, in CLIP's vocabulary."""
_BEGINS: Final = ("▁", "Ġ")
"""Before a token that begins a word: SentencePiece's, and byte-level BPE's."""
_LETTERS: Final = 3


def whole_words(tokenizer: Any) -> list[str]:
    """Words of at least three letters that are a single token, in the order of the vocabulary, which is by frequency;
    those that begin a word where the vocabulary does not say where words end."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    ended = [token.removesuffix(_ENDS) for token, _ in tokens if token.endswith(_ENDS)]
    words = ended or [token[1:] for token, _ in tokens if token.startswith(_BEGINS)]
    return list(dict.fromkeys(word for word in words if len(word) >= _LETTERS and word.isalpha()))
