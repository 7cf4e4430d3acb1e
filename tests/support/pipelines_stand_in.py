"""A small pipeline with a parameter of each type, compiled by the real compiler, in two documents or in one."""

# No "from __future__ import annotations": KFP's compiler reads the types themselves.
from pathlib import Path
from typing import Optional

from kfp import compiler, dsl, kubernetes


@dsl.component(base_image="example.org/spare:1", install_kfp_package=False)
def work(erase: str, steps: int, density: float, robust: bool, keep: list, options: dict):
    pass


@dsl.component(base_image="example.org/spare:1", install_kfp_package=False)
def record(status: dsl.PipelineTaskFinalStatus):
    pass


def compile_stand_in(file: Path, with_platform: bool = True) -> Path:
    """Compile the pipeline to ``file``; with what it asks of Kubernetes in a second document, if it asks anything."""

    @dsl.pipeline(name="stand-in")
    def stand_in(
        erase: str,
        steps: int = 20,
        density: float = 0.25,
        robust: bool = False,
        keep: list = ["Photo"],  # noqa: B006
        options: dict = {},  # noqa: B006
        note: Optional[str] = None,  # noqa: UP045
    ):
        """Stand in.

        Args:
            erase: the concept to erase
            steps: most steps
        """
        with dsl.ExitHandler(record()):
            task = work(erase=erase, steps=steps, density=density, robust=robust, keep=keep, options=options)
            if with_platform:
                kubernetes.use_secret_as_env(task, secret_name="s3", secret_key_to_env={"key": "AWS_ACCESS_KEY_ID"})

    compiler.Compiler().compile(stand_in, str(file))
    return file
