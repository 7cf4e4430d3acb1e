"""A trajectory is what diffusers' own sampler would have passed, with every answer kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spare_core.errors import TrainingError
from spare_core.method import trajectories
from spare_core.method.trajectories import Query, jittered_timesteps, kept_steps, path_timesteps, sample_trajectories
from spare_core.models.conditioning import Conditioning
from spare_core.models.loading import load_denoiser
from spare_core.models.unet import UNetDenoiser
from tests.support.toy import CONCEPT, EMBEDDINGS, KEPT, NULL_ROW, SURROGATE, ToyDenoiser

TABLE = Conditioning(EMBEDDINGS[:, None, :])


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("kind", "guidance"), [("sd1_dir", 3.0), ("sd2_dir", 3.0), ("sdxl_dir", 3.0), ("sd1_dir", 0.0)]
)
def test_it_ends_where_diffusers_sampler_ends(
    kind: str, guidance: float, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the scheduler's own timesteps, under the same guidance, from the same noise; extra prompts or not."""
    folder: Path = request.getfixturevalue(kind)
    denoiser = load_denoiser(str(folder), "cpu", "float32")
    prompts = ["a cat in Neon", "a cat in Photo", ""]
    seeds, steps = [3, 4], 4
    noise = [torch.randn(1, *denoiser.latent_shape(), generator=seeded(seed)) for seed in seeds]
    expected = denoiser.generate(prompts[:2], seeds, steps, guidance)
    denoiser.scheduler.set_timesteps(steps)
    monkeypatch.setattr(trajectories, "path_timesteps", lambda count, *_: denoiser.scheduler.timesteps.repeat(count, 1))
    monkeypatch.setattr(trajectories.torch, "randn", lambda *_, **__: torch.cat(noise))
    asked = [Query((0, 1, 2), driver=0, empty=2), Query((1, 2), driver=0, empty=1)]
    found = sample_trajectories(denoiser, denoiser.encode_prompts(prompts), asked, steps, guidance, seeded())
    torch.testing.assert_close(torch.stack([one.latents for one in found]), expected, rtol=1e-3, atol=1e-4)


def predicted(denoiser: ToyDenoiser, noisy: Tensor, timesteps: Tensor, row: int) -> Tensor:
    return denoiser.predict(noisy, timesteps, Conditioning(EMBEDDINGS[[row] * len(noisy)][:, None]))


def test_every_answer_is_kept_at_its_step_and_under_its_prompt() -> None:
    denoiser = ToyDenoiser(timed=True)
    asked = [Query((CONCEPT, SURROGATE, NULL_ROW), 1, 2), Query((KEPT, NULL_ROW), 0, 1)]
    for one in sample_trajectories(denoiser, TABLE, asked, 5, 2.0, seeded()):
        assert (one.timesteps.diff() < 0).all()
        for place, row in enumerate(one.query.rows):
            torch.testing.assert_close(one.predictions[:, place], predicted(denoiser, one.noisy, one.timesteps, row))
        guided = one.predictions[:, one.query.empty] * -1.0 + one.predictions[:, one.query.driver] * 2.0
        steps = denoiser.denoise(one.noisy, guided, one.timesteps, torch.cat([one.timesteps[1:], torch.tensor([-1])]))
        torch.testing.assert_close(torch.cat([one.noisy[1:], one.latents[None]]), steps)


def test_how_many_are_asked_at_once_changes_nothing() -> None:
    asked = [Query((CONCEPT, SURROGATE, NULL_ROW), i % 2, 2) for i in range(4)] + [Query((KEPT, NULL_ROW), 0, 1)] * 3
    runs = []
    for rows in (1, 4, 64):
        denoiser = ToyDenoiser(timed=True, rows_at_once=rows)
        runs.append(sample_trajectories(denoiser, TABLE, asked, 3, 2.0, seeded()))
        assert max(len(call.noisy) for call in denoiser.calls) <= max(3, rows), "a whole query, and none is split"
    for one in runs[:2]:
        for mine, whole in zip(one, runs[2], strict=True):
            torch.testing.assert_close(mine.predictions, whole.predictions)
            torch.testing.assert_close(mine.latents, whole.latents)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(12, 1000), st.integers(0, 2**31))
@settings(deadline=None)
def test_a_trajectory_passes_each_part_of_the_schedule_once(count: int, steps: int, total: int, seed: int) -> None:
    timesteps = jittered_timesteps(count, steps, total, seeded(seed))
    assert timesteps.shape == (count, steps)
    lower = (torch.arange(steps - 1, -1, -1) * total / steps).floor()
    assert ((timesteps >= lower) & (timesteps <= lower + total / steps + 1) & (timesteps < total)).all()
    assert steps == 1 or (timesteps.diff(dim=1) <= 0).all()


