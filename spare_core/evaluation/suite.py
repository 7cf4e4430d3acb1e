"""What an evaluation draws and who judges it: a grid of objects x styles x seeds, a template, a sampler, a judge.

A suite of one's own is a YAML file::

    extends: unlearncanvas        # optional: start from a built-in suite and change what is named below
    name: my suite                # optional: the file's name
    styles: [Neon Lines, Rust]    # at least two; quote what YAML reads as something else, such as "1984"
    objects: [a cat, a dog]       # at least two
    template: "A {object} image in {style} style."   # optional: this one
    seeds: [188, 288]             # each starts one picture of every cell
    steps: 50                     # of DDIM, eta 0
    guidance: 7.5
    resolution: 512               # optional: side in pixels; 0, the default, is the model's own
    judge: {type: clip, model: DIR}
    #      {type: classifier, styles: DIR, objects: DIR}
    #      {type: canvas}
    first_seeds: 1                # optional: draw only so many of the seeds unless told otherwise; 0, the default: all
    objects_per_style: 40         # optional: likewise, so many of the objects in each style, spread evenly
    reference: DIR                # optional: DIR/STYLE/OBJECT/*.jpg, real pictures that FID is measured against

Folders are relative to the file, or s3:// addresses; the file may itself lie in S3. A classifier's labels are matched
to the names without regard to case, and to underscores written for spaces.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from spare_core import built_in
from spare_core.concepts.concept import Erasure
from spare_core.concepts.names import normalise
from spare_core.errors import ConceptError, SettingsError
from spare_core.files.addresses import is_s3
from spare_core.store.fetching import local_path, read_yaml_mapping

if TYPE_CHECKING:
    from torch import Tensor

Domain = Literal["style", "object"]
DOMAINS: Final[tuple[Domain, ...]] = ("style", "object")
_JUDGES: Final[dict[str, tuple[str, ...]]] = {"classifier": ("styles", "objects"), "clip": ("model",)}
"""Types of judges and the folders each needs; a built-in model's own judge has its name and needs none."""

_UNLEARNCANVAS: Final = Path(__file__).with_name("unlearncanvas.yaml")
_TEMPLATE: Final = "A {object} image in {style} style."
"""UnlearnCanvas's prompt (arXiv 2402.11846)."""
_OPTIONAL: Final[dict[str, Any]] = {"template": _TEMPLATE, "resolution": 0, "judge": None, "reference": None,
                                     "first_seeds": 0, "objects_per_style": 0}  # fmt: skip


class Cells(NamedTuple):
    """Every picture of a grid: rows ``(N,)`` of its objects and styles, and its seed."""

    objects: Tensor
    styles: Tensor
    seeds: Tensor

    def joined(self, other: Cells) -> Cells:
        """These, then those of another grid."""
        import torch

        return Cells(*(torch.cat(parts) for parts in zip(self, other, strict=True)))


def domain_of(erasure: Erasure) -> Domain:
    """Where suites have a concept: people are objects to them."""
    return "style" if erasure.kind == "style" else "object"


