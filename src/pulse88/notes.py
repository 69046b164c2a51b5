"""Notes in seconds: what every other file of the music wing reads and writes.

Shape legend: N notes, P pedal events. Times and durations are float64 seconds from the start of the piece,
velocities are MIDI 1-127, pitches MIDI 0-127 (60 = C4). Nothing here knows of ticks, tokens or files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pulse88 import sequential

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


Change = TypeVar("Change", Tempo, Meter)


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
        onset = _seconds("note", "onset", self.onset)
        duration = _seconds("note", "duration", self.duration)
        _refuse("note", "duration", duration, duration <= 0, "finite seconds > 0")
        pitch = _whole("note", "pitch", self.pitch, 0, 127)
        velocity = _whole("note", "velocity", self.velocity, 1, 127)
        part = _whole("note", "part", self.part, 0, 255)
        order = np.argsort(onset, kind="stable")
        in_order = onset[order]
        tied = in_order[1:] == in_order[:-1]
        compiled = sequential.library()
        columns = (pitch, velocity, part)
        if tied.any() and not (compiled and sequential.put_in_order(compiled, order, onset, duration, columns)):
            # By onset and pitch, as one number for the sake of speed; few notes are still tied then.
            moment_pitch = np.concatenate(([0], np.cumsum(~tied))) * 128 + pitch[order]
            by_pitch = np.argsort(moment_pitch, kind="stable")
            order, moment_pitch = order[by_pitch], moment_pitch[by_pitch]
            at = beside(moment_pitch[1:] == moment_pitch[:-1])
            ties = order[at]
            order[at] = ties[np.lexsort((part[ties], velocity[ties], duration[ties], moment_pitch[at]))]
        self._set(order, onset=onset, duration=duration, pitch=pitch, velocity=velocity, part=part)
        pedal_time = _seconds("pedal event", "time", self.pedal_time)
        pedal_value = _whole("pedal event", "value", self.pedal_value, 0, 127)
        pedal_part = _whole("pedal event", "part", self.pedal_part, 0, 255)
        order = np.argsort(pedal_time, kind="stable")
        self._set(order, pedal_time=pedal_time, pedal_value=pedal_value, pedal_part=pedal_part)
        for tempo in self.tempos:
            if not (0 <= tempo.time < math.inf and 0 < tempo.bpm < math.inf):
                raise ValueError(f"{tempo} is not at finite seconds >= 0 with a finite bpm > 0")
        for meter in self.meters:
            if not (0 <= meter.time < math.inf and meter.numerator >= 1 and meter.denominator >= 1):
                raise ValueError(f"{meter} is not at finite seconds >= 0 with positive numbers")
        # Stable, by time alone: of two changes at one time the later one of the input holds.
        object.__setattr__(self, "tempos", tuple(sorted(self.tempos, key=lambda tempo: tempo.time)))
        object.__setattr__(self, "meters", tuple(sorted(self.meters, key=lambda meter: meter.time)))

    def _set(self, order: NDArray[np.intp], **columns: NDArray) -> None:
        for name, column in columns.items():
            in_order = column[order]  # a copy, so that the caller's array stays writeable
            in_order.flags.writeable = False
            object.__setattr__(self, name, in_order)

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
        """Everything later by `seconds`; earlier if negative, where events before 0 are moved to 0.

        Of the tempos that would lie at or before 0 the last stays, and so of the meters.
        """
        return replace(
            self,
            onset=np.maximum(self.onset + seconds, 0.0),
            pedal_time=np.maximum(self.pedal_time + seconds, 0.0),
            tempos=_changes_shifted(self.tempos, seconds),
            meters=_changes_shifted(self.meters, seconds),
        )

    def transposed(self, semitones: int) -> Performance:
        """Every pitch moved by `semitones`; ValueError if one leaves MIDI 0-127."""
        moved = self.pitch.astype(np.int64) + semitones
        _refuse("note", "pitch", moved, (moved < 0) | (moved > 127), "0-127")
        return replace(self, pitch=moved.astype(np.uint8))

    def sustained(self) -> Performance:
        """The same sound without pedal: keys held for their `sounding_durations`."""
        return replace(
            self,
            duration=self.sounding_durations(),
            pedal_time=_floats(),
            pedal_value=_bytes(),
            pedal_part=_bytes(),
        )

    def sounding_durations(self) -> Floats:
        """[N] seconds from each onset until its part's pedal rises or the key is struck again, if it was let go before.

        This is the one place where the sustain pedal becomes durations. A pedal that never rises rises at the end of
        the piece. A key that is held longer than that keeps its own duration.
        """
        return self._sounding

    @cached_property
    def _sounding(self) -> Floats:
        if not len(self.pedal_time) or not len(self):
            return self.duration
        if compiled := sequential.library():
            columns = (self.onset, self.duration, self.pitch, self.part)
            pedal = (self.pedal_time, self.pedal_value, self.pedal_part)
            sounding = sequential.sounding(compiled, columns, pedal, PEDAL_DOWN)
            sounding.flags.writeable = False
            return sounding
        key_end = self.onset + self.duration
        piece_end = max(float(key_end.max()), float(self.pedal_time[-1]))
        ringing_end = key_end.copy()
        for part in np.flatnonzero(np.bincount(self.pedal_part)):
            mine = self.pedal_part == part
            starts, stops = pedal_spans(self.pedal_time[mine], self.pedal_value[mine] >= PEDAL_DOWN, piece_end)
            if not len(starts):
                continue
            notes = np.flatnonzero(self.part == part)
            span = np.searchsorted(starts, key_end[notes], side="right") - 1
            held = (span >= 0) & (key_end[notes] < stops[np.maximum(span, 0)])
            ringing_end[notes[held]] = stops[span[held]]
        ringing_end = np.maximum(key_end, np.minimum(ringing_end, self._next_strike()))
        sounding = np.maximum(ringing_end - self.onset, self.duration)
        sounding.flags.writeable = False
        return sounding

    def without_overlaps(self) -> Performance:
        """Each key let go before the same part strikes it again; of two strikes at once the longer stays."""
        kept = self.take(self._first_of_each_strike())
        next_strike = kept._next_strike(same_part=True)
        duration = np.minimum(kept.duration, next_strike - kept.onset)
        # Rounded sums may pass the strike by a last bit, and a tick when they are written.
        passes = kept.onset + duration > next_strike
        return replace(kept, duration=np.where(passes, duration - np.spacing(kept.onset + duration), duration))

    def _next_strike(self, same_part: bool = False) -> Floats:
        """[N] seconds of the next later onset of the same pitch, inf where there is none."""
        key = self.pitch.astype(np.uint16) + (self.part.astype(np.uint16) << 8 if same_part else np.uint16(0))
        order = np.argsort(key, kind="stable")  # by onset within a key, as the notes are sorted by onset
        onset, key = self.onset[order], key[order]
        following = np.full(len(onset), np.inf)
        if len(onset):
            # Strikes at the same instant share the following strike, so walk over groups of equal (key, onset).
            begins = (key[1:] != key[:-1]) | (onset[1:] > onset[:-1])
            group_start = np.flatnonzero(np.concatenate(([True], begins)))
            next_start = np.append(group_start[1:], len(onset))
            same_key = key[group_start[:-1]] == key[group_start[1:]]
            group_next = np.append(np.where(same_key, onset[group_start[1:]], np.inf), np.inf)
            following = np.repeat(group_next, next_start - group_start)
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
    change = np.flatnonzero(down != np.concatenate(([False], down[:-1])))
    starts, stops = time[change[0::2]], time[change[1::2]]
    if len(stops) < len(starts):
        stops = np.r_[stops, piece_end]
    return starts, stops


def beside(tied: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Indices of the values that are tied, where `tied` [N - 1] says which successive ones of N are."""
    return np.flatnonzero(np.concatenate(([False], tied)) | np.append(tied, False))


