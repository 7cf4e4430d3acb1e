"""When two names are one: exactly, for what is looked up by name, or to people, for what must not contradict itself."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Final

_ARTICLES: Final = ("a", "an", "the")
_WORD: Final = re.compile(r"[^\s,;:.!?\"'()]+")
_BETWEEN: Final = re.compile(r"\s*\|\s*|\s*(?<!\d),(?!\d)\s*|\s*,\s+|\s*;\s+|\s+/\s+")
_PARTICLES: Final = ("jr", "sr", "ii", "iii", "iv", "md", "phd", "esq", "inc", "ltd", "llc")
_TYPED: Final = str.maketrans({
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u02b9\u0060\u2032", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb", '"'),
    **dict.fromkeys("\u2010\u2012\u2013\u2014\u2015\u2212\u00ad", "-"),
})  # fmt: skip
"""Quotes and dashes as typesetters have them, and as they are typed."""
_AMERICAN: Final = {
    **{f"{stem}our": f"{stem}or" for stem in (
        "arm", "behavi", "col", "fav", "flav", "harb", "hon", "hum", "lab", "neighb", "od", "parl", "rum", "sav",
        "vap", "vig", "watercol", "multicol", "technicol", "endeav", "demean", "splend",
    )},
    **{f"{stem}re": f"{stem}er" for stem in ("cent", "theat", "fib", "lit", "lust", "somb", "spect", "calib", "met")},
    **{f"{stem}ogue": f"{stem}og" for stem in ("catal", "dial", "anal")},
    "grey": "gray", "jewellery": "jewelry", "aeroplane": "airplane", "pyjama": "pajama", "tyre": "tire",
    "doughnut": "donut", "moustache": "mustache", "plough": "plow", "draught": "draft", "aluminium": "aluminum",
    "armoured": "armored", "coloured": "colored", "favourite": "favorite", "axe": "ax", "mould": "mold",
}  # fmt: skip
"""British spellings of what is drawn, and the American ones."""


def normalise(text: str) -> str:
    """A name as it is looked up: NFKC, case-folded, single spaces, quotes and dashes as they are typed."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_TYPED).casefold().split())


def same_concept(a: str, b: str) -> bool:
    """Whether two texts are one name: equal but for case, width, spacing, and how quotes and dashes are set."""
    return normalise(a) == normalise(b)


@functools.lru_cache(maxsize=1 << 17)  # every erasure asks for those of a whole vocabulary, nine times
def bare_name(text: str) -> str:
    """A name as it is compared with what must not contradict it: normalised, without an article, accents and hyphens,
    each word in the singular and spelt as in America. To people "a cat" and "cats" are Cat."""
    words = _unaccented(normalise(text)).replace("-", " ").split()
    return " ".join(map(_plain, words[1:] if len(words) > 1 and words[0] in _ARTICLES else words))


def alike(a: str, b: str) -> bool:
    """Whether two texts are one name to people: equal but for an article, the plural, accents, hyphens, or American
    and British spelling."""
    return bare_name(a) == bare_name(b)


def bare_words(text: str) -> str:
    """All words of a text as :func:`bare_name` has them, hyphenated ones whole, between single spaces and with one at
    each end: " a dog in the snow ". A text mentions a name if these words of the name, without its article, are within
    those of the text."""
    return f" {' '.join(map(_plain, _WORD.findall(_unaccented(normalise(text)))))} "


def names_within(text: str) -> list[str]:
    """The names in a text that may be a list of several; none where it is one name, as "Martin Luther King, Jr." and
    "Steins;Gate" are. Whether "Tyler, the Creator" is one only people can tell."""
    found = [part for part in _BETWEEN.split(text.strip()) if part and normalise(part).rstrip(".") not in _PARTICLES]
    return found if len(found) > 1 else []


def _unaccented(text: str) -> str:
    """Latin letters without their accents; what other scripts write as marks stays, since it tells words apart."""
    kept = []
    for letter in text:
        parts = unicodedata.normalize("NFD", letter)
        kept.append(parts[0] if parts[0].isascii() else letter)
    return "".join(kept)


def _plain(word: str) -> str:
    """In the singular by rule, so that both forms of a word become one, and spelt as in America; the result need not be
    a word."""
    single = _singular(word)
    return _AMERICAN.get(single, single)


def _singular(word: str) -> str:
    if len(word) <= 3 or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith(("ches", "shes", "xes", "sses", "zes")):
        return word[:-2]
    return f"{word[:-3]}y" if word.endswith("ies") and len(word) > 4 else word.removesuffix("s")
