"""A judge says what it sees in the suite's own order, and one that cannot know is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from spare_core.canvas.judge import GridJudge
from spare_core.canvas.protocol import CANVAS, OBJECTS, STYLES
from spare_core.errors import ImagesError, ModelError, SettingsError
from spare_core.evaluation.judgement import OTHER, Judgement, recognise
from spare_core.evaluation.judges import load_judge
from spare_core.evaluation.reference import load_reference
from spare_core.evaluation.suite import Suite, load_suite
from tests.support.grids import ACCURACY, FEATURES, canvas_judge, small_suite, write_judge
from tests.tiny import _tokenizer

PIXELS = torch.rand(5, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def check(judged: Judgement, suite: Suite, size: int) -> None:
    """Shapes and ranges that hold for every judge."""
    for side, names in ((judged.objects, suite.objects), (judged.styles, suite.styles)):
        assert side.probabilities.shape == (5, len(names))
        assert (side.probabilities >= 0).all()
        assert (side.probabilities.sum(dim=1) <= 1 + 1e-5).all()
        assert ((side.predicted >= OTHER) & (side.predicted < len(names))).all()
    assert judged.features.shape == (5, size)
    assert judged.features.dtype == torch.float32


def test_the_label_with_the_most_probability_is_named() -> None:
    """Also when it is none of the suite's."""
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 5.0], [0.0, 5.0, 0.0]])
    seen = recognise(logits, [2, 0])
    assert seen.predicted.tolist() == [1, 0, OTHER]
    assert torch.allclose(seen.probabilities, logits.softmax(dim=1)[:, [2, 0]])


def test_canvas_judges_what_its_network_says(tmp_path: Path) -> None:
    suite = load_suite("canvas")
    judge = GridJudge(CANVAS, suite, torch.device("cpu"), write_judge(tmp_path))
    judged = judge.judge(PIXELS)
    check(judged, suite, FEATURES)
    assert torch.allclose(judged.styles.probabilities.sum(dim=1), torch.ones(5))
    assert judge.accuracy == ACCURACY
    assert judge.digest == hashlib.sha256((tmp_path / "judge.safetensors").read_bytes()).hexdigest()
    assert judge.reference is not None
    assert len(judge.reference.features) == 20 * 12 * 8


def test_a_suite_in_another_order_gets_the_same_verdicts_under_its_own_rows(tmp_path: Path) -> None:
    """The reference too."""
    whole = load_suite("canvas")
    suite = small_suite(styles=("Rust", "neon_lines"), objects=("Tower", "Cat", "Apple"))
    everything, part = (canvas_judge(tmp_path, one) for one in (whole, suite))
    all_seen, seen = everything.judge(PIXELS), part.judge(PIXELS)
    rust = STYLES.index("Rust")
    assert torch.allclose(seen.styles.probabilities[:, 0], all_seen.styles.probabilities[:, rust], rtol=0, atol=1e-6)
    for row in range(5):
        named = all_seen.styles.predicted[row]
        assert seen.styles.predicted[row] == {rust: 0, STYLES.index("Neon Lines"): 1}.get(int(named), OTHER)
    assert part.reference is not None
    assert everything.reference is not None
    shown = (everything.reference.objects == list(OBJECTS).index("Cat")) & (everything.reference.styles == rust)
    mine = (part.reference.objects == 1) & (part.reference.styles == 0)
    assert torch.equal(part.reference.features[mine], everything.reference.features[shown])


def test_the_same_weights_have_the_same_digest(tmp_path: Path) -> None:
    suite = small_suite()
    digests = [canvas_judge(tmp_path / name, suite, seed).digest for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert digests[0] == digests[1] != digests[2]


def test_concepts_that_a_judge_does_not_know_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'Cubism', 'Fauvism'"):
        canvas_judge(tmp_path, small_suite(styles=("Rust", "Cubism", "Fauvism")))


def test_a_damaged_or_missing_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="make canvas"):
        GridJudge(CANVAS, small_suite(), torch.device("cpu"), tmp_path / "nowhere")
    weights = load_file(write_judge(tmp_path) / "judge.safetensors")
    weights.popitem()
    save_file(weights, tmp_path / "judge.safetensors")
    with pytest.raises(ModelError, match="no judge of Canvas"):
        GridJudge(CANVAS, small_suite(), torch.device("cpu"), tmp_path)


