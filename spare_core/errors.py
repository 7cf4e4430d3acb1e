"""Every error this library raises on purpose.

::

    SpareError                    exit 1
    ├── InputError                exit 2   what the user gave cannot work; nothing was started
    │   ├── ConceptError                   words to erase, to overwrite with, to keep
    │   ├── SettingsError                  one or more settings out of range, all of them listed
    │   ├── ModelError                     no model, no diffusers model, not safetensors, not the adapter's base
    │   ├── ImagesError                    a folder of images that cannot be read
    │   ├── AdapterError                   no adapter, a damaged one, one that matches nothing
    │   ├── OutputError                    the output folder is in use or not ours
    │   └── StageError                     what an earlier stage left is missing, damaged or another request's
    ├── TrainingError                      a loss or a prediction that is not finite
    ├── DeviceMemoryError                  what is computed at once does not fit into the memory
    ├── StorageError              exit 2   the disk would not take what was written
    ├── StoreError                exit 1   the object storage did not do what was asked
    │   ├── StoreUnavailable               it cannot be reached, or stays busy after all retries
    │   ├── ObjectMissing         exit 2   no such bucket, object or folder
    │   ├── ObjectTooLarge        exit 2   more than what it is read as may have
    │   ├── ObjectDenied          exit 2   the credentials do not allow it, or there are none
    │   ├── ObjectExists                   a conditional create came second
    │   └── ObjectChanged                  an object became another one while it was read, or is damaged
    ├── RegistryError             exit 1   the model registry did not do what was asked
    │   ├── RegistryUnavailable            MLflow cannot be reached, or stays busy after all retries
    │   ├── RegistryInputError    exit 2   no such model, version or alias; a name that is none of ours
    │   ├── PromotionConflict              another promotion of the same model came first
    │   └── LogDamaged                     the promotion log's chain of hashes is broken
    ├── LedgerError               exit 1   the takedown ledger did not do what was asked
    │   ├── LedgerConflict                 a request does not stand as was thought: another worker came first
    │   └── LedgerDamaged                  the ledger's chain of hashes is broken
    ├── ClusterError              exit 1   the Kubeflow Pipelines API did not do what was asked
    │   ├── ClusterUnavailable             it cannot be reached, or is busy
    │   └── ClusterRefused        exit 2   it does not know us, does not allow it, or cannot take what we sent
    └── GateRefused               exit 3   the figures do not meet the policy

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


class StageError(InputError):
    """What an earlier stage should have left is missing, damaged, or belongs to another request."""


class TrainingError(SpareError):
    """A loss or a prediction stopped being finite."""


class DeviceMemoryError(SpareError):
    """What is computed at once does not fit into the memory of the device."""


_FULL = ("out of memory", "can't allocate memory", "cannot allocate memory")


def explained(error: Exception) -> SpareError | None:
    """What a library's error means where that is known: memory that was not enough, by whatever name torch's devices
    call it."""
    said = " ".join(str(error).split())
    full = isinstance(error, RuntimeError) and any(one in said.lower() for one in _FULL)
    if not (full or isinstance(error, MemoryError)):
        return None
    return DeviceMemoryError(
        f"the memory was not enough ({said.partition('. ')[0] or type(error).__name__}); give --low-memory (setting "
        "low_memory: true), a smaller batch_size or resolution, or end what else uses the device"
    )


class StorageError(SpareError):
    """Writing failed; what was there before is untouched. As with bad input, another place to write to helps."""

    exit_code = 2


class StoreError(SpareError):
    """The object storage did not do what was asked."""


class StoreUnavailable(StoreError):
    """The object storage cannot be reached, or stays busy after all retries."""


class ObjectMissing(StoreError):
    """There is no such bucket, object or folder."""

    exit_code = 2


class ObjectTooLarge(StoreError):
    """An object is larger than what it is read as may be."""

    exit_code = 2


class ObjectDenied(StoreError):
    """The credentials do not allow it, or there are none."""

    exit_code = 2


class ObjectExists(StoreError):
    """An object of that name is there already: this conditional create came second."""


class ObjectChanged(StoreError):
    """An object became another one while it was read, or its bytes are not those its checksum names."""


class RegistryError(SpareError):
    """The model registry did not do what was asked."""


class RegistryUnavailable(RegistryError):
    """MLflow cannot be reached, or stays busy after all retries."""


class RegistryInputError(RegistryError):
    """There is no such registered model, version or alias, or it is not one of ours."""

    exit_code = 2


class PromotionConflict(RegistryError):
    """Another promotion of the same model came first."""


class LogDamaged(RegistryError):
    """The promotion log's chain of hashes is broken: an entry was changed, removed or put in between."""


class LedgerError(SpareError):
    """The takedown ledger did not do what was asked."""


class LedgerConflict(LedgerError):
    """A request does not stand as was thought, perhaps because another worker came first; nothing was added."""


class LedgerDamaged(LedgerError):
    """The ledger's chain of hashes is broken: an entry was changed, removed or put in between."""


class ClusterError(SpareError):
    """The Kubeflow Pipelines API did not do what was asked."""


class ClusterUnavailable(ClusterError):
    """The Kubeflow Pipelines API cannot be reached, or is busy."""


class ClusterRefused(ClusterError):
    """The Kubeflow Pipelines API does not know us, does not allow it, or cannot take what we sent."""

    exit_code = 2


class GateRefused(SpareError):
    """The figures do not meet the policy; ``reasons`` says each way in which they do not, ``concepts`` which erased
    ones do not meet a rule about themselves; ``harm``: only what is kept does not."""

    exit_code = 3

    def __init__(self, message: str, reasons: Sequence[str], concepts: Sequence[str] = (), harm: bool = False) -> None:
        self.reasons, self.concepts, self.harm = tuple(reasons), tuple(concepts), harm
        super().__init__(message)
