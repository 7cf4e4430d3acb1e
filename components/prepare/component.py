"""The component that draws the training examples."""

from kfp import dsl

from pipelines.platform import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare(order: str, examples: dsl.Output[dsl.Dataset]):
    """Let the base model draw what all later stages work on, and keep its every prediction on the way.

    Both sides of the training, forget and retain, and what only measures. Pictures that are given take the place of
    those drawn under the concept.

    Args:
        order: what was asked for, as the validate task returns it
        examples: noisy latents, the base model's predictions on them, and prompt embeddings, as safetensors
    """
    from pathlib import Path

    from spare_core.workflow import tasks

    examples.metadata.update(tasks.metadata(tasks.prepare_task(order, Path(examples.path))))