def test_statistics_of_another_judge_are_refused(tmp_path: Path) -> None:
    reference = load_file(write_judge(tmp_path) / "reference.safetensors")
    save_file({**reference, "features": reference["features"][:, :3].contiguous()}, tmp_path / "reference.safetensors")
    with pytest.raises(ModelError, match="no judge of Canvas"):
        GridJudge(CANVAS, small_suite(), torch.device("cpu"), tmp_path)


def test_a_suite_without_a_judge_says_how_to_give_one() -> None:
    with pytest.raises(SettingsError, match="extends: unlearncanvas"):
        load_judge(load_suite("unlearncanvas"))


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny transformer for styles, with one label more than the suite, and a tiny convolutional one for objects."""
    from transformers import (
        ConvNextImageProcessor,
        ResNetConfig,
        ResNetForImageClassification,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
    )

    folder = tmp_path_factory.mktemp("classifiers")
    torch.manual_seed(4)
    styles = dict(enumerate(["rust", "Seed_Images", "Neon_Lines", "photo"]))
    vit = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32,
                    patch_size=8, id2label=styles, label2id={name: row for row, name in styles.items()})  # fmt: skip
    ViTForImageClassification(vit).save_pretrained(folder / "styles")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "styles")
    objects = dict(enumerate(["Dog", "Tower", "Cat"]))
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic",
                          id2label=objects, label2id={name: row for row, name in objects.items()})  # fmt: skip
    ResNetForImageClassification(resnet).save_pretrained(folder / "objects")
    ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder / "objects")
    return {"styles": folder / "styles", "objects": folder / "objects"}


def test_classifiers_judge_one_domain_each(classifiers: dict[str, Path]) -> None:
    """Labels are matched whatever their case; Seed_Images keeps its share of the probability."""
    suite = small_suite(judge={"type": "classifier", **classifiers})
    judge = load_judge(suite)
    judged = judge.judge(PIXELS)
    check(judged, suite, 16 + 12)
    assert torch.allclose(judged.objects.probabilities.sum(dim=1), torch.ones(5))
    assert (judged.styles.probabilities.sum(dim=1) < 1).all()
    assert len(judge.digest) == 64


def test_a_classifier_lacking_a_label_is_refused(classifiers: dict[str, Path]) -> None:
    suite = small_suite(styles=("Rust", "Cubism"), judge={"type": "classifier", **classifiers})
    with pytest.raises(SettingsError, match=r"'Cubism'.*Seed_Images"):
        load_judge(suite)


def test_pickled_weights_are_never_read(classifiers: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((classifiers["styles"] / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    suite = small_suite(judge={"type": "classifier", "styles": tmp_path, "objects": classifiers["objects"]})
    with pytest.raises(ModelError, match="a pickle"):
        load_judge(suite)


def test_weights_that_would_be_left_random_are_refused(classifiers: dict[str, Path], tmp_path: Path) -> None:
    for file in classifiers["styles"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    suite = small_suite(judge={"type": "classifier", "styles": tmp_path, "objects": classifiers["objects"]})
    with pytest.raises(ModelError, match=r"classifier\.weight"):
        load_judge(suite)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = _tokenizer(folder)
    torch.manual_seed(5)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shape, "vocab_size": len(tokenizer), "max_position_embeddings": 77, "bos_token_id": len(tokenizer) - 2,
            "eos_token_id": len(tokenizer) - 1, "pad_token_id": len(tokenizer) - 1}  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config={**shape, "image_size": 32, "patch_size": 8}, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_clip_judges_by_the_suites_own_captions(clip: Path) -> None:
    """Probabilities are over the suite's concepts alone, so another template gives other ones."""
    suite = small_suite(judge={"type": "clip", "model": clip})
    judged = load_judge(suite).judge(PIXELS)
    check(judged, suite, 12)
    for side in (judged.objects, judged.styles):
        assert torch.allclose(side.probabilities.sum(dim=1), torch.ones(5))
    another = small_suite(judge={"type": "clip", "model": clip}, template="{style} {object}")
    assert not torch.equal(load_judge(another).judge(PIXELS).styles.probabilities, judged.styles.probabilities)


