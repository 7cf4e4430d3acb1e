"""The commands that ``spare run`` prints can be pasted into a shell, whatever the concept is called."""

from __future__ import annotations

import shlex

import pytest

from spare_core.cli.pipeline import further


@pytest.mark.parametrize("prompt", ["A Cat image in Neon Lines style.", 'it\'s "$(touch x)" `id` \\ ünï'])
def test_a_prompt_is_text_in_the_printed_command(prompt: str) -> None:
    ui, draw = further("sqlite:////tmp/with space/mlflow.db", "models:/spare.canvas.x@champion", prompt)
    assert shlex.split(ui)[-1] == "sqlite:////tmp/with space/mlflow.db"
    variable, python, flag, code = shlex.split(draw)
    assert variable == "MLFLOW_TRACKING_URI=sqlite:////tmp/with space/mlflow.db"
    assert (python.rpartition("/")[2][:6], flag) == ("python", "-c")
    assert repr(prompt) in code
    compile(code, "printed", "exec")


def test_a_server_is_named_by_its_address() -> None:
    pages, _ = further("http://mlflow:5000", "models:/spare.canvas.x@candidate", "x")
    assert pages.strip() == "http://mlflow:5000"
