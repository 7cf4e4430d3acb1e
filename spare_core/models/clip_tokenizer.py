"""The files of a CLIP tokenizer: byte-level BPE, whose vocabulary follows from its merges."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

END_OF_WORD: Final = "</w>"
BEGIN: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"
_OWN: Final = Path(__file__).with_name("clip_merges.txt.gz")


@functools.cache
def clip_merges() -> tuple[tuple[str, str], ...]:
    """The 48,894 merges of OpenAI's CLIP, which every Stable Diffusion reads its prompts by."""
    lines = gzip.decompress(_OWN.read_bytes()).decode("utf-8").splitlines()[1:]
    return tuple((left, right) for left, right in (line.split() for line in lines))


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes that GPT-2's and CLIP's byte-level BPE use, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(shifted))]


def vocabulary(merges: Sequence[tuple[str, str]]) -> list[str]:
    """All bytes, all bytes at a word's end, what each merge makes, and two marks."""
    alphabet = byte_alphabet()
    tokens = alphabet + [symbol + END_OF_WORD for symbol in alphabet] + [a + b for a, b in merges]
    return [*dict.fromkeys(tokens), BEGIN, END]


def write_tokenizer(folder: Path, merges: Sequence[tuple[str, str]], length: int, pad: str = END) -> int:
    """Write the files every CLIPTokenizer since transformers 4 reads, for prompts of ``length`` tokens, filled up with
    ``pad``; returns the size of the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {token: index for index, token in enumerate(vocabulary(merges))}
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": pad, "unk_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **special}
    merges_text = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
    (folder / "vocab.json").write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(merges_text, encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return len(tokens)