def _changes_shifted(changes: tuple[Change, ...], seconds: float) -> tuple[Change, ...]:
    moved: list[Change] = [change._replace(time=max(change.time + seconds, 0.0)) for change in changes]
    at_start: list[Change] = [change for change in moved if change.time == 0.0]
    return tuple(at_start[-1:] + moved[len(at_start) :])


def _seconds(what: str, name: str, values: ArrayLike) -> Floats:
    seconds = np.asarray(values, np.float64)
    if len(seconds) and seconds.min() >= 0 and seconds.max() < math.inf:
        return seconds
    _refuse(what, name, seconds, ~(np.isfinite(seconds) & (seconds >= 0)), "finite seconds >= 0")
    return seconds


def _whole(what: str, name: str, values: ArrayLike, lowest: int, highest: int) -> Bytes:
    numbers = np.asarray(values)
    if numbers.dtype == np.uint8 and len(numbers) and lowest <= numbers.min() and numbers.max() <= highest:
        return numbers
    bad = (numbers < lowest) | (numbers > highest)
    if numbers.dtype.kind == "f":
        bad |= numbers != np.trunc(numbers)
    _refuse(what, name, numbers, bad, f"{lowest}-{highest}")
    return numbers.astype(np.uint8, copy=False)


def _refuse(what: str, name: str, values: NDArray, bad: NDArray[np.bool_], allowed: str) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{what} {first}: {name} {values[first]} is not in {allowed}")
