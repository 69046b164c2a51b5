"""THE table of ids: 171 tokens in four slots, the time grids, and which ids may follow which.

One note is one event of four tokens, always in the order delta onset, pitch, duration, velocity. Everything else in
the project asks this file what an id means; nothing computes it from `index % 4`.

    ids        block      meaning
    0-31       DELTA      time since the previous note's onset: bins of the grid
    32-119     PITCH      MIDI 21 (A0) to 108 (C8)
    120-151    DURATION   sounding time: bins of the grid
    152-167    VELOCITY   bin round(velocity / 127 * 15)
    168-170    PAD, BOS, EOS
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pulse88 import sequential


class Slot(IntEnum):
    """The four slots of an event, in their order."""

    DELTA = 0
    PITCH = 1
    DURATION = 2
    VELOCITY = 3


class Block(NamedTuple):
    """A run of ids: `start` up to, not including, `stop`."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def ids(self) -> NDArray[np.int64]:
        return np.arange(self.start, self.stop)


SIZE = 171
BLOCKS = {
    Slot.DELTA: Block(0, 32),
    Slot.PITCH: Block(32, 120),
    Slot.DURATION: Block(120, 152),
    Slot.VELOCITY: Block(152, 168),
}
PAD, BOS, EOS = 168, 169, 170
EVENT_TOKENS = len(Slot)  # tokens of one note
LOWEST_PITCH, HIGHEST_PITCH = 21, 108  # MIDI, A0 and C8: the 88 keys


