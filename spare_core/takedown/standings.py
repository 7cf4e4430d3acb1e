"""What the ledger's requests ask for together: which names must be gone, and who asked for each first."""

from __future__ import annotations

from spare_core.concepts.names import normalise
from spare_core.takedown.ledger import Ledger, Standing
from spare_core.takedown.request import TakedownRequest

MADE = ("registered", "in_bundle", "done")
"""States of a request that has an adapter of its own, or shares another one's."""
_ASKS_NOTHING = ("withdrawn", "failed", "blocked")


def request_of(standing: Standing) -> TakedownRequest:
    """What the list said."""
    return TakedownRequest.model_validate(standing.facts["request"])


def names_of(standing: Standing) -> list[str]:
    """All that it erases, normalised; none for a counter-notice."""
    request = standing.facts.get("request", {})
    return [normalise(name) for name in (request.get("concept", ""), *request.get("aliases", ())) if name]


def active(ledger: Ledger) -> list[Standing]:
    """The requests that still ask for something to be gone; those that have come furthest are first, then as they
    came in."""
    asking = [one for one in ledger.standings.values() if one.state not in _ASKS_NOTHING and names_of(one)]
    return sorted(asking, key=lambda one: one.state not in MADE)


def firsts(ledger: Ledger) -> dict[str, Standing]:
    """The request that each name is erased for; later ones that ask for the same share its erasure."""
    found: dict[str, Standing] = {}
    for one in active(ledger):
        for name in names_of(one):
            found.setdefault(name, one)
    return found


def unwanted(ledger: Ledger) -> set[str]:
    """Every name that somebody wants gone, also where that failed or is on hold: no surrogate for another one."""
    return {name for one in ledger.standings.values() if one.state != "withdrawn" for name in names_of(one)}


def withdrawn_names(ledger: Ledger) -> set[str]:
    """Names that were taken back and that nobody else asks for."""
    gone = {name for one in ledger.standings.values() if one.state == "withdrawn" for name in names_of(one)}
    return gone - firsts(ledger).keys()
