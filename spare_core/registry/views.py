"""What the registry holds, for reading: every model of ours, one model, and one model's history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spare_core.errors import LogDamaged
from spare_core.registry.client import asking, connect
from spare_core.registry.evidence import read_document, read_evaluation
from spare_core.registry.log import Entry, aliases_after
from spare_core.registry.models import EVIDENCE, FORCED, FORCED_REASON, GATE, GATE_POLICY, GATE_REASONS
from spare_core.registry.naming import PREFIX, check_name
from spare_core.registry.promotions import read_aliases, read_log

if TYPE_CHECKING:
    from spare_core.store import Store

_FIGURES = ("ua.after", "ira.before", "ira.after", "cra.before", "cra.after", "residual", "mean_drift")


def list_models() -> list[dict[str, Any]]:
    """Every registered model of ours: name, concept, aliases, number of the latest version."""
    client = connect()
    found: list[Any] = []
    token = None
    with asking("list the registered models"):
        while True:
            page = client.search_registered_models(f"name LIKE '{PREFIX}%'", max_results=100, page_token=token)
            found += page
            token = page.token
            if not token:
                break
    return [
        {
            "name": model.name,
            "concept": model.tags.get("spare.concept"),
            "aliases": {alias: int(version) for alias, version in sorted(model.aliases.items())},
            "latest": max((int(version.version) for version in model.latest_versions), default=None),
        }
        for model in found
    ]


def show_model(name: str, store: Store | None = None) -> dict[str, Any]:
    """One registered model: its versions, newest first, with figures and the gate's word; its aliases; and, where a
    store is given, whether these are as the promotion log left them (``outside`` and ``pending``)."""
    client = connect()
    with asking(f"show as {check_name(name)}"):
        model = client.get_registered_model(name)
        versions = client.search_model_versions(f"name = '{name}'")
    shown: dict[str, Any] = {
        "name": name,
        "concept": model.tags.get("spare.concept"),
        "aliases": {alias: int(version) for alias, version in sorted(model.aliases.items())},
        "versions": [_version(version) for version in sorted(versions, key=lambda one: -int(one.version))],
    }
    return shown if store is None else {**shown, **_against_log(name, store)}


def history(name: str, store: Store) -> dict[str, Any]:
    """Every entry of the promotion log, checked, with a line for people (``line``); and whether the aliases are as it
    left them.

    Raises:
        LogDamaged: naming the entry that does not fit.
    """
    entries = [{**entry.as_dict(), "line": entry.as_line()} for entry in read_log(connect(), store, name)]
    return {"name": name, "entries": entries, **_against_log(name, store)}


def verify(name: str, store: Store) -> dict[str, Any]:
    """Prove that the promotion log is whole, that what it cites is in the store as it was written, and that the aliases
    are as it left them; number of entries, sha256 of the last (``head``), number of cited verdicts (``documents``).

    Raises:
        LogDamaged: naming the entry or the document that is not in order, or how log and aliases differ.
        RegistryError: if a cited document is gone or was changed.
    """
    entries = read_log(connect(), store, name)
    cited = {entry.verdict_sha256: entry for entry in entries if entry.verdict_sha256}
    for verdict_sha256, entry in cited.items():
        verdict = read_document(store, verdict_sha256)
        about = [verdict.get(name) for name in ("adapter_sha256", "policy_sha256", "passed")]
        if about != [entry.adapter_sha256, entry.policy_sha256, not entry.forced]:
            raise LogDamaged(f"entry {entry.number} of {name} cites the verdict {verdict_sha256}, which is another's")
        read_evaluation(store, verdict["evidence_sha256"], entry.adapter_sha256)
    remarks = [remark for remark in _against_log(name, store).values() if remark]
    if remarks:
        raise LogDamaged(f"the log of {name} is whole, but {'; '.join(remarks)}")
    return {
        "name": name, "entries": len(entries), "head": entries[-1].sha256 if entries else None,
        "documents": len(cited),
    }  # fmt: skip


def _version(version: Any) -> dict[str, Any]:
    tags = version.tags
    return {
        "version": int(version.version),
        "request_id": tags.get("spare.request_id"),
        "adapter_sha256": tags.get("spare.adapter.sha256"),
        "gate": tags.get(GATE),
        "gate_reasons": tags.get(GATE_REASONS),
        "gate_policy": tags.get(GATE_POLICY),
        "evidence": tags.get(EVIDENCE),
        "forced": tags.get(FORCED_REASON) if tags.get(FORCED) == "true" else None,
        **{name: float(tags[f"spare.{name}"]) for name in _FIGURES if f"spare.{name}" in tags},
    }


def _against_log(name: str, store: Store) -> dict[str, Any]:
    """``pending``: a move that a crash left unfinished; ``outside``: how log and MLflow differ. None: they do not."""
    client = connect()
    while True:  # a move that is made at this moment is neither
        entries = read_log(client, store, name)
        expected, actual = aliases_after(entries), read_aliases(client, name)
        if len(read_log(client, store, name)) == len(entries):
            break
    pending = entries[-1] if entries and entries[-1].is_move else None
    differ = actual != expected and pending is None
    return {
        "pending": pending and _pending(pending),
        "outside": f"the aliases were moved outside SPARE: the log says {expected}, MLflow says {actual}"
        if differ
        else None,
    }


def _pending(entry: Entry) -> str:
    return f"entry {entry.number} is not finished: it is being made, or the next promotion or rollback finishes it"
