"""The component that profiles when in the denoising a concept is decided."""

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def timesteps(
    order: str, examples: dsl.Input[dsl.Dataset], profile: dsl.Output[dsl.Artifact], plot: dsl.Output[dsl.HTML]
):
    """Profile at which timesteps the frozen model tells the concept from its surrogate.

    Saliency and training draw their timesteps from it.

    Args:
        order: what was asked for, as the validate task returns it
        examples: what the prepare task drew
        profile: the mean squared difference of the predictions in each bin of timesteps
        plot: the profile, and where training will look, as a picture
    """
    from pathlib import Path

    from spare_core.workflow import tasks

    facts = tasks.timesteps_task(order, Path(examples.path), Path(profile.path), Path(plot.path))
    profile.metadata.update(tasks.metadata(facts))
