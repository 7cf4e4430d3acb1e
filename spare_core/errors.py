"""Every error this library raises on purpose.

::

    SpareError                    exit 1
    ├── InputError                exit 2   what the user gave cannot work; nothing was started
    │   ├── ConceptError                   words to erase, to overwrite with, to keep
    │   ├── SettingsError                  one or more settings out of range, all of them listed
    │   ├── ModelError                     no model, no diffusers model, not safetensors, not the adapter's base
    │   ├── ImagesError                    a folder of images that cannot be read
    │   ├── AdapterError                   no adapter, a damaged one, one that matches nothing
    │   └── OutputError                    the output folder is in use or not ours
    ├── TrainingError                      a loss or a prediction that is not finite
    └── StorageError              exit 2   the disk would not take what was written

A message names the value it got, what is allowed, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence


class SpareError(Exception):
    """Root of all errors raised on purpose."""

    exit_code = 1


class InputError(SpareError):
    """The input cannot work; raised before any work is done."""

    exit_code = 2


class ConceptError(InputError):
    """A concept that is empty, too long, not printable, or contradicts another."""


class SettingsError(InputError):
    """Settings out of range; ``problems`` lists every one of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


class ModelError(InputError):
    """The base model is missing, unreadable, unsafe to load, or not the one that is needed."""


class ImagesError(InputError):
    """A folder of images is missing, empty, or holds files that are not images."""


class AdapterError(InputError):
    """An adapter is missing, damaged, made for another base, or touches nothing."""


class OutputError(InputError):
    """The output folder holds something else."""


class TrainingError(SpareError):
    """A loss or a prediction stopped being finite."""


class StorageError(SpareError):
    """Writing failed; what was there before is untouched. As with bad input, another place to write to helps."""

    exit_code = 2
