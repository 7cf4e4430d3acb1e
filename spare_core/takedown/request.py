"""One request of a takedown list, schema ``spare.takedown/1``.

A request says what is to be erased and why, or takes another one back (``counter_notice_of``). Who asks is an opaque
reference: no personal data belongs in a list, and none gets into an artifact.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from spare_core.concepts.concept import Erasure, text_problems
from spare_core.concepts.names import same_concept
from spare_core.errors import ConceptError
from spare_core.takedown.times import FORMS, read_time

SCHEMA: Final = "spare.takedown/1"
AUTO: Final = "auto"
"""The surrogate of a request that leaves the choice to the planner."""
REGIMES: Final = ("dmca", "gdpr", "dsa", "court_order", "internal", "other")

Regime = Literal["dmca", "gdpr", "dsa", "court_order", "internal", "other"]
Identity = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""Goes into keys of the store as it is: no slash, no leading dot."""
Reference = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9][A-Za-z0-9._:/-]{0,99})?$")]
Moment = Annotated[AwareDatetime, WithJsonSchema({"type": "string"})]
Territory = Annotated[str, StringConstraints(pattern=r"^([A-Z]{2}|EU|EEA|worldwide)$")]


class ReferenceImage(BaseModel):
    """A picture of the concept, which must still be the one that was meant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: Annotated[str, StringConstraints(min_length=1, max_length=2000)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class TakedownRequest(BaseModel):
    """A row of a list.

    Texts that a model reads (``concept``, ``aliases``, ``surrogate``, ``protect``) may hold any visible characters;
    what names things (``request_id``, ``counter_notice_of``, ``requester``) only letters, digits and a few signs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, title=SCHEMA, str_strip_whitespace=True)

    request_id: Identity = Field(description="names the request for ever")
    counter_notice_of: Identity | None = Field(None, description="the request that this one takes back")
    concept: str = Field(
        "",
        description="what is to be erased, as people write it; empty only in a counter-notice",
        validate_default=True,
    )
    aliases: tuple[str, ...] = Field((), description="other names of it, erased with it")
    kind: Literal["style", "object", "person"] | None = Field(None, description="Canvas finds it itself")
    surrogate: str = Field(AUTO, description="what it becomes; auto: chosen by the planner")
    protect: tuple[str, ...] = Field((), description="neighbours to hold fixed by name")
    images: tuple[ReferenceImage, ...] = Field((), description="pictures of it")
    regime: Regime = Field(description="under which it is asked for; decides how long there is")
    ground: Annotated[str, StringConstraints(max_length=2000)] = Field("", description="legal ground, in words")
    received_at: Moment = Field(description="when it came in; of a day alone its start")
    due_at: Moment | None = Field(
        None, description="until when it must be done, of a day alone its end; else by its regime"
    )
    territorial_scope: tuple[Territory, ...] = Field((), description="two-letter countries, EU, EEA or worldwide")
    requester: Reference = Field("", description="an opaque reference to who asks; never a name or an address")
    legal_hold: bool = Field(False, description="nothing may be done to it for now")
    authority_reference: Annotated[str, StringConstraints(max_length=200)] = Field("", description="of a court, say")
    notes: Annotated[str, StringConstraints(max_length=2000)] = Field("", description="for people")

    @field_validator("regime", "kind", "legal_hold", mode="before")
    @classmethod
    def _word(cls, value: Any, info: ValidationInfo) -> Any:
        """One of a few words, as people write it: Style, GDPR Art. 17, court order, TRUE."""
        if not isinstance(value, str):
            return value
        text = value.strip().lower()
        if info.field_name != "regime":
            return text or None
        text = text.replace(" ", "_").replace("-", "_")
        return "gdpr" if text.startswith("gdpr") else text

    @field_validator("territorial_scope", mode="before")
    @classmethod
    def _places(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [one if not isinstance(one, str) else _territory(one) for one in value]

    @field_validator("concept", "surrogate", "aliases", "protect")
    @classmethod
    def _words(cls, value: str | tuple[str, ...], info: ValidationInfo) -> str | tuple[str, ...]:
        """What goes into a prompt."""
        name = str(info.field_name)
        if name == "concept" and not value and info.data.get("counter_notice_of"):
            return value
        texts = (value,) if isinstance(value, str) else value
        if problems := [problem for text in texts for problem in text_problems(name, text)]:
            raise ValueError("; ".join(problems))
        return value

    @field_validator("received_at", "due_at", mode="before")
    @classmethod
    def _time(cls, value: Any, info: ValidationInfo) -> Any:
        """A day or a time; one without a zone is in the ``zone`` of the context, else in UTC. No number: it would be
        read as seconds since 1970."""
        if value is None or isinstance(value, datetime):
            return value
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"it must be text; write {FORMS}")
        return read_time(str(value), (info.context or {}).get("zone", UTC), end=info.field_name == "due_at")

    @model_validator(mode="after")
    def _consistent(self) -> TakedownRequest:
        problems = self._contradictions()
        if self.due_at is not None and self.due_at < self.received_at:
            problems.append(f"due_at {self.due_at.isoformat()} is before received_at {self.received_at.isoformat()}")
        if self.counter_notice_of == self.request_id:
            problems.append("counter_notice_of is the request itself")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _contradictions(self) -> list[str]:
        """Between the concept and what belongs to it."""
        if self.counter_notice_of is not None:
            return ["a counter-notice names no concept; leave it empty"] if self.concept or self.aliases else []
        surrogate = self.surrogate
        if surrogate == AUTO:  # any that is none of the names
            surrogate = "a surrogate"
            if any(same_concept(surrogate, name) for name in (self.concept, *self.aliases)):
                surrogate = "another surrogate"
        try:
            Erasure(self.concept, surrogate, self.kind or "object", self.protect, "{concept}", (), self.aliases)
        except ConceptError as error:
            return str(error).split("; ")
        return []

    @property
    def names(self) -> tuple[str, ...]:
        """All that is to be erased."""
        return (self.concept, *self.aliases) if self.concept else ()


def _territory(text: str) -> str:
    """A code of two letters, EU, EEA or worldwide, whatever its case."""
    code = text.strip()
    return code.lower() if code.lower() == "worldwide" else code.upper() if len(code) <= 3 else code
