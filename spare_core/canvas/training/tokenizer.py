"""A grid's CLIP tokenizer: byte-level BPE whose merges make one token of every word of the grid.

All 256 bytes are in the vocabulary, so any text a user types has an encoding, if not a meaning.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Final

from spare_core.canvas.grid import TEMPLATE, Grid
from spare_core.models.clip_tokenizer import END_OF_WORD, write_tokenizer

MAX_LENGTH: Final = 32
_EXTRA_WORDS: Final = ("the", "of", "picture", "drawing", "painting", "object", "thing", "plain", "and", ",")


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """BPE merges, most frequent pair first (ties by spelling), until every word is a single token."""
    pieces = [[*word[:-1], word[-1] + END_OF_WORD] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while any(len(piece) > 1 for piece in pieces):
        pairs = Counter(pair for piece in pieces for pair in itertools.pairwise(piece))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merge(piece, best) for piece in pieces]
    return merges


def _merge(piece: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in piece:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def write_grid_tokenizer(folder: Path, grid: Grid) -> int:
    """Write a grid's tokenizer; returns the size of its vocabulary."""
    text = " ".join([*grid.objects, *grid.styles, TEMPLATE.format(object="", style=""), *_EXTRA_WORDS])
    words = text.lower().replace(".", " . ").split()
    return write_tokenizer(folder, learn_merges(words), MAX_LENGTH)
