"""Names of registered models, safe in URLs, filters and paths: ``spare.<base>.<concept>``, one a concept; and
``spare.<base>``, one a base model, for bundles.

A concept is anything people write. Its name is a readable slug where the slug says it exactly ("Neon Lines" ->
``neon-lines``); otherwise part of a sha256 is added, so that what the slug leaves out still makes a difference. A slug
that could be taken for one with such an ending is never left without.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Final

from spare_core import built_in
from spare_core.concepts.names import normalise
from spare_core.errors import RegistryInputError

PREFIX: Final = "spare."
_SLUG_LENGTH: Final = 40
_HASH_LENGTH: Final = 10
_DIGEST_LENGTH: Final = 8
_EXACT: Final = re.compile(r"[a-z0-9]+( [a-z0-9]+)*")
_HASHED: Final = re.compile(rf"(.*-)?[0-9a-f]{{{_HASH_LENGTH}}}")
_NAME: Final = re.compile(r"spare(\.[a-z0-9-]+){1,2}")


def model_name(source: str, base_digest: str, concept: str) -> str:
    """``spare.<base>.<concept-slug>`` for the base model ``source`` (as the user gave it) and a concept."""
    return f"{bundle_name(source, base_digest)}.{concept_slug(concept)}"


def bundle_name(source: str, base_digest: str) -> str:
    """``spare.<base>`` for the base model ``source``."""
    return f"{PREFIX}{_base_slug(source, base_digest)}"


def concept_slug(concept: str) -> str:
    """At most 51 of ``a-z 0-9 -``: equal for the same concept (:func:`spare_core.concepts.names.same_concept`), else
    not."""
    text = normalise(concept)
    slug = _slug(text)
    if _EXACT.fullmatch(text) and len(text) <= _SLUG_LENGTH and not _HASHED.fullmatch(slug):
        return slug
    ending = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_LENGTH]
    return f"{slug}-{ending}" if slug else ending


def check_name(name: str) -> str:
    """``name``, if it is of the form that :func:`model_name` or :func:`bundle_name` gives.

    Raises:
        RegistryInputError: otherwise, before it reaches a filter, a path or a URL.
    """
    if not _NAME.fullmatch(name) or len(name) > 250:
        raise RegistryInputError(
            f"{name[:80]!r} is no name of ours; they are like 'spare.canvas.neon-lines', see `spare registry list`"
        )
    return name


def _base_slug(source: str, digest: str) -> str:
    """Of a path only the last component is shown: where it lies on some machine is nobody's business."""
    if built_in.find(source) is not None:
        return source
    return f"{_slug(source.replace(chr(92), '/').rstrip('/').rpartition('/')[2]) or 'model'}-{digest[:_DIGEST_LENGTH]}"


def _slug(text: str) -> str:
    """Words of ASCII letters and digits joined by hyphens; accents are dropped, everything else parts words."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9]+", plain))[:_SLUG_LENGTH].strip("-")
