"""Where training starts: the closed form at the ridge that measures best, or an adapter that changes nothing yet."""

from __future__ import annotations

import copy
import functools
from typing import Final, NamedTuple

from torch import Tensor

from spare_core.adapters.low_rank import Adapter
from spare_core.concepts.erasures import Erasures
from spare_core.method.bank import Bank
from spare_core.method.gather import ask, encode_texts, gathered_moments
from spare_core.method.probes import asked_once
from spare_core.method.residual import UNTOUCHED, Measurement, Meter
from spare_core.method.search import climb
from spare_core.method.settings import EraseSettings
from spare_core.method.solve import Encoder, overwrite, prompt_moments, scale, solvable
from spare_core.models.denoiser import Denoiser

_RIDGE, _FACTOR = 0.2, 4.0
_RIDGE_OF_A_LIST, _FACTOR_OF_A_LIST = 0.1, 2.0
"""Where the search for the ridge starts, in units of :func:`scale`, and the ratio of neighbours; at its end the two
between them and the best are tried. Of a long list half the ridge is too much, and twice that too little."""
_RANGE: Final = (1e-3, 1e5)
_KEYS: Final = 0.5
"""Ridge of the keys, for one concept. Values make up for what keys do wrong: it matters little."""


class Start(NamedTuple):
    """An adapter to go on from, the ridge it was solved with (None: it changes nothing yet), and what it measures."""

    adapter: Adapter
    ridge: float | None
    measured: Measurement


class Solver:
    """Solutions for one ridge after another. Keys are solved for once, since nothing of them is chosen."""

    def __init__(
        self,
        fresh: Adapter,
        denoiser: Denoiser,
        erasures: Erasures,
        prior: Tensor,
        bank: Bank,
        settings: EraseSettings,
    ) -> None:
        self.denoiser = denoiser
        self._keys = copy.deepcopy(fresh)
        encoder = Encoder(denoiser, settings.resolution)
        moments = prompt_moments(encoder, erasures, prior, settings, "solve")
        gathering = {one.value for one in denoiser.text_attentions()}
        others = [name for name in denoiser.text_layers() if name not in gathering]
        overwrite(self._keys, denoiser, dict.fromkeys(others, moments), _KEYS * scale(erasures))
        asked = ask(denoiser, bank, settings.seed)
        texts = encode_texts(encoder, erasures, settings, "solve", len(asked.names))
        self._values = gathered_moments(denoiser, asked, texts, self._keys)

    def solve(self, ridge: float) -> Adapter:
        """Keys as they are, values for ``ridge``; what is not solved for is shared by all solutions."""
        solved = {name: copy.deepcopy(self._keys.updates[name]) for name in self._values}
        adapter = Adapter({**self._keys.updates, **solved})
        overwrite(adapter, self.denoiser, self._values, ridge)
        return adapter


def best_start(
    fresh: Adapter,
    denoiser: Denoiser,
    erasures: Erasures,
    prior: Tensor,
    bank: Bank,
    meter: Meter,
    settings: EraseSettings,
) -> Start:
    """The start that costs least by measurement: ``fresh`` itself, which changes nothing, or its solution for the best
    ridge. ``prior`` is :func:`spare_core.method.prior.prior_moment`.

    The search goes to larger ridges while they measure better, else to smaller ones. The contexts that it is chosen in
    are solved for too, as they are in the result; of the probes in them the solution sees neither noise nor states.
    Solved without them it drifts twice as much on a long list, and too large a ridge is chosen (docs/failures.md).
    """
    untouched = Start(fresh, None, UNTOUCHED)
    if not solvable(fresh, denoiser):
        return untouched
    solver = Solver(fresh, denoiser, erasures, prior, bank, settings)

    @functools.cache
    def solved(ridge: float) -> Start:
        adapter = solver.solve(ridge)
        return Start(adapter, ridge, meter.measure(adapter))

    def cost(ridge: float) -> float:
        return solved(ridge).measured.cost(settings.drift_price)

    many = asked_once(len(erasures.names), settings)
    ridge, factor = (_RIDGE_OF_A_LIST, _FACTOR_OF_A_LIST) if many else (_RIDGE, _FACTOR)
    best = climb(cost, ridge * scale(erasures), (factor, 1 / factor), _RANGE)
    best = min((best, best * factor**0.5, best * factor**-0.5), key=cost)
    return min(untouched, solved(best), key=lambda start: start.measured.cost(settings.drift_price))
