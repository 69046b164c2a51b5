"""Performances to MIDI files: format 1, ticks fine enough for every onset, the tempo map kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pulse88.midi_events import END_OF_TRACK, METER, TEMPO, TEXT, TRACK_NAME
from pulse88.notes import Performance
from pulse88.written import write_whole

LONGEST_TICK = 250.0  # microseconds
_DEFAULT_TEMPO = 500_000  # microseconds a quarter note
_LONGEST_DELTA = 2**28 - 1  # ticks, in four bytes of seven bits
_LAST_TICK = 2**40
_FILLER = b"\xff\x7f\x00"  # an empty sequencer-specific event, to bridge what no delta time can
_RELEASE_VELOCITY = 64  # what the standard gives keyboards that don't sense it

Event = tuple[int, bytes]  # tick from the start, and the event without its delta time


def write(
    performance: Performance, path: str | Path, *, texts: Sequence[str] = (), part_names: Sequence[str] = ()
) -> None:
    """Writes the bytes of `to_bytes`, whole or not at all; ValueError as there, OSError if `path` can't be written."""
    write_whole(Path(path), to_bytes(performance, texts=texts, part_names=part_names))


def to_bytes(performance: Performance, *, texts: Sequence[str] = (), part_names: Sequence[str] = ()) -> bytes:
    """A Standard MIDI File of format 1: a conductor track with tempos, meters and `texts`, then a track a part.

    Equal input gives equal bytes. A tick lasts at most 0.25 ms at any tempo of the map, or what 32,767 ticks a quarter
    note allow at tempos under 7.3 bpm (0.51 ms at the slowest). Onsets, ends, pedal and tempo changes take the nearest
    tick, a note one tick at least; of tempos on one tick only the last is heard. Tempos are whole microseconds a
    quarter note, as MIDI has them. Part i plays on channel i without channel 10, parts from 15 on share the last
    channel; parts are numbered anew on reading if some have no note. Text is UTF-8. `part_names` are by part number.
    ValueError for overlapping notes of one key and part, and for tempos and meters that MIDI can't express.
    """
    grid = _TickGrid(performance)
    conductor = [(0, _meta(TEXT, text.encode())) for text in texts]
    conductor += [
        (tick, _meta(TEMPO, int(tempo).to_bytes(3, "big")))
        for tick, tempo in zip(grid.tempo_ticks, grid.tempos, strict=True)
    ]
    meters = [_meter(*meter[1:]) for meter in performance.meters]
    conductor += list(zip(grid.ticks([m.time for m in performance.meters]).tolist(), meters, strict=True))
    tracks = [_chunk(conductor)]
    parts = sorted({*performance.part.tolist(), *performance.pedal_part.tolist()})
    for part in parts:
        named = part < len(part_names)
        name = part_names[part] if named else "Piano" if len(parts) == 1 else f"Piano {part + 1}"
        tracks.append(_chunk(_part_events(performance, part, name, grid)))
    header = b"MThd" + b"".join(n.to_bytes(2, "big") for n in (0, 6, 1, len(tracks), grid.division))
    return header + b"".join(tracks)


