"""MIDI files to performances and back: tempo map, pedal, which notes count as piano, what was repaired.

Shape legend: N notes, E channel messages. A lane is one (track, channel) pair; a lane that plays piano is a part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pulse88 import midi_events, midi_strikes, midi_write, sequential
from pulse88.midi_events import Events, MidiError
from pulse88.notes import Meter, Performance, Tempo

__all__ = ["MidiError", "Reading", "ReadingReport", "read", "read_texts", "to_bytes", "write"]

PIANO_PROGRAMS = 8  # General MIDI 0-7, harpsichord and clavinet among them
MAX_NOTES = 2_000_000
MAX_PARTS = 256
SHORTEST = 0.05  # seconds given to a note of no length
LONGEST_UNENDED = 8.0  # seconds after which a note that is never let go ends; a piano string has died away
_DRUMS = 9  # channel 10 as musicians count
_DEFAULT_TEMPO = 500_000  # microseconds a quarter note, 120 bpm
_FAMILIES = (  # eight programs each
    *("piano", "chromatic percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass"),
    *("reed", "pipe", "synth lead", "synth pad", "synth effects", "ethnic", "percussive", "sound effects"),
)

Ints = NDArray[np.int64]

write = midi_write.write
to_bytes = midi_write.to_bytes


@dataclass(frozen=True)
class ReadingReport:
    """What was read, left out and repaired."""

    format: int  # 0, 1 or 2
    tracks: int  # in the file
    notes: int  # read
    parts: tuple[str, ...]  # names of the parts: track name, or track and channel
    drum_notes: int  # left out
    other_programs: tuple[tuple[int, int], ...]  # (General MIDI program 0-127, notes left out), by program
    unended_notes: int  # whose note-off never comes
    zero_length_notes: int  # given SHORTEST seconds
    dropped_tempos: int  # of 0 microseconds, or incomplete
    damage: tuple[str, ...]  # against the standard, with the byte in the file

    @property
    def parser(self) -> str:
        """`strict` for a file after the standard, `lenient` for one that was read as well as could be."""
        return "lenient" if self.damage else "strict"

    def lines(self) -> list[str]:
        """Sentences for people; the first always, the others where there is something to say."""
        lines = [f"format {self.format}, {_count(self.tracks, 'track')}, {_count(self.notes, 'piano note')}"]
        if self.format == 2 and self.tracks > 1:
            lines.append("the tracks are patterns of their own (format 2), played one after another")
        if len(self.parts) > 1:
            lines.append(f"{len(self.parts)} parts merged, each with its own pedal: {_listed(self.parts)}")
        if len(self.parts) > MAX_PARTS:
            lines.append(f"parts from the {MAX_PARTS}th on are one part")
        if self.drum_notes or self.other_programs:
            lines.append(f"left out: {_left_out(self.drum_notes, self.other_programs)}")
        if self.unended_notes:
            lines.append(
                f"{_count(self.unended_notes, 'note')} without end: ended where the key is struck again or the track "
                f"ends, after {LONGEST_UNENDED:g} s at most"
            )
        if self.zero_length_notes:
            lines.append(f"{_count(self.zero_length_notes, 'note')} of no length, given {1000 * SHORTEST:.0f} ms")
        if self.dropped_tempos:
            lines.append(f"{_count(self.dropped_tempos, 'tempo change')} without sense, ignored")
        if self.damage:
            lines.append(f"read leniently: {_listed(self.damage, '; ')}")
        return lines


class Reading(NamedTuple):
    """A performance and how it was come by."""

    performance: Performance
    report: ReadingReport


def read(source: str | Path | bytes) -> Reading:
    """The piano of a MIDI file: notes on General MIDI programs 0-7 or on no program, drums never.

    Each track and channel that plays piano is a part with its own CC64. Overlapping notes of one key end first in,
    first out; where a note-off is missing, each note-off ends the latest strike. A program change holds for its track
    and channel; those of a track without notes hold for the channel in every track that has none. Patterns of format
    2 follow one another. MidiError for what is no MIDI file, or has no piano note in it, or too many.
    """
    name = _name_of(source)
    try:
        return _read(midi_events.parse(_bytes_of(source)))
    except MidiError as error:
        raise MidiError(f"{name}: {error}") from error


def read_texts(source: str | Path | bytes) -> list[str]:
    """All text events (meta type 1), track by track; what is not UTF-8 is taken as Latin-1. MidiError as `read`."""
    name = _name_of(source)
    try:
        metas = midi_events.parse(_bytes_of(source)).metas
    except MidiError as error:
        raise MidiError(f"{name}: {error}") from error
    return [_text(meta.data) for meta in metas if meta.kind == midi_events.TEXT]


def _name_of(source: str | Path | bytes) -> str:
    return f"these {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _bytes_of(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    path = Path(source)
    try:
        with path.open("rb") as file:
            return file.read(midi_events.MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise MidiError("there is no such file: check the name and the folder") from error
    except IsADirectoryError as error:
        raise MidiError("this is a folder: name one MIDI file in it") from error
    except (OSError, ValueError) as error:
        raise MidiError(f"can't be read ({error}): check its name and permissions") from error


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


class _Clock:
    """Ticks to seconds in float64, exact to its rounding: microseconds times ticks are summed as whole numbers."""

    def __init__(self, events: Events, tempo_ticks: Ints, tempos: Ints) -> None:
        self._starts = np.concatenate(([0], tempo_ticks))
        self._microseconds = np.concatenate(([_DEFAULT_TEMPO], tempos))
        self._unit = (events.division & 0x7FFF) * 1e6
        if events.division & 0x8000:  # SMPTE: frames a second, negated, and ticks a frame; tempos mean nothing.
            frames = 256 - (events.division >> 8)
            self._starts, self._microseconds = np.zeros(1, np.int64), np.ones(1, np.int64)
            self._unit = (30_000 / 1001 if frames == 29 else frames) * (events.division & 0xFF)
        passed = np.diff(self._starts) * self._microseconds[:-1].astype(np.float64)
        self._passed = np.concatenate(([0.0], np.cumsum(passed)))

    def seconds(self, ticks: Ints) -> NDArray[np.float64]:
        if compiled := sequential.library():
            tempos = self._starts, self._microseconds, self._passed
            return sequential.seconds(compiled, ticks, *tempos, self._unit)
        at = np.searchsorted(self._starts, ticks, side="right") - 1 if len(self._starts) > 1 else 0
        since = (ticks - self._starts[at]).astype(np.float64)
        return (self._passed[at] + since * self._microseconds[at]) / self._unit


def _read(events: Events) -> Reading:
    tracks = len(events.track_end)
    if events.format == 2 and tracks > 1:
        offset = np.cumsum(events.track_end) - events.track_end
        metas = [meta._replace(tick=meta.tick + int(offset[meta.track])) for meta in events.metas]
        events = events._replace(
            tick=events.tick + offset[events.track], track_end=events.track_end + offset, metas=metas
        )
    tempo_ticks, tempos, dropped_tempos = _tempos(events)
    clock = _Clock(events, tempo_ticks, tempos)

    lane = events.track * 16 + (events.status & 15)
    strike, release, unended = midi_strikes.paired(events, lane)
    if len(strike) > MAX_NOTES:
        raise MidiError(f"{len(strike):,} notes, at most {MAX_NOTES:,} are read: take a smaller file")
    program = midi_strikes.programs(events, lane, strike)
    is_drum = lane[strike] & 15 == _DRUMS
    is_other = (program >= PIANO_PROGRAMS) & ~is_drum
    piano = ~(is_drum | is_other)
    others = tuple(sorted(Counter(program[is_other].tolist()).items()))
    if not piano.any():
        raise MidiError(_no_piano(int(is_drum.sum()), others, events))
    if not piano.all():
        strike, release, unended = strike[piano], release[piano], unended[piano]

    onset = clock.seconds(events.tick[strike])
    duration = clock.seconds(release) - onset
    duration[unended] = np.minimum(duration[unended], LONGEST_UNENDED)
    is_empty = duration <= 0
    duration[is_empty] = SHORTEST

    part_of_lane = np.full(tracks * 16, -1)
    lanes = np.flatnonzero(np.bincount(lane[strike], minlength=tracks * 16))
    part_of_lane[lanes] = np.minimum(np.arange(len(lanes)), MAX_PARTS - 1)
    is_pedal = ((events.status & 0xF0) == 0xB0) & (events.data1 == 64)
    pedal = np.flatnonzero(is_pedal)
    pedal = pedal[part_of_lane[lane[pedal]] >= 0]
    performance = Performance(
        onset=onset,
        duration=duration,
        pitch=events.data1[strike],
        velocity=events.data2[strike],
        part=part_of_lane[lane[strike]].astype(np.uint8),
        pedal_time=clock.seconds(events.tick[pedal]),
        pedal_value=events.data2[pedal],
        pedal_part=part_of_lane[lane[pedal]].astype(np.uint8),
        tempos=tuple(
            Tempo(time, 60e6 / microseconds)
            for time, microseconds in zip(clock.seconds(tempo_ticks).tolist(), tempos.tolist(), strict=True)
        ),
        meters=_meters(events, clock),
    )
    report = ReadingReport(
        format=events.format,
        tracks=tracks,
        notes=len(performance),
        parts=_part_names(events, lanes),
        drum_notes=int(is_drum.sum()),
        other_programs=others,
        unended_notes=int(unended.sum()),
        zero_length_notes=int((is_empty & ~unended).sum()),
        dropped_tempos=dropped_tempos,
        damage=tuple(events.damage),
    )
    return Reading(performance, report)


def _tempos(events: Events) -> tuple[Ints, Ints, int]:
    """Ticks, ascending strictly, and microseconds a quarter note of the tempo map; and how many made no sense."""
    found = [(m.tick, m.data) for m in events.metas if m.kind == midi_events.TEMPO]
    in_order = sorted(
        ((tick, int.from_bytes(data[:3], "big")) for tick, data in found if len(data) >= 3 and any(data[:3])),
        key=lambda row: row[0],
    )
    at = dict(in_order)  # of several at one tick the last holds
    return np.array(list(at), np.int64), np.array(list(at.values()), np.int64), len(found) - len(in_order)


def _meters(events: Events, clock: _Clock) -> tuple[Meter, ...]:
    at = {
        meta.tick: (meta.data[0], 2 ** meta.data[1])
        for meta in sorted((m for m in events.metas if m.kind == midi_events.METER), key=lambda m: m.tick)
        if len(meta.data) >= 2 and meta.data[0] and meta.data[1] <= 7
    }
    times = clock.seconds(np.array(list(at), np.int64)).tolist()
    return tuple(Meter(time, *meter) for time, meter in zip(times, at.values(), strict=True))


def _part_names(events: Events, lanes: NDArray[np.intp]) -> tuple[str, ...]:
    named = {m.track: _text(m.data).strip() for m in reversed(events.metas) if m.kind == midi_events.TRACK_NAME}
    several = np.bincount(lanes // 16)
    names = []
    for track, channel in (divmod(lane, 16) for lane in lanes.tolist()):
        name = named.get(track) or f"track {track + 1}"
        names.append(f"{name} (channel {channel + 1})" if several[track] > 1 else name)
    return tuple(names)


def _no_piano(drum_notes: int, others: tuple[tuple[int, int], ...], events: Events) -> str:
    if drum_notes or others:
        return (
            f"no piano in it, only {_left_out(drum_notes, others)}: give a file with a piano track, or set the "
            f"program of the track that shall count as piano to 0"
        )
    hint = f" ({_listed(events.damage, '; ')})" if events.damage else ""
    return f"no notes in its {_count(len(events.track_end), 'track')}{hint}: give a file with music in it"


def _left_out(drum_notes: int, others: tuple[tuple[int, int], ...]) -> str:
    drums = [f"{_count(drum_notes, 'note')} of drums (channel 10)"] if drum_notes else []
    return _listed([*drums, *(f"{_count(n, 'note')} of {_FAMILIES[p // 8]} (program {p})" for p, n in others)])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _listed(items: Sequence[str], separator: str = ", ") -> str:
    shown = list(items[:8])
    return separator.join([*shown, f"{len(items) - 8} more"] if len(items) > 8 else shown)
