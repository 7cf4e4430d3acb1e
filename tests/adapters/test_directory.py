"""An adapter directory is complete, unchanged and safe to read, or it is refused with the reason."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from spare_core.adapters.directory import check_base, load_adapter, save_adapter
from spare_core.adapters.low_rank import Adapter
from spare_core.adapters.manifest import LORA, MANIFEST, SPARSE
from spare_core.errors import AdapterError, ModelError, StorageError
from spare_core.models.unet import UNetDenoiser
from tests.support.adapters import deltas, load_tiny, manifest_for, predict, random_adapter, store


@pytest.fixture(scope="module")
def denoiser(sd1_dir: Path) -> UNetDenoiser:
    """The base of every adapter here."""
    return load_tiny(sd1_dir)


@pytest.fixture(scope="module")
def pristine(denoiser: UNetDenoiser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good LoRA adapter directory; copied, never changed."""
    folder = tmp_path_factory.mktemp("pristine") / "adapter"
    store(folder, denoiser, "channel")
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A good LoRA adapter directory to spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "adapter"))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite ``spare.json`` after ``change``."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def replace_weights(folder: Path, content: bytes) -> None:
    """Put ``content`` in place of the LoRA, and its digest into ``spare.json``."""
    (folder / LORA).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit_manifest(folder, lambda manifest: manifest["files"][LORA].update(sha256=digest))


class Exploding:
    """Unpickling this creates the file it was made with."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


@pytest.mark.parametrize("kind", ["module", "channel", "none"])
def test_a_lora_adapter_predicts_the_same_after_reading_back(denoiser: UNetDenoiser, tmp_path: Path, kind: Any) -> None:
    """The scale is folded into B on the way."""
    adapter, stored = store(tmp_path / "adapter", denoiser, kind)
    assert sorted(file.name for file in stored.folder.iterdir()) == [LORA, MANIFEST]
    written = deltas(stored.adapter)
    assert all(torch.allclose(written[name], delta, rtol=0, atol=1e-6) for name, delta in deltas(adapter).items())
    assert torch.allclose(predict(denoiser, stored.adapter), predict(denoiser, adapter), rtol=0, atol=1e-5)


def test_a_weight_mask_round_trips_bit_exactly(denoiser: UNetDenoiser, tmp_path: Path) -> None:
    """Values and places, and no LoRA file that would only nearly be the adapter."""
    adapter, stored = store(tmp_path / "adapter", denoiser, "weight")
    assert sorted(file.name for file in stored.folder.iterdir()) == [MANIFEST, SPARSE]
    written = deltas(stored.adapter)
    assert written.keys() == adapter.updates.keys()
    assert all(torch.equal(written[name], delta) for name, delta in deltas(adapter).items())
    assert torch.allclose(predict(denoiser, stored.adapter), predict(denoiser, adapter), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["channel", "weight"])
def test_the_same_tensors_give_the_same_bytes(denoiser: UNetDenoiser, tmp_path: Path, kind: Any) -> None:
    """Whatever order the layers come in; and reading and writing again changes nothing."""
    adapter, stored = store(tmp_path / "a", denoiser, kind)
    turned = Adapter(dict(reversed(adapter.updates.items())))
    for name, again in (("b", turned), ("c", stored.adapter)):
        save_adapter(tmp_path / name, again, "unet", manifest_for(denoiser))
    files = [next((tmp_path / name).glob("*.safetensors")).read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]
    assert [load_adapter(tmp_path / name).sha256 for name in "bc"] == [stored.sha256] * 2


def test_the_manifest_says_what_the_folder_holds(folder: Path, denoiser: UNetDenoiser) -> None:
    """Size and digest of the weights, digest of the base, releases."""
    stored = load_adapter(folder)
    content = (folder / LORA).read_bytes()
    assert stored.manifest["files"] == {LORA: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}}
    assert stored.base_digest == denoiser.files.digest()
    assert stored.manifest["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("place", [0, 300, -1])
def test_one_changed_byte_is_found(folder: Path, place: int) -> None:
    """In the header or in the numbers; the message names the file and both digests."""
    content = bytearray((folder / LORA).read_bytes())
    content[place] ^= 1
    (folder / LORA).write_bytes(content)
    with pytest.raises(AdapterError, match=rf"{LORA} has sha256 [0-9a-f]+, {MANIFEST} says [0-9a-f]+"):
        load_adapter(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    """An interrupted download."""
    (folder / LORA).unlink()
    with pytest.raises(AdapterError, match=rf"{LORA} is missing"):
        load_adapter(folder)


def test_no_folder_and_no_manifest_are_told_apart(tmp_path: Path) -> None:
    """A typing error, or somebody else's folder."""
    with pytest.raises(AdapterError, match="there is no adapter directory"):
        load_adapter(tmp_path / "absent")
    with pytest.raises(AdapterError, match=f"has no {MANIFEST}"):
        load_adapter(tmp_path)


