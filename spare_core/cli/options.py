"""Options that several commands have, and those that are settings of an erasure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from spare_core.errors import SettingsError
from spare_core.files.strict_yaml import read_yaml_text
from spare_core.method.settings import EraseSettings
from spare_core.models.device import Device, Precision

if TYPE_CHECKING:
    from typer.models import OptionInfo

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="'canvas', a local diffusers directory, s3://bucket/prefix, or a hub id")
]
AnyBase = Annotated[bool, typer.Option("--any-base", help="accept an adapter that was trained for another base model")]
Output = Annotated[Path, typer.Option("--output", help="folder to write to")]
Config = Annotated[
    str | None, typer.Option(help="YAML file of settings, local or s3://; options win", rich_help_panel="The method")
]
Dtype = Annotated[Precision, typer.Option("--dtype", help="precision the pictures are drawn in")]
OnDevice = Annotated[Device, typer.Option("--device", help="auto: cuda, then mps, then cpu")]

_FIELDS: Final = {field.name: field for field in dataclasses.fields(EraseSettings)}


def setting(name: str, panel: str, *declared: str) -> OptionInfo:
    """The option of a setting, with the meaning and the default of :class:`EraseSettings`. One that is not given is
    None, so that a file of settings may say it."""
    field = _FIELDS[name]
    option: OptionInfo = typer.Option(
        *declared, help=field.metadata["meaning"], show_default=str(field.default), rich_help_panel=panel
    )
    return option


def number(text: str | None) -> int | str | None:
    """What an option that takes a whole number or a word was given."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return text


def read_settings(config: str | None, options: dict[str, Any], pairs: Sequence[str] = ()) -> EraseSettings:
    """The settings of a file, with the options that were given on top; ``pairs`` are further ones, NAME=VALUE.

    Raises:
        SettingsError: for a value out of range, an unknown name, or a pair that is none.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise SettingsError([f"--set {pair!r} is no NAME=VALUE, as in --set gamma=2"])
        try:
            given[name.strip()] = read_yaml_text(value)
        except ValueError:
            raise SettingsError([f"--set {pair!r}: {value!r} is no value; write it as in a file of settings"]) from None
    return EraseSettings.from_file(config, **given) if config else EraseSettings.from_mapping(given)