class _TickGrid:
    """Seconds to ticks. Tempo changes are put on ticks one after another, each counted from where the one before came
    to lie, so that their rounding never adds up."""

    def __init__(self, performance: Performance) -> None:
        tempos = [_microseconds(tempo.bpm) for tempo in performance.tempos]
        slowest = max([_DEFAULT_TEMPO, *tempos])
        self.division = min(-(-slowest // (480 * int(LONGEST_TICK))) * 480, 32_767)
        self.tempo_ticks: list[int] = []
        self.tempos: list[int] = []
        ticks, microseconds, seconds = [0], [_DEFAULT_TEMPO], [0.0]
        for (time, _), tempo in zip(performance.tempos, tempos, strict=True):
            passed = max(round((time - seconds[-1]) * self.division * 1e6 / microseconds[-1]), 0)
            self.tempo_ticks.append(ticks[-1] + passed)
            self.tempos.append(tempo)
            seconds.append(seconds[-1] + passed * microseconds[-1] / (self.division * 1e6))
            ticks.append(self.tempo_ticks[-1])
            microseconds.append(tempo)
        self._ticks = np.array(ticks)
        self._seconds = np.array(seconds)
        self._rate = self.division * 1e6 / np.array(microseconds)  # ticks a second

    def ticks(self, seconds: Sequence[float] | NDArray[np.float64]) -> NDArray[np.int64]:
        """Nearest ticks; ValueError beyond what can sensibly be written."""
        times = np.asarray(seconds, np.float64)
        at = np.searchsorted(self._seconds, times, side="right") - 1
        ticks = self._ticks[at] + np.rint((times - self._seconds[at]) * self._rate[at])
        if (ticks > _LAST_TICK).any():
            raise ValueError(f"{times.max():g} s is too late for a MIDI file: shift the music to an earlier time")
        return ticks.astype(np.int64)


def _microseconds(bpm: float) -> int:
    microseconds = 60e6 / bpm if bpm > 0 else 0.0
    if not 0.5 <= microseconds < 2**24 - 0.5:
        raise ValueError(f"a tempo of {bpm:g} bpm can't be written to MIDI: give 3.58 to 60,000,000 quarters a minute")
    return round(microseconds)


def _meter(numerator: int, denominator: int) -> bytes:
    power = denominator.bit_length() - 1
    if not 1 <= numerator <= 255 or denominator != 2**power or power > 7:
        raise ValueError(
            f"a meter of {numerator}/{denominator} can't be written to MIDI: numerators are 1-255, denominators 1-128 "
            "and powers of two"
        )
    return _meta(METER, bytes((numerator, power, 24, 8)))


def _part_events(performance: Performance, part: int, name: str, grid: _TickGrid) -> list[Event]:
    """The events of one part in order: at one tick pedal, then note-offs, then note-ons."""
    notes = performance.take(performance.part == part)
    start = grid.ticks(notes.onset)
    end_time = notes.onset + notes.duration
    end_time -= np.maximum(1e-9, 4 * np.spacing(end_time))  # A rounded sum may pass the next strike.
    end = grid.ticks(np.maximum(end_time, notes.onset))
    by_key = np.lexsort((end, start, notes.pitch))
    clash = (np.diff(notes.pitch[by_key].astype(np.int64)) == 0) & (end[by_key[:-1]] > start[by_key[1:]])
    if clash.any():
        first = by_key[np.flatnonzero(clash)[0]]
        raise ValueError(
            f"part {part}: key {notes.pitch[first]}, struck at {notes.onset[first]:.3f} s, is struck again before it "
            "is let go, which MIDI can't tell apart: call without_overlaps() first"
        )
    end = np.maximum(end, start + 1)
    channel = min(part if part < 9 else part + 1, 15)
    mine = performance.pedal_part == part
    events = [(0, _meta(TRACK_NAME, name.encode())), (0, bytes((0xC0 | channel, 0)))]
    timed = [
        (tick, 0, index, bytes((0xB0 | channel, 64, value)))
        for index, (tick, value) in enumerate(
            zip(grid.ticks(performance.pedal_time[mine]).tolist(), performance.pedal_value[mine].tolist(), strict=True)
        )
    ]
    rows = zip(start.tolist(), end.tolist(), notes.pitch.tolist(), notes.velocity.tolist(), strict=True)
    for index, (on, off, pitch, velocity) in enumerate(rows):
        timed.append((on, 2, index, bytes((0x90 | channel, pitch, velocity))))
        timed.append((off, 1, index, bytes((0x80 | channel, pitch, _RELEASE_VELOCITY))))
    return events + [(tick, event) for tick, _, _, event in sorted(timed)]


def _meta(kind: int, data: bytes) -> bytes:
    return bytes((0xFF, kind)) + _variable_length(len(data)) + data


def _chunk(events: Iterable[Event]) -> bytes:
    """A track chunk of events in any order of time (those of one tick stay in theirs), its end at the last of them."""
    body = bytearray()
    now = 0
    for tick, event in sorted(events, key=lambda e: e[0]):
        while tick - now > _LONGEST_DELTA:
            body += _variable_length(_LONGEST_DELTA) + _FILLER
            now += _LONGEST_DELTA
        body += _variable_length(tick - now) + event
        now = tick
    body += b"\x00" + _meta(END_OF_TRACK, b"")
    return b"MTrk" + len(body).to_bytes(4, "big") + bytes(body)


def _variable_length(number: int) -> bytes:
    assert 0 <= number <= _LONGEST_DELTA
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(number & 0x7F | 0x80)
    return bytes(reversed(digits))