@given(st.integers(1, 40), st.integers(1, 12), st.integers(12, 1000), st.integers(0, 2**31))
@settings(deadline=None)
def test_every_path_begins_where_samplers_begin(count: int, steps: int, total: int, seed: int) -> None:
    timesteps = path_timesteps(count, steps, total, seeded(seed))
    assert timesteps.shape == (count, steps)
    assert (timesteps[:, 0] == total - 1).all()
    assert (timesteps >= 0).all()
    assert steps == 1 or (timesteps.diff(dim=1) <= 0).all()
    assert (timesteps[:, 1:] < total - 1).all()


@given(st.integers(1, 20), st.integers(1, 12), st.data())
def test_together_the_kept_states_cover_the_path(count: int, steps: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, steps))
    chosen = kept_steps(count, steps, kept)
    assert (chosen.sum(dim=1) == kept).all()
    assert (chosen[: count // 2 * 2 : 2] == chosen[1::2]).all()
    if count >= 2 * steps:
        assert chosen[::2].any(dim=0).all()


def test_what_is_kept_is_what_was_passed_and_only_there_all_is_asked() -> None:
    asked = [Query((CONCEPT, SURROGATE, NULL_ROW), i % 2, 2) for i in range(4)]
    whole, half = (ToyDenoiser(timed=True) for _ in range(2))
    every = sample_trajectories(whole, TABLE, asked, 4, 2.0, seeded())
    some = sample_trajectories(half, TABLE, asked, 4, 2.0, seeded(), kept=2)
    for i, (full, part) in enumerate(zip(every, some, strict=True)):
        steps = [i // 2, i // 2 + 2]
        assert part.timesteps.tolist() == full.timesteps[steps].tolist()
        torch.testing.assert_close(part.noisy, full.noisy[steps])
        torch.testing.assert_close(part.predictions, full.predictions[steps])
        torch.testing.assert_close(part.latents, full.latents)
    assert sum(len(call.noisy) for call in whole.calls) == 4 * 4 * 3
    assert sum(len(call.noisy) for call in half.calls) == 4 * (4 * 2 + 2)


def test_without_guidance_the_empty_prompt_is_asked_only_where_all_is() -> None:
    toy = ToyDenoiser(timed=True)
    asked = [Query((CONCEPT, SURROGATE, NULL_ROW), i % 2, 2) for i in range(4)]
    sample_trajectories(toy, TABLE, asked, 4, 1.0, seeded(), kept=2)
    assert sum(len(call.noisy) for call in toy.calls) == 4 * (3 * 2 + 2)


class _Short(ToyDenoiser):
    """A toy on a device with room for so many rows."""

    room = 2

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if len(noisy) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().predict(noisy, timesteps, conditioning)


def test_where_the_memory_is_too_small_fewer_are_asked_at_once_and_it_says_so() -> None:
    asked = [Query((CONCEPT, SURROGATE, NULL_ROW), i % 2, 2) for i in range(3)]
    expected = sample_trajectories(ToyDenoiser(timed=True), TABLE, asked, 2, 2.0, seeded())
    short = _Short(timed=True)
    with pytest.warns(UserWarning, match="9 predictions at once do not fit into the memory; 4 are tried"):
        found = sample_trajectories(short, TABLE, asked, 2, 2.0, seeded())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.predictions, other.predictions)
    short.room = 0
    with pytest.warns(UserWarning), pytest.raises(torch.OutOfMemoryError):
        sample_trajectories(short, TABLE, asked, 2, 2.0, seeded())


def test_answers_that_are_not_finite_stop_the_sampling() -> None:
    with pytest.raises(TrainingError, match=r"not finite .*--dtype float32"):
        sample_trajectories(
            ToyDenoiser(),
            Conditioning(EMBEDDINGS[:, None] * torch.inf),
            [Query((KEPT, NULL_ROW), 0, 1)],
            2,
            2.0,
            seeded(),
        )


def test_noise_is_what_makes_the_noisy_latents(denoiser: UNetDenoiser) -> None:
    latents, noise = (torch.randn(5, *denoiser.latent_shape(), generator=seeded(i)) for i in (1, 2))
    timesteps = torch.tensor([1, 100, 400, 800, 999])
    noisy = denoiser.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(denoiser.noise_in(noisy, latents, timesteps), noise, rtol=1e-3, atol=1e-3)
