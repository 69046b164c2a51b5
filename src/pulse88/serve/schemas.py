"""The JSON of the API, checked and documented: what pydantic makes of it is in /v1/openapi.json."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pulse88.config import SamplingConfig
from pulse88.provenance import DEFAULT_SECONDS, ContinueConfig
from pulse88.serve.limits import STANDARD

LIMITS = STANDARD  # of the documentation; what a server bounds is checked against its own
LARGEST_RANDOM_SEED = 2**53 - 1  # what JavaScript can tell
CALMEST, LIVELIEST = 0.7, 1.3  # temperature at liveliness 0 and 1
CALMEST_TOP_P, LIVELIEST_TOP_P, MOST_TOP_P = 0.92, 1.02, 0.995
NO_LIMIT = 1000.0  # notes a second

Id = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Pitch = Annotated[int, Field(ge=21, le=108)]
Band = Annotated[list[Pitch], Field(min_length=2, max_length=2)]
Density = Annotated[float, Field(ge=0, le=NO_LIMIT)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """Unknown fields are refused, and numbers must be numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Settings(Strict):
    """How to continue. What is left out takes its default."""

    seconds: Annotated[float, Field(gt=0, le=LIMITS.seconds)] | None = None
    notes: Annotated[int, Field(ge=1, le=LIMITS.new_notes)] | None = None
    seed_notes: Annotated[int, Field(ge=1, le=LIMITS.seed_notes)] = ContinueConfig.seed_notes
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    liveliness: Annotated[float, Field(ge=0, le=1)] | None = None
    density: Annotated[list[Density | None], Field(min_length=2, max_length=2)] | None = None
    register_: Annotated[Band | None, Field(alias="register")] = None
    in_key: bool = False
    end_within: Annotated[float, Field(ge=0.5, le=LIMITS.seconds)] | None = None
    best_of: Annotated[int, Field(ge=1, le=LIMITS.best_of)] = 1

    @model_validator(mode="after")
    def _make_sense(self) -> Settings:
        if self.liveliness is not None and (self.temperature is not None or self.top_p is not None):
            raise ValueError("give liveliness, or temperature and top_p, not both")
        if self.register_ and self.register_[0] > self.register_[1]:
            raise ValueError("register: the lower pitch comes first")
        if self.density:
            low, high = self.density[0] or 0.0, NO_LIMIT if self.density[1] is None else self.density[1]
            if low > high or high == 0:
                raise ValueError("density: the lower number comes first, and the higher is above 0")
        return self

    def resolved(self) -> dict[str, Any]:
        """All of them as they are taken, in plain words that workers and the page understand."""
        temperature, top_p = sampled(self.liveliness, self.temperature, self.top_p)
        density = None
        if self.density and self.density != [None, None]:
            density = [self.density[0] or 0.0, NO_LIMIT if self.density[1] is None else self.density[1]]
        seconds = self.seconds
        if seconds is None and self.notes is None:
            seconds = LIMITS.seconds if self.end_within is not None else DEFAULT_SECONDS
        return {
            "seconds": LIMITS.seconds if seconds is None else seconds,
            "notes": LIMITS.new_notes if self.notes is None else self.notes,
            "seed_notes": self.seed_notes,
            "temperature": temperature,
            "top_p": top_p,
            "density": density,
            "register": self.register_,
            "in_key": self.in_key,
            "end_within": self.end_within,
            "best_of": self.best_of,
        }


def sampled(liveliness: float | None, temperature: float | None, top_p: float | None) -> tuple[float, float]:
    """Temperature and top-p of a liveliness from 0 (safe) to 1 (wild); at 0.5 they are the defaults."""
    if liveliness is not None:
        top_p = min(CALMEST_TOP_P + (LIVELIEST_TOP_P - CALMEST_TOP_P) * liveliness, MOST_TOP_P)
        return round(CALMEST + (LIVELIEST - CALMEST) * liveliness, 4), round(top_p, 4)
    return (
        SamplingConfig.temperature if temperature is None else temperature,
        SamplingConfig.top_p if top_p is None else top_p,
    )


