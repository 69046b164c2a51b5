"""Notes in seconds: what every other file of the music wing reads and writes.

Shape legend: N notes, P pedal events. Times and durations are float64 seconds from the start of the piece,
velocities are MIDI 1-127, pitches MIDI 0-127 (60 = C4). Nothing here knows of ticks, tokens or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PEDAL_DOWN = 64  # A sustain pedal (CC64) counts as down from this value on, as General MIDI has it.

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]


class Note(NamedTuple):
    """One struck key: onset and duration in seconds, MIDI pitch and velocity, and the part that plays it."""

    onset: float
    duration: float
    pitch: int
    velocity: int
    part: int = 0


class Tempo(NamedTuple):
    """From `time` (seconds) on, `bpm` quarter notes a minute."""

    time: float
    bpm: float


class Meter(NamedTuple):
    """From `time` (seconds) on, bars of `numerator`/`denominator`."""

    time: float
    numerator: int
    denominator: int


def _floats() -> Floats:
    return np.zeros(0, np.float64)


def _bytes() -> Bytes:
    return np.zeros(0, np.uint8)


@dataclass(frozen=True, eq=False)
class Performance:
    """A piece of piano music, immutable, its notes sorted by onset, pitch, duration, velocity.

    A part is what one track or channel of a file plays; each part has a pedal of its own. Raises ValueError on
    construction if arrays differ in length or a value is out of its range, naming the first bad note.
    """

    onset: Floats = field(default_factory=_floats)  # [N] seconds
    duration: Floats = field(default_factory=_floats)  # [N] seconds the key is held, > 0
    pitch: Bytes = field(default_factory=_bytes)  # [N]
    velocity: Bytes = field(default_factory=_bytes)  # [N]
    part: Bytes = field(default_factory=_bytes)  # [N]
    pedal_time: Floats = field(default_factory=_floats)  # [P] seconds, ascending
    pedal_value: Bytes = field(default_factory=_bytes)  # [P] CC64 0-127
    pedal_part: Bytes = field(default_factory=_bytes)  # [P]
    tempos: tuple[Tempo, ...] = ()
    meters: tuple[Meter, ...] = ()

    def __post_init__(self) -> None:
        for name in ("onset", "pitch", "duration", "velocity", "part"):
            if len(getattr(self, name)) != len(self.onset):
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {len(self.onset)} notes")
        if not len(self.pedal_time) == len(self.pedal_value) == len(self.pedal_part):
            raise ValueError("pedal_time, pedal_value and pedal_part differ in length")
        _refuse("onset", self.onset, ~(np.isfinite(self.onset) & (self.onset >= 0)), "finite seconds >= 0")
        _refuse("duration", self.duration, ~(np.isfinite(self.duration) & (self.duration > 0)), "finite seconds > 0")
        _refuse("pitch", self.pitch, np.asarray(self.pitch) > 127, "0-127")
        _refuse("velocity", self.velocity, (np.asarray(self.velocity) < 1) | (np.asarray(self.velocity) > 127), "1-127")
        order = np.lexsort((self.velocity, self.duration, self.pitch, self.onset))
        for name, dtype in (
            ("onset", np.float64),
            ("duration", np.float64),
            ("pitch", np.uint8),
            ("velocity", np.uint8),
            ("part", np.uint8),
        ):
            object.__setattr__(self, name, _frozen(np.asarray(getattr(self, name), dtype)[order]))
        by_time = np.argsort(self.pedal_time, kind="stable")
        for name, dtype in (("pedal_time", np.float64), ("pedal_value", np.uint8), ("pedal_part", np.uint8)):
            object.__setattr__(self, name, _frozen(np.asarray(getattr(self, name), dtype)[by_time]))
        object.__setattr__(self, "tempos", tuple(sorted(self.tempos)))
        object.__setattr__(self, "meters", tuple(sorted(self.meters)))

    @classmethod
    def from_notes(
        cls, notes: Iterable[Note], tempos: tuple[Tempo, ...] = (), meters: tuple[Meter, ...] = ()
    ) -> Performance:
        """A performance without pedal from single notes, in any order."""
        rows = list(notes)
        return cls(
            onset=np.array([n.onset for n in rows], np.float64),
            duration=np.array([n.duration for n in rows], np.float64),
            pitch=np.array([n.pitch for n in rows], np.int64),
            velocity=np.array([n.velocity for n in rows], np.int64),
            part=np.array([n.part for n in rows], np.int64),
            tempos=tempos,
            meters=meters,
        )

    def __len__(self) -> int:
        return len(self.onset)

    def __iter__(self) -> Iterator[Note]:
        columns = (self.onset, self.duration, self.pitch, self.velocity, self.part)
        return (Note(*row) for row in zip(*(c.tolist() for c in columns), strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Performance):
            return NotImplemented
        return all(
            np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs
            for mine, theirs in ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        )

    @property
    def end(self) -> float:
        """Seconds at which the last key is let go; 0 without notes."""
        return float((self.onset + self.duration).max()) if len(self) else 0.0

    def take(self, keep: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Performance:
        """The notes picked by a mask, indices or a slice; pedal, tempos and meters stay."""
        return replace(self, **{n: getattr(self, n)[keep] for n in ("onset", "duration", "pitch", "velocity", "part")})

    def shifted(self, seconds: float) -> Performance:
        """Everything later by `seconds`; earlier if negative, where events before 0 are moved to 0."""
        return replace(
            self,
            onset=np.maximum(self.onset + seconds, 0.0),
            pedal_time=np.maximum(self.pedal_time + seconds, 0.0),
            tempos=tuple(t._replace(time=max(t.time + seconds, 0.0)) for t in self.tempos),
            meters=tuple(m._replace(time=max(m.time + seconds, 0.0)) for m in self.meters),
        )

    def transposed(self, semitones: int) -> Performance:
        """Every pitch moved by `semitones`; ValueError if one leaves MIDI 0-127."""
        moved = self.pitch.astype(np.int64) + semitones
        _refuse("pitch", moved, (moved < 0) | (moved > 127), "0-127")
        return replace(self, pitch=moved.astype(np.uint8))

    def sustained(self) -> Performance:
        """The same sound without pedal: keys held until their part's pedal rises or the key is struck again.

        This is the one place where the sustain pedal becomes durations. A pedal that never rises rises at the end of
        the piece. A key that is held longer than that keeps its own duration.
        """
        if not len(self.pedal_time) or not len(self):
            return replace(self, pedal_time=_floats(), pedal_value=_bytes(), pedal_part=_bytes())
        key_end = self.onset + self.duration
        piece_end = max(float(key_end.max()), float(self.pedal_time[-1]))
        ringing_end = key_end.copy()
        for part in np.unique(self.pedal_part):
            mine = self.pedal_part == part
            starts, stops = pedal_spans(self.pedal_time[mine], self.pedal_value[mine] >= PEDAL_DOWN, piece_end)
            if not len(starts):
                continue
            notes = np.flatnonzero(self.part == part)
            span = np.searchsorted(starts, key_end[notes], side="right") - 1
            held = (span >= 0) & (key_end[notes] < stops[np.maximum(span, 0)])
            ringing_end[notes[held]] = stops[span[held]]
        ringing_end = np.maximum(key_end, np.minimum(ringing_end, self._next_strike()))
        return replace(
            self,
            duration=np.maximum(ringing_end - self.onset, self.duration),
            pedal_time=_floats(),
            pedal_value=_bytes(),
            pedal_part=_bytes(),
        )

    def without_overlaps(self) -> Performance:
        """Each key let go before the same part strikes it again; of two strikes at once the longer stays."""
        kept = self.take(self._first_of_each_strike())
        next_strike = kept._next_strike(same_part=True)
        return replace(kept, duration=np.minimum(kept.duration, next_strike - kept.onset))

    def _next_strike(self, same_part: bool = False) -> Floats:
        """[N] seconds of the next later onset of the same pitch, inf where there is none."""
        key = self.pitch.astype(np.int64) + (self.part.astype(np.int64) << 8 if same_part else 0)
        order = np.lexsort((self.onset, key))
        onset, key = self.onset[order], key[order]
        following = np.full(len(onset), np.inf)
        if len(onset):
            # Strikes at the same instant share the following strike, so walk over groups of equal (key, onset).
            group_start = np.flatnonzero(np.r_[True, (np.diff(key) != 0) | (np.diff(onset) > 0)])
            same_key = key[group_start[:-1]] == key[group_start[1:]]
            group_next = np.r_[np.where(same_key, onset[group_start[1:]], np.inf), np.inf]
            following = np.repeat(group_next, np.diff(np.r_[group_start, len(onset)]))
        result = np.empty(len(onset))
        result[order] = following
        return result

    def _first_of_each_strike(self) -> NDArray[np.intp]:
        """Indices of one note, the longest, for each (onset, pitch, part)."""
        order = np.lexsort((-self.duration, self.part, self.pitch, self.onset))
        rows = np.stack((self.onset[order], self.pitch[order], self.part[order]))
        first = np.r_[True, (np.diff(rows, axis=1) != 0).any(axis=0)] if len(order) else np.zeros(0, bool)
        return np.sort(order[first])


def pedal_spans(time: Floats, down: NDArray[np.bool_], piece_end: float) -> tuple[Floats, Floats]:
    """Starts and stops, in seconds, of the stretches in which one pedal is down; an open one stops at piece_end."""
    change = np.flatnonzero(np.diff(np.r_[False, down].astype(np.int8)))
    starts, stops = time[change[0::2]], time[change[1::2]]
    if len(stops) < len(starts):
        stops = np.r_[stops, piece_end]
    return starts, stops


def _frozen(array: NDArray) -> NDArray:
    array.flags.writeable = False
    return array


def _refuse(name: str, values: NDArray, bad: NDArray[np.bool_], allowed: str) -> None:
    if np.any(bad):
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(f"note {first}: {name} {values[first]} is not in {allowed}")
