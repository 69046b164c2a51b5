"""What strangers send as music, checked before and after it is parsed. Only workers come here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pulse88 import midi_file
from pulse88.join import writable
from pulse88.midi_events import MidiError
from pulse88.notes import Note, Performance
from pulse88.serve.limits import Limits

PLAYED_PART_NAME = "Played"


class Refused(ValueError):
    """What can't be done with what was sent, and the HTTP status that says so."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Read(NamedTuple):
    """Music as it was read: its notes, the names of its parts, and remarks on what reading changed."""

    performance: Performance
    parts: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def read_midi(data: bytes, limits: Limits) -> Read:
    """A MIDI file; Refused if it is none or is too much."""
    _check_upload(data, limits)
    try:
        performance, report = midi_file.read(data)
    except MidiError as error:
        raise Refused(422, str(error).replace(f"these {len(data)} bytes: ", "the upload: ")) from error
    _check(performance, limits)
    return Read(performance, report.parts, tuple(report.lines()))


def read_played(data: bytes, limits: Limits) -> Read:
    """Notes that were given as JSON, as a MIDI file would hold them."""
    performance = _played_notes(data, limits)
    _check(performance, limits)
    return _as_written(performance, (PLAYED_PART_NAME,))


def read_rows(rows: list[list[float]], parts: list[str]) -> Read:
    """Rows of onset, duration, pitch, velocity and part, as a MIDI file would hold them."""
    if not rows:
        raise Refused(422, "there are no notes: play at least one")
    notes = [Note(on, long, int(pitch), int(velocity), int(part)) for on, long, pitch, velocity, part in rows]
    performance = Performance.from_notes(notes)
    return _as_written(performance, tuple(parts[part] for part in np.unique(performance.part)))


def _as_written(performance: Performance, names: tuple[str, ...]) -> Read:
    again, report = midi_file.read(midi_file.to_bytes(writable(performance), part_names=names))
    return Read(again, report.parts)


def _check(performance: Performance, limits: Limits) -> None:
    """Refused if it is too much."""
    if len(performance) > limits.notes:
        raise Refused(
            413, f"the upload has {len(performance):,} notes, at most {limits.notes:,} are read: cut it first"
        )
    if performance.end > limits.piece_seconds:
        hours, most = performance.end / 3600, limits.piece_seconds / 3600
        raise Refused(413, f"the upload lasts {hours:,.1f} hours, at most {most:g} are read: cut it first")


def _check_upload(data: bytes, limits: Limits) -> None:
    """Cheap checks of the first bytes, before anything is parsed."""
    kinds = {b"PK\x03\x04": "a ZIP archive", b"\x1f\x8b": "a gzip archive", b"ID3": "an MP3", b"OggS": "an Ogg file"}
    kinds |= {b"fLaC": "a FLAC file", b"\x89PNG": "a picture", b"%PDF": "a PDF", b"7z\xbc\xaf": "a 7z archive"}
    if not data:
        raise Refused(422, "the upload is empty: send the bytes of a MIDI file")
    for magic, name in kinds.items():
        if data.startswith(magic):
            remedy = "unpack it and send a MIDI file of it" if "archive" in name else "send a MIDI file (.mid)"
            raise Refused(415, f"the upload is {name}, no MIDI file: {remedy}")
    if data.startswith(b"MThd") and len(data) >= 12:
        tracks = int.from_bytes(data[10:12], "big")
        if max(tracks, data.count(b"MTrk")) > limits.tracks:
            raise Refused(
                413, f"the upload has {tracks:,} tracks, at most {limits.tracks} are read: merge some of them"
            )


def _played_notes(data: bytes, limits: Limits) -> Performance:
    """The performance of a JSON object with `notes` and perhaps `pedal`. Refused, naming the first bad one."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error}") from error
    if not isinstance(given, dict) or not isinstance(given.get("notes"), list):
        raise Refused(422, 'the body must be {"notes": [{"onset", "duration", "pitch", "velocity"}, ...]}')
    pedal = given.get("pedal") or []
    if not isinstance(pedal, list):
        raise Refused(422, 'pedal must be a list of {"time", "value"}')
    if unknown := sorted(set(given) - {"notes", "pedal"}):
        raise Refused(422, f"the body has unknown fields ({', '.join(map(str, unknown))[:80]}): take them out")
    if not given["notes"]:
        raise Refused(422, "there are no notes: play at least one")
    if max(len(given["notes"]), len(pedal)) > limits.played_notes:
        raise Refused(413, f"more than {limits.played_notes:,} notes: send fewer, or a MIDI file")
    columns = [_columns("note", given["notes"], ("onset", "duration", "pitch", "velocity"))]
    columns.append(_columns("pedal event", pedal, ("time", "value")))
    (onset, duration, pitch, velocity), (time, value) = columns
    return Performance(
        onset=onset,
        duration=duration,
        pitch=pitch,
        velocity=velocity,
        part=np.zeros(len(onset), np.uint8),
        pedal_time=time,
        pedal_value=value,
        pedal_part=np.zeros(len(time), np.uint8),
    )


def _columns(what: str, rows: list[Any], names: tuple[str, ...]) -> Iterator[np.ndarray]:
    for name in names:
        values = [row.get(name) if isinstance(row, dict) else None for row in rows]
        for index, value in enumerate(values):
            if type(value) not in (int, float) or not abs(value or 0) < 1e9:
                raise Refused(422, f"{what} {index}: {name} must be a number, not {str(value)[:40]}")
        yield np.array(values, np.float64)