@dataclass(frozen=True)
class TimeGrid:
    """What the 32 delta bins and the 32 duration bins mean, in seconds: data, so that weights carry theirs along.

    `carries_error` says whether the tokenizer lets a note's rounding error flow into later deltas, so that the
    tempo doesn't drift (see tokenizer.py), or rounds every delta by itself. Raises ValueError if a row does not
    have 32 finite, strictly ascending values.
    """

    name: str
    delta: tuple[float, ...]  # [32] seconds, the first is 0: notes of one chord
    duration: tuple[float, ...]  # [32] seconds, > 0
    carries_error: bool

    def __post_init__(self) -> None:
        for row, slot in ((self.delta, Slot.DELTA), (self.duration, Slot.DURATION)):
            if len(row) != BLOCKS[slot].size:
                raise ValueError(f"time grid {self.name!r}: {slot.name} has {len(row)} bins, not {BLOCKS[slot].size}")
            if not (all(a < b for a, b in itertools.pairwise(row)) and math.isfinite(row[-1])):
                raise ValueError(f"time grid {self.name!r}: {slot.name} bins are not finite or do not ascend strictly")
        if self.delta[0] != 0.0 or self.duration[0] <= 0.0:
            raise ValueError(f"time grid {self.name!r}: delta bin 0 must be 0 s and duration bin 0 above 0 s")

    def to_json(self) -> str:
        """A JSON object that `from_json` reads back to an equal grid."""
        return json.dumps(
            {"name": self.name, "delta": self.delta, "duration": self.duration, "carries_error": self.carries_error}
        )

    @classmethod
    def from_json(cls, text: str) -> TimeGrid:
        """The grid of `to_json`; ValueError if the text is no such object."""
        try:
            data: dict[str, Any] = json.loads(text)
            if not isinstance(data["carries_error"], bool):
                raise TypeError("carries_error is neither true nor false")
            delta, duration = (tuple(float(t) for t in data[key]) for key in ("delta", "duration"))
            return cls(str(data["name"]), delta, duration, data["carries_error"])
        except KeyError as error:
            raise ValueError(f"not a time grid: it has no {error}") from error
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a time grid: {error}") from error

    @cached_property
    def _bins(self) -> dict[Slot, NDArray[np.float64]]:
        return {Slot.DELTA: np.asarray(self.delta), Slot.DURATION: np.asarray(self.duration)}

    @cached_property
    def _midpoints(self) -> dict[Slot, NDArray[np.float64]]:
        return {slot: (bins[:-1] + bins[1:]) / 2 for slot, bins in self._bins.items()}

    def nearest(self, slot: Slot, seconds: ArrayLike) -> NDArray[np.int64]:
        """Index (not id) of the bin of DELTA or DURATION nearest in seconds, the later of two equally near ones.

        What is out of range is clamped.
        """
        times, midpoints = np.asarray(seconds, np.float64), self._midpoints[slot]
        if times.ndim == 1 and (compiled := sequential.library()):
            return sequential.nearest(compiled, times, midpoints)
        return np.searchsorted(midpoints, times, side="right")

    def seconds(self, slot: Slot, index: ArrayLike) -> NDArray[np.float64]:
        """Seconds of bins of DELTA or DURATION given by index (not id)."""
        return self._bins[slot][np.asarray(index)]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when any id would mean something else, or be chosen by another rule.

        Seconds count to the nanosecond: the last bits of a logarithm differ from processor to processor.
        """
        meanings = {
            Slot.DELTA: [round(t * 1e9) for t in self.delta],
            Slot.PITCH: list(range(LOWEST_PITCH, HIGHEST_PITCH + 1)),
            Slot.DURATION: [round(t * 1e9) for t in self.duration],
            Slot.VELOCITY: bin_velocity(np.arange(BLOCKS[Slot.VELOCITY].size)).tolist(),
        }
        table = [(BLOCKS[slot].start + i, slot.name, value) for slot in Slot for i, value in enumerate(meanings[slot])]
        law = (table, {"PAD": PAD, "BOS": BOS, "EOS": EOS}, self.carries_error)
        return hashlib.sha256(json.dumps(law).encode()).hexdigest()[:16]


def _log_spaced(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(float(t) for t in np.geomspace(first, last, count))


# The grid of the published weights: half of its delta bins lie below 10 ms.
PUBLISHED = TimeGrid(
    name="published",
    delta=(0.0, *_log_spaced(0.0001, 2.0, 31)),
    duration=_log_spaced(0.05, 4.0, 32),
    carries_error=False,
)

# Ours, chosen on the corpus (docs/tokens.md): fine where notes are dense in time, 34 ms to 0.8 s at steps of 16 %,
# two bins for the spread of a chord, coarse gaps up to 8 s.
FINE = TimeGrid(
    name="fine",
    delta=(0.0, 0.012, 0.022, *_log_spaced(0.034, 0.8, 22), *_log_spaced(0.8, 8.0, 8)[1:]),
    duration=_log_spaced(0.03, 8.0, 32),
    carries_error=True,
)

GRIDS = {grid.name: grid for grid in (FINE, PUBLISHED)}


def velocity_bin(velocity: ArrayLike) -> NDArray[np.int64]:
    """Index 0-15 of the bin of MIDI velocities."""
    return np.rint(np.asarray(velocity, np.float64) / 127 * 15).astype(np.int64)


def bin_velocity(index: ArrayLike) -> NDArray[np.int64]:
    """MIDI velocities 1-127 of bins 0-15."""
    return np.maximum(np.rint(np.asarray(index, np.float64) / 15 * 127), 1).astype(np.int64)


def slot_of(token: int) -> Slot | None:
    """The slot an id belongs to; None for PAD, BOS and EOS. ValueError outside the vocabulary."""
    if not 0 <= token < SIZE:
        raise ValueError(f"id {token} is not in the vocabulary of {SIZE}")
    return next((slot for slot, block in BLOCKS.items() if block.start <= token < block.stop), None)


def name_of(token: int) -> str:
    """A short readable name, such as `pitch 60` or `BOS`."""
    slot = slot_of(token)
    if slot is None:
        return {PAD: "PAD", BOS: "BOS", EOS: "EOS"}[token]
    index = token - BLOCKS[slot].start
    return f"{slot.name.lower()} {index + LOWEST_PITCH if slot is Slot.PITCH else index}"


class Grammar(NamedTuple):
    """Where a sequence of ids stands, and therefore which ids may come next. Immutable.

    Legal sequences are an optional BOS (then a first note with delta 0), events of four slots, and an optional EOS
    after an event. Notes of one chord, those with delta 0, ascend strictly in pitch: there is one way to write a
    chord, and no key is struck twice at once.
    """

    slot: Slot | None  # of the next token; None after EOS
    at_start: bool = False  # the next event is the first after BOS
    in_chord: bool = False  # the event under way has delta 0
    pitch: int = -1  # id of the latest pitch; -1 where it isn't known

    @classmethod
    def begin(cls) -> Grammar:
        """After BOS, at the beginning of a piece."""
        return cls(Slot.DELTA, at_start=True)

    @classmethod
    def middle(cls) -> Grammar:
        """Before an event in the middle of a piece, what came before it unknown."""
        return cls(Slot.DELTA)

    def legal(self, may_end: bool = True) -> NDArray[np.int64]:
        """The ids that may follow, ascending; EOS among them only if `may_end`."""
        first, stop = self._stretch()
        ids = np.arange(first, stop)
        return np.append(ids, EOS) if may_end and self._may_end() else ids

    def _stretch(self) -> tuple[int, int]:
        """The ids that may follow, EOS aside, are one stretch: the first, and one more than the last."""
        if self.slot is None:
            return 0, 0
        first, stop = BLOCKS[self.slot]
        if self.slot is Slot.DELTA:
            if self.at_start:
                stop = first + 1
            elif self.pitch == BLOCKS[Slot.PITCH].stop - 1:
                first += 1  # No key lies above the highest, so a chord can't go on.
        elif self.slot is Slot.PITCH and self.in_chord:
            first = max(first, self.pitch + 1)
        return first, stop

    def _may_end(self) -> bool:
        return self.slot is Slot.DELTA and not self.at_start

    def after(self, token: int) -> Grammar:
        """Where the sequence stands once `token` has come; ValueError if it may not come here."""
        first, stop = self._stretch()
        if not (first <= token < stop or (token == EOS and self._may_end())):
            raise ValueError(f"{name_of(token)} (id {token}) may not come here: {self}")
        if self.slot is None or token == EOS:
            return Grammar(None)
        match self.slot:
            case Slot.DELTA:
                return Grammar(Slot.PITCH, in_chord=token == BLOCKS[Slot.DELTA].start, pitch=self.pitch)
            case Slot.PITCH:
                return Grammar(Slot.DURATION, pitch=token)
            case Slot.DURATION:
                return Grammar(Slot.VELOCITY, pitch=self.pitch)
            case Slot.VELOCITY:
                return Grammar(Slot.DELTA, pitch=self.pitch)

    @classmethod
    def of(cls, ids: Iterable[int]) -> Grammar:
        """Where a whole sequence stands; ValueError with the index of the first illegal id."""
        state: Grammar | None = None
        for index, token in enumerate(ids):
            if state is None:
                state = cls.middle()
                if token == BOS:
                    state = cls.begin()
                    continue
            try:
                state = state.after(int(token))
            except ValueError as error:
                raise ValueError(f"token {index}: {error}") from error
        return state or cls.middle()