def test_a_folder_of_pickles_is_refused_unread(tmp_path: Path) -> None:
    """Unpickling runs code."""
    with (tmp_path / "pytorch_lora_weights.bin").open("wb") as file:
        pickle.dump(Exploding(tmp_path / "trace"), file)
    with pytest.raises(AdapterError, match=r"pytorch_lora_weights\.bin, a pickle, which is never read"):
        load_adapter(tmp_path)
    assert not (tmp_path / "trace").exists()


def test_a_pickle_named_safetensors_is_refused_unread(folder: Path) -> None:
    """Even with the right digest."""
    replace_weights(folder, pickle.dumps(Exploding(folder / "trace")))
    with pytest.raises(AdapterError, match="not a readable safetensors file"):
        load_adapter(folder)
    assert not (folder / "trace").exists()


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\xff" * 64])
def test_a_file_that_is_no_safetensors_is_refused(folder: Path, content: bytes) -> None:
    """Empty, no header, a header of absurd length; with the right digest."""
    replace_weights(folder, content)
    with pytest.raises(AdapterError, match="not a readable safetensors file"):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "holds no update"),
        ({"unet.a.lora_A.weight": torch.ones(2, 3)}, "no matching lora_B"),
        ({"unet.a.lora_A.weight": torch.ones(2, 3), "unet.a.lora_B.weight": torch.ones(3, 4)}, "no matching lora_B"),
        ({"unet.a.weight": torch.ones(2, 3)}, "no LoRA pairs"),
    ],
)
def test_tensors_that_are_no_lora_are_refused(folder: Path, tensors: dict[str, torch.Tensor], reason: str) -> None:
    """Rather than applied in part."""
    save_file(tensors, folder / "other.safetensors")
    replace_weights(folder, (folder / "other.safetensors").read_bytes())
    with pytest.raises(AdapterError, match=reason):
        load_adapter(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("a.indices"),
        lambda tensors: tensors.pop("a.values"),
        lambda tensors: tensors.update({"a.indices": torch.tensor([5, 6])}),
        lambda tensors: tensors.update({"a.indices": torch.tensor([-1, 0])}),
        lambda tensors: tensors.update({"a.values": torch.ones(3)}),
        lambda tensors: tensors.update({"a.shape": torch.tensor([6])}),
        lambda tensors: tensors.update({"a.shape": torch.tensor([-2, -3])}),
        lambda tensors: tensors.update({"a.shape": torch.tensor([46000, 46000])}),  # 7.9 GiB for 224 bytes
        lambda tensors: tensors.update({"a.shape": torch.tensor([2**40, 2**40])}),
        lambda tensors: tensors.update({"b.values": torch.ones(2)}),
    ],
)
def test_tensors_that_are_no_sparse_delta_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    """Parts missing, places outside the weight, lengths or shapes that do not fit."""
    tensors = {"a.indices": torch.tensor([0, 5]), "a.values": torch.ones(2), "a.shape": torch.tensor([2, 3])}
    write_sparse(folder, tensors)
    assert load_adapter(folder).adapter.updates["a"].delta().sum() == 2
    change(tensors)
    write_sparse(folder, tensors)
    with pytest.raises(AdapterError, match=SPARSE):
        load_adapter(folder)


