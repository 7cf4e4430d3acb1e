"""What people wrote reaches the next task as they wrote it, whatever the platforms replace on the way.

The expanders are written anew from their descriptions: Kubernetes' of ``$(NAME)`` in a container's command, KFP's
launcher's and local runner's of ``{{$…}}``, Argo's of ``{{…}}``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from spare_core.cli.root import app
from spare_core.errors import InputError
from spare_core.store import open_store
from spare_core.workflow.travelling import EXPANDED, expansion_problems, receive, send

ENVIRONMENT = {"AWS_SECRET_ACCESS_KEY": "the secret", "HF_TOKEN": "another"}
SECRET = "neon $(AWS_SECRET_ACCESS_KEY)"


def kubernetes(text: str) -> str:
    """``$(NAME)`` is a variable, if there is one of that name; ``$$`` is ``$``."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)",
        lambda found: "$" if found[1] is None else ENVIRONMENT.get(found[1], found[0]),
        text,
    )


def kfp(text: str) -> str:
    """``{{$.pipeline_job_uuid}}`` and the like, wherever they stand in the executor's input."""
    for name, value in (("pipeline_job_uuid", "1234"), ("inputs.parameters['order']", "the order itself")):
        text = text.replace(f"{{{{$.{name}}}}}", value)
    return text


def argo(text: str) -> str:
    """``{{workflow.name}}``, and ``{{=expressions}}``."""
    return re.sub(r"\{\{=?[^}]*\}\}", "argo's", text)


def on_the_way(text: str) -> str:
    return argo(kfp(kubernetes(text)))


TEXTS = st.lists(
    st.sampled_from([*EXPANDED, "$", "(", ")", "{", "}", "AWS_SECRET_ACCESS_KEY", "workflow.name", "=", "$.", "é", " "])
    | st.text(max_size=5)
).map("".join)


@settings(max_examples=300)
@given(TEXTS)
@example(SECRET)
@example("{{$.inputs.parameters['order']}}")
@example("{{workflow.name}} $$ {{=sprig.env('HF_TOKEN')}}")
def test_a_text_that_travels_arrives(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    assert receive(store, on_the_way(send(store, text))) == text


@given(TEXTS)
@example(SECRET)
def test_a_parameter_that_is_let_pass_arrives_as_it_is(text: str) -> None:
    """Those of a run for one concept travel as KFP hands them on, so they are refused where that would change them."""
    if not expansion_problems({"erase": text}):
        assert on_the_way(text) == text


def test_the_expanders_of_this_test_expand() -> None:
    assert on_the_way(SECRET) == "neon the secret"
    assert on_the_way("a $$ {{$.pipeline_job_uuid}} {{workflow.name}}") == "a $ 1234 argo's"


def test_every_text_of_a_parameter_is_looked_at() -> None:
    asked = {
        "erase": SECRET, "keep": ["Rust", "a {{b"], "settings": {"seed": 1, "x": ["$$"]},
        "requests": [{"concept": "}}"}], "candidates": {"$(HF_TOKEN)": []}, "seeds": 3, "promote": True, "policy": "",
    }  # fmt: skip
    found = expansion_problems(asked)
    assert [problem.split()[0] for problem in found] == ["erase", "keep", "settings", "requests", "candidates"]
    assert all("would replace it on the way" in problem for problem in found)


@pytest.mark.parametrize("key", ["", "requests/x.json", "../../etc/passwd", f"requests/{'0' * 64}.json/..", "{}"])
def test_what_no_task_sent_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is nothing that a task sent"):
        receive(open_store(str(tmp_path)), key)


def test_what_is_gone_or_was_changed_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(InputError, match="it was removed, or this task has another store"):
        receive(store, f"requests/{'0' * 64}.json")
    key = send(store, "an order")
    (tmp_path / key).write_text("another")
    with pytest.raises(InputError, match="is not what was sent"):
        receive(store, key)


def test_nothing_is_submitted_that_a_cluster_would_expand() -> None:
    """Before anything is sent: the first task would see the secret in its place."""
    arguments = ["submit", "--endpoint", "http://127.0.0.1:9", "model=canvas", f"erase={SECRET}", "surrogate=Photo"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "erase holds '$(' in 'neon $(AWS_SECRET_ACCESS_KEY)'" in done.output
