"""What a task of a pipeline learns from its environment: as inputs, these would keep it from any cache."""

from __future__ import annotations

import os
from typing import Final

from spare_core.errors import InputError
from spare_core.store import Store, open_store

STORE: Final = "SPARE_STORE"
"""Where evidence and the promotion log are kept: s3://bucket/prefix or a folder."""
CHECKPOINTS: Final = "SPARE_CHECKPOINTS"
"""A folder that outlives a task, where an interrupted distillation leaves what it can go on from; without it, it starts
again."""
POLICY: Final = "SPARE_POLICY"
"""The policy that pipelines and promotions by hand are judged by where they are given none; without it, ``default``."""
RUN_ID: Final = "SPARE_RUN_ID"
"""The id of the pipeline run, which MLflow's runs are found by."""


def policy_for(given: str) -> str:
    """Name or address of the policy for a run that was ``given`` one, or none: one setting for all duties, so that no
    batch is judged by another policy than a promotion by hand."""
    return given or os.environ.get(POLICY, "")


def whole_number(variable: str, low: int, high: int, allowed: str) -> int | None:
    """What a variable says; None where it is not set, or blank. ``allowed`` says its bounds in words.

    Raises:
        InputError: if it is no whole number from ``low`` to ``high``.
    """
    given = os.environ.get(variable, "").strip()
    if not given:
        return None
    if not given.isdecimal() or not low <= int(given) <= high:
        raise InputError(f"{variable} is {given!r}; it must be a whole number {allowed}, or unset")
    return int(given)


def pipeline_run_id() -> str:
    """The id of the pipeline run that this process is a task of.

    Raises:
        InputError: if it is no task of one.
    """
    given = os.environ.get(RUN_ID, "")
    if not given:
        raise InputError(
            f"{RUN_ID} is not set; `spare run` sets it, and on a cluster what pipelines/platform.py asks for"
        )
    return given


def run_actor() -> str:
    """How ledger and promotion log name who did it, where that was this pipeline run.

    Raises:
        InputError: see :func:`pipeline_run_id`.
    """
    return f"pipeline run {pipeline_run_id()}"


def open_run_store() -> Store:
    """The store that the environment names.

    Raises:
        InputError: if it names none.
    """
    given = os.environ.get(STORE)
    if not given:
        raise InputError(f"{STORE} is not set; set it to what the run's first task had, s3://bucket/prefix")
    return open_store(given)