def test_clips_features_and_verdicts_are_those_of_the_whole_model(clip: Path) -> None:
    """With one caption a concept there is nothing to average over."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    suite = small_suite(judge={"type": "clip", "model": clip})
    judge = load_judge(suite)
    judge._styles = judge._embed([f"{name} style" for name in suite.styles], AutoTokenizer.from_pretrained(clip))  # type: ignore[attr-defined]
    judged = judge.judge(PIXELS)
    tokens = AutoTokenizer.from_pretrained(clip)(
        [f"{name} style" for name in suite.styles], padding=True, return_tensors="pt"
    )
    pictures = [Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy()) for pixels in PIXELS]
    with torch.no_grad():
        inputs = CLIPImageProcessor.from_pretrained(clip)(images=pictures, return_tensors="pt")
        whole = CLIPModel.from_pretrained(clip)(**tokens, **inputs)
    assert torch.allclose(torch.nn.functional.normalize(judged.features, dim=1), whole.image_embeds, atol=1e-5)
    assert torch.allclose(judged.styles.probabilities, whole.logits_per_image.softmax(dim=1), atol=1e-5)


def test_a_classifier_is_no_clip(classifiers: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="lacks"):
        load_judge(small_suite(judge={"type": "clip", "model": classifiers["styles"]}))


def write_pictures(folder: Path, per_cell: int) -> None:
    """Noise in the layout of UnlearnCanvas's data set."""
    for style in ("Neon_Lines", "Photo"):
        for obj in ("Cat", "Dog"):
            (folder / style / obj).mkdir(parents=True)
            for number in range(1, per_cell + 1):
                pixels = (torch.rand(9, 9, 3) * 255).byte().numpy()
                Image.fromarray(pixels).save(folder / style / obj / f"{number}.png")


def test_a_folder_of_real_pictures_gives_the_reference_and_the_judges_accuracy(tmp_path: Path) -> None:
    """As many of each cell as the suite has seeds, by number."""
    write_pictures(tmp_path / "pictures", per_cell=11)
    suite = small_suite(reference=tmp_path / "pictures")
    judge = canvas_judge(tmp_path / "judge", suite)
    seen: list[Tensor] = []
    original = judge.judge
    judge.judge = lambda pixels: seen.append(pixels) or original(pixels)  # type: ignore[method-assign, func-returns-value]
    reference, accuracy = load_reference(suite, judge)
    assert reference is not None
    assert reference.features.shape == (2 * 2 * 2, FEATURES)
    assert reference.styles.tolist() == [0] * 4 + [1] * 4
    assert reference.objects.tolist() == [0, 0, 1, 1] * 2
    assert accuracy is not None
    assert set(accuracy) == {"renderings", "reference"}
    with Image.open(tmp_path / "pictures" / "Neon_Lines" / "Cat" / "2.png") as second:
        mean = torch.tensor(list(second.getdata()), dtype=torch.float32).mean() / 255
    assert seen[0][1].mean() == pytest.approx(float(mean), abs=0.02)


def test_a_reference_folder_without_the_suites_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    suite = small_suite(reference=tmp_path / "pictures")
    with pytest.raises(ImagesError, match="STYLE/OBJECT"):
        load_reference(suite, canvas_judge(tmp_path / "judge", suite))


def test_a_reference_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", per_cell=1)
    bad = tmp_path / "pictures" / "Photo" / "Cat" / "1.png"
    bad.write_bytes(b"no picture")
    suite = small_suite(reference=tmp_path / "pictures")
    with pytest.raises(ImagesError, match=r"1\.png"):
        load_reference(suite, canvas_judge(tmp_path / "judge", suite))
