"""YAML that means one thing: the one reader of settings, requests, policies, suites, lists and values given by hand.

As in YAML 1.2 a style called "On", "No" or "1:30" is a text and ``1e-4`` a number; "007" stays a text too. Of a name
that is given twice the first value would be dropped without a word, and aliases (``*name``) can blow a small file up:
both are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml
from yaml.events import AliasEvent

_WORDS: Final = (("null", r"~|null|Null|NULL|", "~nN\0"), ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"))
_NUMBERS: Final = (
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     "-+0123456789."),
)  # fmt: skip


class Texts(yaml.CSafeLoader):
    """Every scalar is a text but true, false and null: a concept called 1984 stays one."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 yaml's own way: add_implicit_resolver fills it


class Values(Texts):
    """Numbers too."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


for _loader, _kinds in ((Texts, _WORDS), (Values, (*_WORDS, *_NUMBERS))):
    for _tag, _pattern, _first in _kinds:
        _beginnings = ["" if letter == "\0" else letter for letter in _first]
        _loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _beginnings)


def _float(loader: Any, node: yaml.ScalarNode) -> float:
    return float(str(node.value).lower().replace(".inf", "inf").replace(".nan", "nan"))


Values.add_constructor("tag:yaml.org,2002:float", _float)


def read_yaml_text(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        ValueError: in one line, for what is none, names something twice, or uses aliases.
    """
    loader = Values(text)
    try:
        check_aliases(text)
        root = loader.get_single_node()
        twice = next(repeated(root), "")
        if twice:
            raise ValueError(twice)
        return None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    finally:
        loader.dispose()


def check_aliases(text: str) -> None:
    """Refuse aliases.

    Raises:
        ValueError: if there is one.
        yaml.YAMLError: for what is no YAML.
    """
    if any(isinstance(event, AliasEvent) for event in yaml.parse(text, Loader=Texts)):
        raise ValueError("it uses YAML's aliases (*name); write each value out")


def repeated(root: yaml.Node | None) -> Iterator[str]:
    """Each mapping below ``root`` that names something twice, in words."""
    nodes = [root] if root is not None else []
    while nodes:
        node = nodes.pop(0)
        if isinstance(node, yaml.MappingNode):
            names = [str(key.value) for key, _ in node.value]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                yield f"line {node.start_mark.line + 1}: names {', '.join(twice)} twice"
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
