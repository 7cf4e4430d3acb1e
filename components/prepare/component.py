"""The component that draws the training examples."""

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare(order: str, examples: dsl.Output[dsl.Dataset]):
    """Draw the latents and encode the prompts that all later stages work on.

    Both sides of the training, forget and retain, and what only measures. Without pictures given, the base model draws
    them from the prompts alone.

    Args:
        order: what was asked for, as the validate task returns it
        examples: latents and prompt embeddings, as safetensors
    """
    from pathlib import Path

    from spare_core import workflow

    examples.metadata.update(workflow.metadata(workflow.prepare(order, Path(examples.path))))
