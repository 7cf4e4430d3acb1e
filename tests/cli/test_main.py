"""The command line: exit codes, one clear line for bad input, JSON alone on stdout, nothing left behind."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from spare_core.cli.root import app
from spare_core.method.settings import EraseSettings
from tests.support import forking
from tests.tiny import PIXELS

SMALL = ["--steps", "2", "--rank", "2", "--dtype", "float32", "--device", "cpu"]
CONFIG = """{failed_above: 100.0, examples: 2, retain_examples: 2, heldout: 2, example_steps: 1, batch_size: 1,
bins: 2, lr: 1e-3}"""


def spare(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command, in a process of its own."""
    return forking.run([sys.executable, "-m", "spare_core.cli", *map(str, arguments)], cwd)


@pytest.fixture(scope="module")
def adapter(sd1_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "settings.yaml").write_text(CONFIG)
    done = spare(
        "erase", sd1_dir, "--erase", "Neon", "--surrogate", "Photo", "--kind", "style", "--config",
        folder / "settings.yaml", *SMALL, "--output", folder / "adapter", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["settings"]["lr"] == 0.001
    assert manifest["settings"]["rank"] == 2
    assert json.loads((folder / "adapter" / "spare.json").read_text()) == manifest
    return folder / "adapter"


def test_help_is_there_for_each_command() -> None:
    for command in ("erase", "evaluate", "generate", "export", "verify"):
        done = spare(command, "--help")
        assert done.returncode == 0
        assert "--json" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "endless"], "budget is 'endless'; allowed: quick, standard, paper"),
        (["--attack", "magic"], "attack is magic; allowed: paraphrase, prompt, pictures"),
        (["--erased", "Dog"], "'Dog' is not erased there, but Neon"),
        ([], "suite 'unlearncanvas' has no style 'Neon'"),
    ],
)
def test_an_attack_that_cannot_be_is_refused_before_a_model_is_loaded(
    options: list[str], message: str, adapter: Path, sd1_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    # Not the function that loads: whoever is first imported meanwhile would keep what is in its place.
    monkeypatch.setattr("spare_core.models.unet.UNetDenoiser.__init__", never)
    asked = ["attack", sd1_dir, "--suite", "unlearncanvas", "--adapter", adapter, "--output", tmp_path / "out"]
    done = CliRunner().invoke(app, [*map(str, asked), *options])
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "out").exists()


