"""What a player sends in a duet (docs/api.md), checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from pulse88.serve.schemas import LARGEST_RANDOM_SEED, Band, Id, Strict, sampled

Time = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class DuetSettings(Strict):
    """How to answer."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    liveliness: Annotated[float, Field(ge=0, le=1)] | None = None
    register_: Annotated[Band | None, Field(alias="register")] = None
    in_key: bool = False

    @model_validator(mode="after")
    def _make_sense(self) -> DuetSettings:
        if self.liveliness is not None and (self.temperature is not None or self.top_p is not None):
            raise ValueError("give liveliness, or temperature and top_p, not both")
        if self.register_ and self.register_[1] - self.register_[0] < 11:
            raise ValueError("register: the lower pitch comes first, and an octave lies between")
        return self

    def told(self) -> dict[str, Any]:
        """All of them as they are taken."""
        temperature, top_p = sampled(self.liveliness, self.temperature, self.top_p)
        return {"temperature": temperature, "top_p": top_p, "register": self.register_, "in_key": self.in_key}


class Hello(Strict):
    """The first message, and again when the settings change."""

    type: Literal["hello"]
    settings: DuetSettings = DuetSettings()
    pause: Annotated[float, Field(ge=0, le=30)] = 0.7
    answer_seconds: Annotated[float, Field(ge=1, le=60)] = 8.0
    random_seed: Annotated[int, Field(ge=0, le=LARGEST_RANDOM_SEED)] | None = None
    seed: Id | None = None


class Key(Strict):
    """Something that is played."""

    time: Time


class On(Key):
    """A key goes down."""

    type: Literal["on"]
    pitch: Annotated[int, Field(ge=0, le=127)]
    velocity: Annotated[int, Field(ge=1, le=127)]


class Off(Key):
    """A key comes up."""

    type: Literal["off"]
    pitch: Annotated[int, Field(ge=0, le=127)]


class Pedal(Key):
    """The sustain pedal."""

    type: Literal["pedal"]
    value: Annotated[int, Field(ge=0, le=127)]


class Wish(Strict):
    """Answer now, stop answering, or tell the time."""

    type: Literal["answer", "yield", "ping"]
    time: Time


class Save(Strict):
    """Make a seed of all that was played."""

    type: Literal["save"]


Said = Annotated[Hello | On | Off | Pedal | Wish | Save, Field(discriminator="type")]
_READER: TypeAdapter[Any] = TypeAdapter(Said)


def read_message(text: str) -> Any:
    """The message; pydantic's ValidationError if it is none."""
    return _READER.validate_json(text)
