"""Standard MIDI Files built byte by byte, and what is read from them."""

from __future__ import annotations

import struct

from pulse88.midi_file import read, to_bytes
from pulse88.notes import Performance

TICK = 1 / 960  # seconds, at 480 ticks a quarter and 120 bpm
Row = tuple[int, int, int, int, int]  # onset and duration in ticks, pitch, velocity, part


def var(number: int) -> bytes:
    digits = [number & 127]
    while number := number >> 7:
        digits.insert(0, number & 127 | 128)
    return bytes(digits)


def meta(kind: int, data: bytes = b"") -> bytes:
    return bytes((0xFF, kind)) + var(len(data)) + data


def track(*events: tuple[int, bytes], end: bytes = b"\x00\xff\x2f\x00") -> bytes:
    """A chunk of (delta, event)."""
    body = b"".join(var(delta) + event for delta, event in events) + end
    return b"MTrk" + struct.pack(">I", len(body)) + body


def smf(*tracks: bytes, form: int = 1, division: int = 480) -> bytes:
    return b"MThd" + struct.pack(">IHHH", 6, form, len(tracks), division) + b"".join(tracks)


def on(pitch: int, velocity: int = 64, channel: int = 0) -> bytes:
    return bytes((0x90 | channel, pitch, velocity))


def off(pitch: int, channel: int = 0) -> bytes:
    return bytes((0x80 | channel, pitch, 0))


def control(value: int, channel: int = 0, number: int = 64) -> bytes:
    return bytes((0xB0 | channel, number, value))


def program(number: int, channel: int = 0) -> bytes:
    return bytes((0xC0 | channel, number))


def tempo(microseconds: int) -> bytes:
    return meta(0x51, microseconds.to_bytes(3, "big"))


def note(start: int, length: int, pitch: int = 60, channel: int = 0) -> list[tuple[int, bytes]]:
    return [(start, on(pitch, channel=channel)), (length, off(pitch, channel))]


def rows(data: bytes, tick: float = TICK) -> list[Row]:
    return [
        (round(n.onset / tick), round(n.duration / tick), n.pitch, n.velocity, n.part) for n in read(data).performance
    ]


def damage(data: bytes) -> str:
    return "; ".join(read(data).report.damage)


ONE = smf(track(*note(0, 5)))


def half_tick(piece: Performance) -> float:
    """Seconds, of the file that is written; with room for float64."""
    division = struct.unpack(">H", to_bytes(piece)[12:14])[0]
    slowest = max([0.5, *(60 / tempo.bpm for tempo in piece.tempos)])
    return slowest / division / 2 + 3e-9