def write_sparse(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Make a directory that of a weight mask with these tensors."""
    save_file(tensors, folder / SPARSE)
    digest = hashlib.sha256((folder / SPARSE).read_bytes()).hexdigest()
    edit_manifest(folder, lambda manifest: manifest.update(files={SPARSE: {"sha256": digest}}))


@pytest.mark.parametrize("schema", ["spare.adapter/2", None, 1])
def test_an_unknown_schema_is_refused(folder: Path, schema: object) -> None:
    """The message names what was found and what is read."""
    edit_manifest(folder, lambda manifest: manifest.update(schema=schema))
    with pytest.raises(AdapterError, match=rf"schema {schema!r}; this release reads 'spare\.adapter/1'"):
        load_adapter(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest["files"].clear(),
        lambda manifest: manifest["files"].update({"../../etc/passwd": {"sha256": "0"}}),
        lambda manifest: manifest.update(files={"other.safetensors": {"sha256": "0"}}),
        lambda manifest: manifest.pop("base"),
        lambda manifest: manifest.update(base={}),
        lambda manifest: manifest["files"][LORA].pop("sha256"),
        lambda manifest: manifest["files"].update({LORA: "0"}),
    ],
)
def test_a_manifest_that_lacks_something_is_refused(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Files elsewhere are never opened."""
    edit_manifest(folder, change)
    with pytest.raises(AdapterError, match=MANIFEST):
        load_adapter(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_no_json_object_is_refused(folder: Path, content: bytes) -> None:
    """Cut short, or something else."""
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(AdapterError, match=MANIFEST):
        load_adapter(folder)


def test_another_base_is_refused(folder: Path, denoiser: UNetDenoiser, sd2_dir: Path) -> None:
    """The message names the model and both digests; the right base passes."""
    stored, other = load_adapter(folder), load_tiny(sd2_dir).files
    check_base(stored, denoiser.files.digest(), "the base")
    with pytest.raises(ModelError, match=rf"{stored.base_digest[:12]}.*sd2.*{other.digest()[:12]}"):
        check_base(stored, other.digest(), str(sd2_dir))


def test_the_digest_of_a_base_is_of_its_weights_not_of_its_files(denoiser: UNetDenoiser, tmp_path: Path) -> None:
    """Split into other files in another folder it is the same; with one weight changed it is not."""
    shutil.copytree(denoiser.files.path, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "unet")
    unet = load_tiny(denoiser.files.path).weights
    unet.save_pretrained(tmp_path / "model" / "unet", max_shard_size="100KB")
    assert len(list((tmp_path / "model" / "unet").glob("*.safetensors"))) > 1
    assert load_tiny(tmp_path / "model").files.digest() == denoiser.files.digest()
    unet.conv_out.bias.data[0] += 1
    unet.save_pretrained(tmp_path / "model" / "unet", max_shard_size="100KB")
    assert load_tiny(tmp_path / "model").files.digest() != denoiser.files.digest()


def no_space(*_: object) -> None:
    """What a full disk says."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.write_bytes"])
def test_a_full_disk_leaves_nothing_behind(
    denoiser: UNetDenoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """No half adapter, no temporary file."""
    adapter = random_adapter(denoiser, "channel")
    monkeypatch.setattr(call, no_space)
    with pytest.raises(StorageError, match="No space left"):
        save_adapter(tmp_path / "adapter", adapter, "unet", manifest_for(denoiser))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_disk_that_fills_up_midway_leaves_no_adapter(
    denoiser: UNetDenoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights fit, ``spare.json`` did not: the folder is not taken for an adapter."""
    synced: list[int] = []

    def sync_once(descriptor: int) -> None:
        if synced:
            no_space()
        synced.append(descriptor)

    adapter = random_adapter(denoiser, "channel")
    monkeypatch.setattr(os, "fsync", sync_once)
    with pytest.raises(StorageError):
        save_adapter(tmp_path / "adapter", adapter, "unet", manifest_for(denoiser))
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == [LORA]
    with pytest.raises(AdapterError, match=f"has no {MANIFEST}"):
        load_adapter(tmp_path / "adapter")


def test_a_full_disk_leaves_the_earlier_adapter_as_it_was(
    folder: Path, denoiser: UNetDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All or nothing, for what is replaced too."""
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    other = random_adapter(denoiser, "channel", seed=5)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError):
        save_adapter(folder, other, "unet", manifest_for(denoiser))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    load_adapter(folder)