class Parent(Strict):
    """A note of a take to continue from: the index of the last new note that is kept, -1 for none."""

    take: Id
    note: Annotated[int, Field(ge=-1)] | None = None


class Continuation(Strict):
    """What to continue, and how."""

    seed: Id | None = None
    midi_base64: str | None = None
    parent: Parent | None = None
    settings: Settings = Settings()
    takes: Annotated[int, Field(ge=1, le=LIMITS.takes)] = 1
    random_seed: Annotated[int, Field(ge=0, le=LARGEST_RANDOM_SEED)] | None = None
    seed_range: Annotated[list[Annotated[Finite, Field(ge=0)]], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Continuation:
        if sum(source is not None for source in (self.seed, self.midi_base64, self.parent)) != 1:
            raise ValueError("give one of seed, midi_base64 and parent")
        if self.seed_range and self.parent:
            raise ValueError("seed_range goes with seed or midi_base64, not with parent")
        if self.seed_range and self.seed_range[0] >= self.seed_range[1]:
            raise ValueError("seed_range: its end comes after its start")
        return self


class PlayedNote(Strict):
    """A note that somebody played."""

    onset: Annotated[Finite, Field(ge=0)]
    duration: Annotated[Finite, Field(gt=0)]
    pitch: Annotated[int, Field(ge=0, le=127)]
    velocity: Annotated[int, Field(ge=1, le=127)]


class PlayedPedal(Strict):
    """The sustain pedal at a time."""

    time: Annotated[Finite, Field(ge=0)]
    value: Annotated[int, Field(ge=0, le=127)]


class Played(Strict):
    """Notes that somebody played."""

    notes: Annotated[list[PlayedNote], Field(min_length=1, max_length=LIMITS.played_notes)]
    pedal: list[PlayedPedal] | None = None


Row = list[float]


class SeedFacts(BaseModel):
    """A seed."""

    seed: Id
    notes: list[Row]
    pedal: list[Row]
    seconds: float
    boundary: float
    parts: list[str]
    read_from: int
    usable_notes: int
    remarks: list[str]


class ParentFacts(BaseModel):
    """Where a take branches off."""

    take: str
    note: int


class TakeFacts(BaseModel):
    """A take."""

    take: Id
    seed: Id
    parent: ParentFacts | None
    number: int
    boundary: float
    new_part: int
    random_seed: int
    settings: dict[str, Any]
    notes: list[Row]
    seconds: float
    state: Literal["waiting", "making", "done"]
    reason: str | None
    choice: dict[str, Any] | None
    originality: dict[str, Any] | None


class Health(BaseModel):
    """Whether it works."""

    status: Literal["ok", "starting"]
    version: str
    workers: int
    waiting: int


class Info(BaseModel):
    """What plays here, and how much may be asked."""

    version: str
    model: dict[str, Any] | None
    limits: dict[str, int | float]
    originality: bool  # whether takes are compared with training data
    defaults: dict[str, Any]


class Example(BaseModel):
    """A seed that comes with pulse88."""

    id: str
    title: str
    about: str
    notes: int
    seconds: float


class Examples(BaseModel):
    """All of them."""

    examples: list[Example]


class Samples(BaseModel):
    """Where a player finds its sounds."""

    rate: int
    layers: list[int]
    pitches: list[int]
    url: str


class ProblemFacts(BaseModel):
    """What went wrong (RFC 9457): `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str
    request: str = ""


def defaults() -> dict[str, Any]:
    """What settings are where they aren't given, for `/v1/info`."""
    told = Settings().resolved() | {"notes": None, "liveliness": 0.5}
    return {name: told[name] for name in ("seconds", "notes", "seed_notes", "temperature", "top_p", "liveliness")} | {
        name: told[name] for name in ("density", "register", "in_key", "end_within", "best_of")
    }
