"""What was asked for and what a continuation was made of, and both as the text event that its MIDI file carries."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from pulse88.config import UNSTEERED, SamplingConfig, SteeringConfig, setting

MARK = "pulse88 "  # The text event is this and a JSON object.
DEFAULT_SECONDS = 60.0
LONGEST_UNTIL_END = 600.0
MOST_TAKES = 1000  # all of them begin at once, each with a state of its own


@dataclass(frozen=True)
class ContinueConfig:
    """What to continue a seed with. ValueError for values that mean nothing."""

    seconds: float | None = setting(
        None,
        "Stop before a note that would begin more than this many seconds after the seed's last one begins; "
        "60 unless --notes is given, 600 with --until-end.",
    )
    notes: int | None = setting(None, "Stop after this many new notes.")
    seed_notes: int = setting(128, "Notes at the seed's end that the model reads; fewer if the seed has fewer.")
    takes: int = setting(1, "Continuations to make of the same seed. A take is the same however many are made.")
    random_seed: int | None = setting(
        None, "Number that fixes every random choice; drawn afresh, and told, if it isn't given."
    )
    until_end: bool = setting(False, "Let the model end the piece, and stop there.")
    only_new: bool = setting(
        False, "Write the new notes without the seed; time 0 is where the seed's last note begins."
    )

    def __post_init__(self) -> None:
        for name, least in (("notes", 1), ("seed_notes", 1), ("takes", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, not {value}")
        if self.takes > MOST_TAKES:
            raise ValueError(f"takes must be {MOST_TAKES} or fewer, not {self.takes}: make more by other random seeds")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, not {self.seconds}")

    @property
    def limit_seconds(self) -> float:
        """Seconds after the join from which on no new note begins; infinite if only notes are counted."""
        if self.seconds is not None:
            return self.seconds
        if self.notes is not None:
            return math.inf
        return LONGEST_UNTIL_END if self.until_end else DEFAULT_SECONDS


@dataclass(frozen=True)
class Provenance:
    """All that one continuation depends on, so that it can be made again byte for byte."""

    version: str  # of pulse88
    weights_sha256: str
    engine: str  # its name, never auto
    sampling: SamplingConfig
    random_seed: int
    take: int  # from 0
    until_end: bool
    only_new: bool  # whether the file is without the seed
    keep: int  # events that the state is rebuilt from when the context is full
    boundary: float  # seconds of the seed at which its last note begins
    new_part: int  # part of the new notes in the file
    new_notes: int
    seed_ids: tuple[int, ...]  # what the model has read
    steering: SteeringConfig = UNSTEERED
    branches: tuple[tuple[int, int], ...] = ()  # from so many new notes on they are drawn as of the take that follows

    def to_text(self) -> str:
        """The text event: ASCII, equal for equal provenances."""
        values = asdict(self) | {"seed_ids": bytes(self.seed_ids).hex()}
        if self.steering.steers:
            values["steering"] = {name: value for name, value in asdict(self.steering).items() if value is not None}
        else:
            del values["steering"]
        if not self.branches:
            del values["branches"]
        return MARK + json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Provenance:
        """Reads `to_text` back; ValueError for any other text."""
        if not text.startswith(MARK):
            raise ValueError("no pulse88 settings")
        try:
            values = json.loads(text[len(MARK) :])
            if not isinstance(values, dict) or set(values) | {"steering", "branches"} != {f.name for f in fields(cls)}:
                raise ValueError("its keys are those of another version")
            steering, branches = values.pop("steering", {}), values.pop("branches", [])
            for name, kind in _KINDS.items():
                values[name] = _of_kind(name, values[name], kind)
            values["sampling"] = SamplingConfig(**values["sampling"])
            values["seed_ids"] = tuple(bytes.fromhex(values["seed_ids"]))
            values["steering"] = _steering(steering)
            values["branches"] = tuple(
                (_of_kind("branches", notes, int), _of_kind("branches", number, int)) for notes, number in branches
            )
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"damaged pulse88 settings: {error}") from error
        return cls(**values)

    @classmethod
    def found_in(cls, texts: Iterable[str]) -> Provenance | None:
        """The settings among a file's text events; None if there are none, ValueError if they are damaged."""
        text = next((text for text in texts if text.startswith(MARK)), None)
        return None if text is None else cls.from_text(text)


_KINDS: dict[str, type] = {
    "version": str,
    "weights_sha256": str,
    "engine": str,
    "sampling": dict,
    "random_seed": int,
    "take": int,
    "until_end": bool,
    "only_new": bool,
    "keep": int,
    "boundary": float,
    "new_part": int,
    "new_notes": int,
    "seed_ids": str,
}


_STEERING_KINDS = {
    "density": (list, float),
    "register": (list, int),
    "in_key": (bool, None),
    "pitch_classes": (list, int),
    "end_within": (float, None),
}


def _steering(values: Any) -> SteeringConfig:
    if not isinstance(values, dict) or not values.keys() <= _STEERING_KINDS.keys():
        raise ValueError("its steering is that of another version")
    read: dict[str, Any] = {}
    for name, value in values.items():
        kind, inner = _STEERING_KINDS[name]
        read[name] = _of_kind(name, value, kind)
        if inner is not None:
            if name != "pitch_classes" and len(value) != 2:
                raise ValueError(f"{name} is {value!r}")
            read[name] = tuple(_of_kind(name, number, inner) for number in value)
    return SteeringConfig(**read)


def _of_kind(name: str, value: Any, kind: type) -> Any:
    fits = type(value) in ((int, float) if kind is float else (kind,))
    if not fits or (isinstance(value, (int, float)) and not 0 <= value < 2**64):
        raise ValueError(f"{name} is {value!r}")
    return value
