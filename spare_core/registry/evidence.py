"""What an adapter is judged by, for whoever asks later: in the store, unchangeable, under the digest of its content.

======================== =============================================================================================
``artifacts/SHA256.*``   the files themselves: the adapter, its manifest, the evaluation, the pictures
``evidence/SHA256.json`` ``spare.evidence/1``: request, what is erased, base and adapter, and which files belong to it
``evidence/SHA256.json`` ``spare.verdict/1``: what a policy said of such an evidence, rule by rule
======================== =============================================================================================

MLflow's tags can be set by whoever may log a run; a digest in one of them only says which document to read here, and
the document is compared with that digest and with the adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from spare_core.adapters.manifest import MANIFEST
from spare_core.concepts.erasures import Erasures
from spare_core.errors import ObjectMissing, RegistryError
from spare_core.evaluation.report_files import EVALUATION, PICTURES

if TYPE_CHECKING:
    from spare_core.adapters.directory import StoredAdapter
    from spare_core.store import Store

SCHEMA: Final = "spare.evidence/1"
FILES: Final = (EVALUATION, *PICTURES)
"""What is kept of an evaluation's folder."""
_DOCUMENTS: Final = "evidence"
_ARTIFACTS: Final = "artifacts"


def keep_evidence(store: Store, request_id: str, stored: StoredAdapter, evaluation_folder: Path | None) -> str:
    """Store an adapter and what was measured of it; returns the sha256 of the document that lists both.

    The same again is the same document, and sends nothing.
    """
    files = {f"adapter/{path.name}": path for path in sorted(stored.folder.iterdir()) if path.is_file()}
    if evaluation_folder is not None:
        files |= {f"evaluation/{name}": evaluation_folder / name for name in FILES}
    kept = {name: store.put_content(path, _ARTIFACTS, path.suffix) for name, path in files.items() if path.is_file()}
    return keep_document(store, {
        "schema": SCHEMA, "request_id": request_id,
        "erased": Erasures.of(stored.manifest).surrogates(),
        "base_digest": stored.base_digest, "adapter_sha256": stored.sha256, "files": kept,
    })  # fmt: skip


def keep_document(store: Store, document: Mapping[str, Any]) -> str:
    """Store a JSON document under its digest, which is returned."""
    content = (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()
    return _digest_in(store.put_content(content, _DOCUMENTS, ".json"))


def read_document(store: Store, sha256: str) -> dict[str, Any]:
    """The document of that digest.

    Raises:
        RegistryError: if it is not in this store, or was changed there.
    """
    return _read(store, f"{_DOCUMENTS}/{sha256}.json")


def read_evaluation(store: Store, evidence_sha256: str, adapter_sha256: str) -> dict[str, Any]:
    """The evaluation that an evidence lists; empty if it lists none.

    Raises:
        RegistryError: if it is not in this store, was changed there, or is about another adapter.
    """
    evidence = read_document(store, evidence_sha256)
    if evidence.get("schema") != SCHEMA or evidence.get("adapter_sha256") != adapter_sha256:
        raise RegistryError(
            f"the evidence {evidence_sha256[:12]}… is {evidence.get('schema')!r} of the adapter "
            f"{str(evidence.get('adapter_sha256'))[:12]}…, not of {adapter_sha256[:12]}…; register the adapter again"
        )
    return evaluation_in(store, evidence)


def evaluation_in(store: Store, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation that an evidence lists; empty if it lists none.

    Raises:
        RegistryError: if it is not in this store, or was changed there.
    """
    key = evidence["files"].get(f"evaluation/{EVALUATION}")
    return {} if key is None else _read(store, key)


def manifest_in(store: Store, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """The ``spare.json`` of an evidence's adapter.

    Raises:
        RegistryError: if it is not in this store, or was changed there.
    """
    return _read(store, evidence["files"][f"adapter/{MANIFEST}"])


def _digest_in(key: str) -> str:
    """The sha256 that a key is made of."""
    return PurePosixPath(key).stem


def _read(store: Store, key: str) -> dict[str, Any]:
    """The JSON under a key, if it has the digest that the key names."""
    try:
        content = store.read(key)
    except ObjectMissing:
        raise RegistryError(
            f"there is no {store.uri_of(key)}, which the adapter is judged by; is this another --store than the one it "
            "was registered with? If not, register it again"
        ) from None
    if hashlib.sha256(content).hexdigest() != _digest_in(key):
        raise RegistryError(f"{store.uri_of(key)} is not what was stored there: its digest differs; restore it")
    document: dict[str, Any] = json.loads(content)
    return document