def test_verify_says_that_the_adapter_comes_off(adapter: Path, sd1_dir: Path) -> None:
    done = spare("verify", adapter, "--model", sd1_dir, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reversible"] is True


def test_generate_writes_a_picture_for_each_prompt(adapter: Path, sd1_dir: Path, tmp_path: Path) -> None:
    done = spare(
        "generate", sd1_dir, "--adapter", adapter, "--prompt", "a cat", "--prompt", "../a;b", "--steps", "1",
        "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = [Path(row["file"]) for row in json.loads(done.stdout)["pictures"]]
    assert [file.name for file in files] == ["0000-seed0.png", "0001-seed0.png"]
    assert all(Image.open(file).size == (PIXELS, PIXELS) for file in files)


def test_export_writes_a_kohya_file(adapter: Path, tmp_path: Path) -> None:
    done = spare("export", adapter, "--format", "kohya", "--output", tmp_path / "lora.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["relative_error"] is None
    assert (tmp_path / "lora.safetensors").exists()


def _erase(model: object, output: Path, **changes: object) -> list[object]:
    options = {"erase": "Neon", "surrogate": "Photo", "kind": "style", **changes}
    return ["erase", model, *(part for name, value in options.items() for part in (f"--{name}", value)),
            "--output", output]  # fmt: skip


def test_bad_input_is_one_clear_line_exit_2_and_nothing_left(
    adapter: Path, sd1_dir: Path, sd2_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pickles = tmp_path / "pickles"
    (pickles / "unet").mkdir(parents=True)
    (pickles / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (pickles / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    cases = [
        (_erase(tmp_path / "no-such-model", out), "there is no model"),
        (_erase(tmp_path, out), "not a diffusers pipeline"),
        (_erase(pickles, out), "a pickle; only safetensors are read"),
        (_erase(sd1_dir, out, surrogate="neon "), "is the concept itself"),
        (_erase(sd1_dir, out, keep="NEON"), "both to be erased and to be kept"),
        (_erase(sd1_dir, out, erase="  "), "the concept is empty"),
        (_erase(sd1_dir, out, erase="a\x1b[31m"), "control or invisible character U+001B"),
        (_erase(sd1_dir, out, erase="very " * 50), "tokens long"),
        (_erase(sd1_dir, out, density=0), "density is 0.0; allowed: (0, 1]"),
        (_erase(sd1_dir, out, rank=999), "rank is 999"),
        (_erase(sd1_dir, out, kind="colour"), "kind"),
        (_erase(sd1_dir, out, config=tmp_path / "none.yaml"), "cannot read"),
        (_erase(sd1_dir, out, images=tmp_path), "holds no images"),
        (["erase", sd1_dir, "--output", out], "nothing to erase; give --erase and --surrogate, or --requests"),
        ([*_erase(sd1_dir, out), "--erase", "Rust"], "2 concepts and 1 surrogates are given"),
        ([*_erase(sd1_dir, out, surrogate="Rust"), "--erase", "Rust", "--surrogate", "neon"], "circle: Neon -> Rust"),
        ([*_erase(sd1_dir, out, keep="Rust"), "--erase", "Rust", "--surrogate", "Ink"], "request 2: 'Rust' is both"),
        (_erase(sd1_dir, out, requests=tmp_path / "none.yaml"), "--requests says it all"),
        (["erase", sd1_dir, "--requests", tmp_path / "none.yaml", "--output", out], "cannot read"),
        (["verify", tmp_path], "not an adapter of ours"),
        (["verify", adapter, "--model", sd2_dir], "was trained for the base model"),
        (["generate", sd2_dir, "--adapter", adapter, "--prompt", "x", "--output", out], "was trained for the base"),
        (["evaluate", "canvas", "--adapter", adapter, "--erased", "Rust", "--kind", "style", "--output", out],
         "was trained for the base"),
        (["export", adapter, "--format", "onnx", "--output", out], "onnx"),
    ]  # fmt: skip
    for arguments, message in cases:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])  # in process: 20 starts cost a minute
        assert done.exit_code == 2, (arguments, done.output)
        assert message in done.stderr, (arguments, done.stderr)
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stdout == ""
        assert not out.exists()


def test_every_problem_of_a_request_is_told_at_once_and_a_missing_model_first(tmp_path: Path) -> None:
    command = ["erase", str(tmp_path / "nowhere"), "--erase", "Cat", "--surrogate", "Dog", "--rank", "0"]
    done = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "out")])
    assert done.exit_code == 2
    places = [done.stderr.index(part) for part in ("there is no model", "rank is 0", "--kind style, object, person")]
    assert places == sorted(places)


def test_several_names_in_one_are_asked_about_before_any_work(sd1_dir: Path, tmp_path: Path) -> None:
    """The rank stops this one before it costs anything."""
    command = _erase(sd1_dir, tmp_path / "out", erase="Neon Lines, Rust", rank=999)
    done = CliRunner().invoke(app, [str(argument) for argument in command])
    assert done.stderr.startswith("look again: 'Neon Lines, Rust' is taken as one name; if it is 'Neon Lines', 'Rust',")


def test_the_version_is_the_installed_one() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"spare {importlib.metadata.version('spare-unlearning')}\n"


def test_help_tells_the_default_of_every_setting() -> None:
    told = " ".join(CliRunner().invoke(app, ["erase", "--help"], env={"COLUMNS": "300"}).stdout.split())
    for name in ("mask", "density", "rank", "steps", "lr", "timesteps", "seed", "dtype", "device"):
        option = told[told.index(f" --{name} ") :]
        assert option.partition("[default: (")[2].startswith(f"{getattr(EraseSettings(), name)})"), name


def test_any_setting_can_be_set(sd1_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(CONFIG)
    more = ["--method", "paper", "--set", "gamma=2", "--set", "saliency_batches=1", "--set", "contrast=true"]
    done = spare(*_erase(sd1_dir, tmp_path / "out", config=tmp_path / "settings.yaml"), *SMALL, *more, "--json")
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    expected = {
        "gamma": 2.0,
        "saliency_batches": 1,
        "contrast": True,
        "closed_form": False,
        "mask": "channel",
        "steps": 2,
    }
    assert expected.items() <= settings.items()
    for wrong, message in (
        ("gamma", "is no NAME=VALUE"), ("gama=2", "unknown setting 'gama'"), ("gamma=[", "is no value"),
        ("gamma=-1", "gamma is -1"),
    ):  # fmt: skip
        refused = spare(*_erase(sd1_dir, tmp_path / "no"), "--set", wrong)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr


def test_a_list_becomes_one_adapter(sd1_dir: Path, tmp_path: Path) -> None:
    """Of styles and objects, each row with what it needs."""
    (tmp_path / "settings.yaml").write_text(CONFIG)
    rows = [
        {"concept": "Neon", "surrogate": "Rust", "kind": "style"},
        {"concept": "cat", "surrogate": "dog", "kind": "object"},
    ]
    (tmp_path / "requests.yaml").write_text(json.dumps(rows))
    arguments = ["--requests", tmp_path / "requests.yaml", "--config", tmp_path / "settings.yaml", *SMALL]
    command = ["erase", sd1_dir, *arguments, "--output", tmp_path / "out"]
    done = CliRunner().invoke(app, [str(argument) for argument in command])
    assert done.exit_code == 0, done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert first.startswith("Neon -> Rust: residual ") and second.startswith("cat -> dog: residual ")
    manifest = json.loads((tmp_path / "out" / "spare.json").read_text())
    assert [one["concept"] for one in manifest["requests"]] == ["Neon", "cat"]
    assert set(manifest["residuals"]) == {"Neon", "cat"}


def test_concepts_are_data_everywhere(sd1_dir: Path, tmp_path: Path) -> None:
    """Shell, path and template characters in a concept reach the manifest as they are, and nothing else."""
    (tmp_path / "settings.yaml").write_text(CONFIG)
    concept = '"; touch pwned; ../../x {{inputs}} {context} $(id)'
    done = spare(*_erase(sd1_dir, tmp_path / "out", erase=concept, config=tmp_path / "settings.yaml"), *SMALL,
                 "--template", "a {concept}", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0 or "tokens long" in done.stderr, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) in (["out", "settings.yaml"], ["settings.yaml"])
    if done.returncode == 0:
        assert json.loads((tmp_path / "out" / "spare.json").read_text())["concept"] == concept
