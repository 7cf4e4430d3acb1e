"""A grid's CLIP tokenizer: byte-level BPE whose merges make one token of every word of the grid.

All 256 bytes are in the vocabulary, so any text a user types has an encoding, if not a meaning.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Final

from spare_core.canvas.grid import TEMPLATE, Grid

MAX_LENGTH: Final = 32
_EXTRA_WORDS: Final = ("the", "of", "picture", "drawing", "painting", "object", "thing", "plain", "and", ",")
_END_OF_WORD: Final = "</w>"


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes that GPT-2's and CLIP's byte-level BPE use, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(shifted))]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """BPE merges, most frequent pair first (ties by spelling), until every word is a single token."""
    pieces = [[*word[:-1], word[-1] + _END_OF_WORD] for word in sorted(set(words))]
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


def write_tokenizer(folder: Path, grid: Grid) -> int:
    """Write the files every CLIPTokenizer since transformers 4 reads; returns the size of the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    text = " ".join([*grid.objects, *grid.styles, TEMPLATE.format(object="", style=""), *_EXTRA_WORDS])
    words = text.lower().replace(".", " . ").split()
    merges = learn_merges(words)
    alphabet = byte_alphabet()
    tokens = alphabet + [symbol + _END_OF_WORD for symbol in alphabet] + [a + b for a, b in merges]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, "do_lower_case": True, **special}
    merges_text = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(merges_text, encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return len(vocabulary)