@dataclass(frozen=True)
class Suite:
    """A benchmark. ``judge``: its type and folders, as in the file; ``reference``: a folder of real pictures.

    ``first_seeds`` draws only so many of the seeds and ``objects_per_style`` only so many objects of each style, spread
    evenly, besides all pictures of what is erased; 0 draws all.

    Raises:
        SettingsError: at construction, with every problem.
    """

    name: str
    styles: tuple[str, ...]
    objects: tuple[str, ...]
    template: str
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    resolution: int = 0
    judge: Mapping[str, Any] | None = None
    reference: Path | None = None
    first_seeds: int = 0
    objects_per_style: int = 0

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise SettingsError(problems)

    def prompt(self, object_name: str, style: str) -> str:
        """The template filled in; braces in a name stay as they are."""
        before, _, after = self.template.partition("{object}")
        before, after = before.replace("{style}", style), after.replace("{style}", style)
        return before + object_name + after

    def names(self, kind: Domain) -> tuple[str, ...]:
        """The concepts of one domain."""
        return self.styles if kind == "style" else self.objects

    def find(self, text: str, kind: Domain) -> int:
        """Row of a concept, whatever its case and spacing.

        Raises:
            ConceptError: naming the nearest one that there is.
        """
        names = self.names(kind)
        for row, name in enumerate(names):
            if _key(name) == _key(text):
                return row
        near = difflib.get_close_matches(text.title(), names, n=1, cutoff=0.0)[0]
        raise ConceptError(
            f"suite {self.name!r} has no {kind} {text!r}; nearest: {near!r}; its {kind}s: {', '.join(names)}"
        )

    def has(self, text: str) -> bool:
        """Whether a style or an object has that name."""
        return any(_key(text) in map(_key, self.names(kind)) for kind in DOMAINS)

    def domain(self, text: str) -> Domain:
        """The one that has the concept.

        Raises:
            ConceptError: if none or both have it.
        """
        having = [kind for kind in DOMAINS if _key(text) in map(_key, self.names(kind))]
        if len(having) > 1:
            raise ConceptError(f"suite {self.name!r} has a style and an object {text!r}; say which by --kind")
        if not having:  # the nearest name is that of a style or of an object
            near = difflib.get_close_matches(text.title(), (*self.styles, *self.objects), n=1, cutoff=0.0)[0]
            raise ConceptError(f"suite {self.name!r} has no {text!r}; nearest: {near!r}")
        return having[0]

    def cells(self) -> Cells:
        """What is drawn whatever is erased, seed by seed, style by style."""
        return self._cells(self._spread)

    def further_cells(self, erased: Mapping[Domain, Sequence[int]]) -> Cells:
        """What is drawn besides where only some objects of each style are: all pictures of the erased concepts, which
        are too few for a figure otherwise. ``erased`` are rows by domain."""
        styles, objects = erased.get("style", ()), erased.get("object", ())
        return self._cells(lambda obj, style: (obj in objects or style in styles) and not self._spread(obj, style))

    def all_cells(self, erased: Mapping[Domain, Sequence[int]]) -> Cells:
        """:meth:`cells`, then :meth:`further_cells`."""
        return self.cells().joined(self.further_cells(erased))

    def _spread(self, obj: int, style: int) -> bool:
        """Each style's run of objects starts where the runs of all styles are spread evenly over the objects."""
        count = self.objects_per_style or len(self.objects)
        return (obj - style * len(self.objects) // len(self.styles)) % len(self.objects) < count

    def _cells(self, drawn: Callable[[int, int], bool]) -> Cells:
        import torch  # only here: the gate and the first task of a pipeline read suites without it

        rows = [
            (obj, style, seed)
            for seed in self.seeds[: self.first_seeds or None]
            for style in range(len(self.styles))
            for obj in range(len(self.objects))
            if drawn(obj, style)
        ]
        return Cells(*torch.tensor(rows, dtype=torch.long).reshape(-1, 3).T)

    def subset(self) -> dict[str, int] | None:
        """How much of the suite is drawn, or None for all of it."""
        seeds, objects = self.first_seeds or len(self.seeds), self.objects_per_style or len(self.objects)
        if (seeds, objects) == (len(self.seeds), len(self.objects)):
            return None
        return {
            "seeds": seeds,
            "of_seeds": len(self.seeds),
            "objects_per_style": objects,
            "of_objects": len(self.objects),
        }

    def sampling(self) -> dict[str, Any]:
        """All that decides which pictures a model draws, as plain values."""
        return {
            "styles": list(self.styles),
            "objects": list(self.objects),
            "template": self.template,
            "seeds": list(self.seeds[: self.first_seeds or None]),
            "sampler": "DDIM, eta 0",
            "steps": self.steps,
            "guidance": float(self.guidance),
            "resolution": self.resolution,
            "subset": self.subset(),
        }

    def restricted(self, seeds: int = 0, objects_per_style: int = 0) -> Suite:
        """Another part of it, for a quick look; 0 leaves what the suite itself says. Results say which part."""
        return dataclasses.replace(
            self,
            first_seeds=seeds or self.first_seeds,
            objects_per_style=objects_per_style or self.objects_per_style,
        )


def load_suite(source: str) -> Suite:
    """The suite named "canvas", "canvas160" or "unlearncanvas", or the one in a YAML file (see the top of this module).

    Raises:
        SettingsError: with everything that is wrong with it.
        StoreError: if something it needs cannot be fetched from S3.
    """
    if source not in built_in_suites() and not is_s3(source) and not Path(source).is_file():
        raise SettingsError([f"there is no suite {source!r}; give {', '.join(built_in_suites())}, or a YAML file"])
    values = _built_in(source) if source in built_in_suites() else _from_file(source)
    known = [f.name for f in dataclasses.fields(Suite)]
    problems = [f"unknown setting {name!r}; known: extends, {', '.join(known)}" for name in values if name not in known]
    missing = [name for name in known if name not in values and name not in _OPTIONAL]
    problems += [f"{name} is missing; see unlearncanvas.yaml for an example" for name in missing]
    if missing:
        raise SettingsError(problems)
    given: dict[str, Any] = {**_OPTIONAL, **values}
    try:
        suite = Suite(**{name: given[name] for name in known})
    except SettingsError as error:
        raise SettingsError([*problems, *error.problems]) from None
    if problems:
        raise SettingsError(problems)
    return suite


def suite_of(model: str, named: str = "") -> str:
    """The suite that is named, else the model's own: a built-in one brings it along.

    Raises:
        SettingsError: if there is neither.
    """
    if named or built_in.find(model) is not None:
        return named or model
    own = ", ".join(built_in.names())
    raise SettingsError([f"suite is empty; only {own} bring their own, give 'unlearncanvas' or a YAML file"])


def built_in_suites() -> tuple[str, ...]:
    """The names of the suites that need no file."""
    return (*built_in.names(), "unlearncanvas")


def judge_types() -> dict[str, tuple[str, ...]]:
    """The folders that each type of judge needs."""
    return {**dict.fromkeys(built_in.names(), ()), **_JUDGES}


def _built_in(name: str) -> dict[str, Any]:
    if (known := built_in.find(name)) is not None:
        return known.suite()
    return _tupled(read_yaml_mapping(_UNLEARNCANVAS))


def _from_file(source: str) -> dict[str, Any]:
    values = {"name": Path(source).stem, **_tupled(read_yaml_mapping(source))}
    for name, folder in values.items():
        if name == "reference" and isinstance(folder, str):
            values[name] = _beside(source, folder)
        if name == "judge" and isinstance(folder, dict):
            values[name] = {key: _beside(source, value) if key != "type" and isinstance(value, str) else value
                            for key, value in folder.items()}  # fmt: skip
    base = values.pop("extends", None)
    if base is None:
        return values
    if base not in built_in_suites():
        raise SettingsError([f"extends is {base!r}; allowed: {', '.join(built_in_suites())}"])
    return {**_built_in(base), **values}


def _beside(source: str, folder: str) -> Path:
    """A folder that a file names: an address in S3, or a path from the file's own place, which may be in S3."""
    if is_s3(folder):
        return local_path(folder)
    if is_s3(source) and not Path(folder).is_absolute():
        return local_path(f"{source.rpartition('/')[0]}/{folder}")
    return Path(source).parent / folder


def _tupled(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _key(name: str) -> str:
    """A concept as compared: benchmarks write spaces as underscores."""
    return normalise(name.replace("_", " "))


def _problems(suite: Suite) -> list[str]:
    problems = [p for name in ("styles", "objects") for p in _name_problems(name, getattr(suite, name))]
    template = suite.template if isinstance(suite.template, str) else ""
    rest = template.replace("{object}", "").replace("{style}", "")
    if template.count("{object}") != 1 or template.count("{style}") != 1 or "{" in rest or "}" in rest:
        problems.append(
            f"template is {suite.template!r}; it must contain {{object}} and {{style}} once, no other braces"
        )
    seeds = suite.seeds if isinstance(suite.seeds, tuple) else ()
    if not seeds or len(set(seeds)) < len(seeds) or any(type(s) is not int or not 0 <= s < 2**63 for s in seeds):
        problems.append(f"seeds is {suite.seeds!r}; it must list one or more distinct integers from 0")
    for name, high in (("first_seeds", len(seeds)), ("objects_per_style", _length(suite.objects))):
        problems += _range_problems(name, getattr(suite, name), 0, high)
    problems += _range_problems("steps", suite.steps, 1, 1000)
    problems += _range_problems("resolution", suite.resolution, 0, 8192)
    if type(suite.resolution) is int and suite.resolution % 8:
        problems.append(f"resolution is {suite.resolution}; it must be a multiple of 8")
    if type(suite.guidance) not in (int, float) or not 0 <= suite.guidance <= 100:
        problems.append(f"guidance is {suite.guidance!r}; allowed: a number in [0, 100]")
    if not isinstance(suite.name, str) or not suite.name.strip():
        problems.append(f"name is {suite.name!r}; it must be text")
    if suite.reference is not None and not (isinstance(suite.reference, Path) and suite.reference.is_dir()):
        problems.append(f"reference is {str(suite.reference)!r}; there is no such folder")
    return problems + (_judge_problems(suite.judge) if suite.judge is not None else [])


def _length(value: Any) -> int:
    return len(value) if isinstance(value, tuple) else 0


def _range_problems(name: str, value: Any, low: int, high: int) -> list[str]:
    if type(value) is int and low <= value <= high:
        return []
    return [f"{name} is {value!r}; allowed: an integer in [{low}, {high}]"]


def _name_problems(field: str, names: Any) -> list[str]:
    if not isinstance(names, tuple) or len(names) < 2:
        return [f"{field} is {names!r}; it must list two or more names"]
    wrong = [name for name in names if not isinstance(name, str) or not name.strip()]
    if wrong:
        return [f"{field} holds {wrong[0]!r}, which is no name; put quotes around what YAML reads as something else"]
    keys = [_key(name) for name in names]
    twice = [name for name, key in zip(names, keys, strict=True) if keys.count(key) > 1]
    return [f"{field} holds one name twice: {', '.join(map(repr, twice))}"] if twice else []


def _judge_problems(judge: Any) -> list[str]:
    kind = judge.get("type") if isinstance(judge, Mapping) else None
    if not isinstance(kind, str) or kind not in judge_types():
        return [f"judge is {judge!r}; it must have a type: {', '.join(judge_types())}"]
    needed = judge_types()[kind]
    if {*judge} != {"type", *needed}:
        given = ", ".join(sorted(map(str, {*judge} - {"type"}))) or "nothing"
        return [f"judge {kind} needs {' and '.join(needed) or 'nothing'} besides its type, got {given}"]
    missing = [f"{name} {str(judge[name])!r}" for name in needed if not Path(str(judge[name])).is_dir()]
    return [f"judge {kind}: there is no folder for {' and '.join(missing)}"] if missing else []
