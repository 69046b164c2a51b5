"""Reading damaged MIDI files: what can be read is read, what was wrong is said, nothing crashes or hangs."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pulse88 import midi_events, sequential
from pulse88.midi_file import MidiError, read, to_bytes
from pulse88.notes import Meter, Performance, Tempo
from smf import ONE, control, damage, half_tick, meta, note, off, on, program, rows, smf, tempo, track


def test_a_missing_end_of_track() -> None:
    data = smf(track(*note(0, 5), end=b""))
    assert rows(data) == rows(ONE)
    assert "byte 30: track 1 has no end-of-track event" in damage(data)
    assert read(data).report.parser == "lenient"


def test_every_truncation_keeps_the_notes_before_it() -> None:
    data = smf(track(*note(0, 5), *note(1, 6, 61)), track(*note(0, 7, 62)))
    whole = rows(data)
    for length in range(len(data) - 4, 26, -1):
        got = rows(data[:length])
        cut = read(data[:length]).report
        complete = [row for row in got if row in whole]
        assert len(complete) >= len(got) - 1  # at most the note that was sounding lost its end
        assert cut.damage
        assert len(complete) + cut.unended_notes == len(got)
    assert rows(data[:-4]) == whole
    with pytest.raises(MidiError, match="the file ends within track 1"):
        read(data[:24])
    with pytest.raises(MidiError, match="within the MIDI header"):
        read(data[:13])


def test_junk_between_and_behind_the_chunks() -> None:
    first, second = track(*note(0, 5)), track(*note(0, 5, 61))
    clean = rows(smf(first, second))
    header = smf(first, second)[:14]
    assert rows(header + first + b"\xff\x00junk" + second) == clean
    assert "byte 34: 6 bytes that belong to no track" in damage(header + first + b"\xff\x00junk" + second)
    assert rows(header + first + second + b"\r\n") == clean
    assert rows(header + first + second + bytes(100)) == clean


def test_chunks_of_other_kinds_are_passed_over() -> None:
    data = smf(track(*note(0, 5)), track(*note(0, 5, 61)))
    other = b"XFIH" + struct.pack(">I", 4) + b"abcd"
    assert rows(data[:34] + other + data[34:]) == rows(data)
    assert not damage(data[:34] + other + data[34:])


@pytest.mark.parametrize("wrong", [0, 4, 5, 11, 13, 14, 22, 40, 2**31, 2**32 - 1])
def test_wrong_chunk_lengths(wrong: int) -> None:
    data = smf(track(*note(0, 5)), track(*note(0, 5, 61)))
    broken = data[:18] + struct.pack(">I", wrong) + data[22:]
    assert rows(broken) == rows(data)
    assert "track 1" in damage(broken)


def test_a_wrong_chunk_length_and_no_end_of_track() -> None:
    data = smf(track(*note(0, 5), end=b""), track(*note(0, 5, 61)))
    broken = data[:18] + b"\xff\xff\xff\xff" + data[22:]
    assert rows(broken) == rows(data)
    assert "wrong length of track 1" in damage(broken)


def test_a_track_that_goes_on_behind_its_end() -> None:
    early_end = track((0, on(60)), (1, meta(0x2F)), (4, off(60)))
    assert rows(smf(early_end)) == [(0, 5, 60, 64, 0)]
    assert "goes on after an end-of-track event" in damage(smf(early_end))


def test_padding_behind_the_end_of_a_track_is_none_of_its_events() -> None:
    for padding in (bytes(7), b"\x00" + on(61) + b"\x05" + off(61), b"\x00" + on(61) + b"\x00\xf4"):
        padded = smf(track(*note(0, 5), end=b"\x00\xff\x2f\x00" + padding))
        assert rows(padded) == rows(ONE)
        assert not damage(padded)


def test_a_riff_wrapper() -> None:
    chunk = b"data" + struct.pack("<I", len(ONE)) + ONE
    wrapped = b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"RMID" + chunk + b"DISPxxxx"
    assert rows(wrapped) == rows(ONE)
    assert "RMID" in damage(wrapped)


def test_bytes_before_the_header() -> None:
    assert rows(bytes(128) + ONE) == rows(ONE)
    assert "128 bytes before the MIDI header" in damage(bytes(128) + ONE)


def test_a_header_of_another_size_or_format() -> None:
    long_header = b"MThd" + struct.pack(">IHHH", 8, 1, 1, 480) + b"??" + ONE[14:]
    assert rows(long_header) == rows(ONE)
    assert not damage(long_header)
    absurd = b"MThd" + struct.pack(">IHHH", 2**31, 9, 5, 480) + ONE[14:]
    assert rows(absurd) == rows(ONE)
    for words in ("format 9", "a header of 2147483648 bytes", "promises 5 tracks, 1 are there"):
        assert words in damage(absurd)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"\xf4", "status byte 0xf4"),
        (b"\xf8", "status byte 0xf8"),
        (meta(1, b"abc")[:-3], "longer than what is left"),
        (b"\xf0\xff\xff\xff\xff\x7f", "stops within an event"),
    ],
)
def test_what_comes_before_a_senseless_event_is_kept(bad: bytes, words: str) -> None:
    data = smf(track(*note(0, 5), (0, bad), end=b""))
    assert rows(data) == rows(ONE)
    assert words in damage(data)


def test_a_delta_time_of_five_bytes() -> None:
    data = smf(track(*note(0, 5), end=b"\xff\xff\xff\xff\x7f" + on(61) + b"\x00" + off(61)))
    assert rows(data) == rows(ONE)
    assert "delta time of more than 4 bytes" in damage(data)


def test_data_without_status() -> None:
    with pytest.raises(MidiError, match="data that no status byte explains"):
        read(smf(track((0, b"\x40\x40"), *note(0, 5))))


def test_data_bytes_above_127() -> None:
    data = smf(track((0, bytes((0x90, 60, 200))), (1, bytes((0x90, 200, 64))), (4, off(60))))
    assert rows(data) == [(0, 5, 60, 127, 0)]
    assert "1 messages with a key" in damage(data)
    assert "1 velocities" in damage(data)


def test_tracks_that_claim_each_other_end_soon() -> None:
    count = 20_000
    size = 12 * count
    claims = b"".join(b"MTrk" + struct.pack(">I", size - 12 * i - 9) + b"\0\xff\x2f\0" for i in range(count))
    with pytest.raises(MidiError, match="tracks within tracks"):
        read(smf(claims))
    nested = b"".join(b"MTrk" + struct.pack(">I", size - 12 * i - 8) + b"\0" + on(60) for i in range(count))
    endless = (b"MTrk\xff\xff\xff\xff\0" + on(60)) * count
    began = time.perf_counter()
    assert len(read(smf(endless)).performance) == count
    for body in (nested, b"MTrk\0\0\0\0" * 60_000, b"MTrk\0\0\x0f\xff" * 60_000, b"abcd\0\0\0\0" * 60_000):
        try:
            read(smf(body))
        except MidiError:
            continue
    assert time.perf_counter() - began < 20


# Thousands of broken files


def good_files() -> list[bytes]:
    rng = np.random.default_rng(0)
    count = 60
    piece = Performance(
        onset=rng.uniform(0, 20, count),
        duration=rng.uniform(0.1, 2, count),
        pitch=rng.integers(30, 90, count),
        velocity=rng.integers(1, 128, count),
        part=rng.integers(0, 2, count),
        pedal_time=np.arange(0.0, 20),
        pedal_value=np.arange(20) % 2 * 127,
        pedal_part=np.zeros(20, np.uint8),
        tempos=tuple(Tempo(k, 100 + k) for k in range(10)),
        meters=(Meter(0, 3, 4),),
    ).without_overlaps()
    mixed = smf(
        track((0, meta(3, b"conductor")), (0, tempo(400_000)), (0, b"\xf0\x05\x7e\x7f\x09\x01\xf7"), (960, tempo(1))),
        track(
            (0, program(3)),
            *note(0, 9),
            (0, on(64)),
            (9, b"\x40\x00"),
            (5, control(127)),
            (0, program(30)),
            *note(1, 1),
        ),
        track((0, b"\xd0\x10"), (1, b"\x11"), *note(0, 200, 35, 9), *note(0, 300, 50, 2), (2, b"\xe2\x00\x40")),
    )
    patterns = smf(*[track(*note(k, 50, 40 + k), *note(1, 3)) for k in range(5)], form=2, division=0xE728)
    return [to_bytes(piece, texts=["some text"]), mixed, patterns, ONE]


def mutations(files: list[bytes], count: int) -> Iterator[bytes]:
    rng = random.Random(5)
    for k in range(count):
        data = bytearray(files[k % len(files)])
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            at = rng.randrange(len(data) + 1)
            size = rng.choice([1, 1, 2, 4, 16, 100])
            match rng.randrange(6):
                case 0 if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
                case 1 if at < len(data):
                    data[at] = rng.choice([0, 0x7F, 0x80, 0x90, 0xC0, 0xF0, 0xF7, 0xFF, rng.randrange(256)])
                case 2:
                    del data[at : at + size]
                case 3:
                    data[at:at] = rng.randbytes(size)
                case 4:
                    data[at:at] = data[max(at - size, 0) : at]
                case 5 if rng.random() < 0.3:
                    del data[at:]
        yield bytes(data)


def check_survives(data: bytes) -> bool:
    """Whether it could be read: then it is a whole performance that can be written; else the error says why."""
    began = time.perf_counter()
    try:
        piece, report = read(data)
    except MidiError as error:
        assert str(error).count(": ") >= 1 and len(str(error)) < 3000
        return False
    finally:
        assert time.perf_counter() - began < 20, "a hang"
    assert 0 < len(piece) == report.notes
    assert all(report.lines())
    assert set(piece.pedal_part.tolist()) <= set(piece.part.tolist()) == set(range(len(report.parts)))
    try:
        written = to_bytes(piece.without_overlaps())
    except ValueError as error:
        assert "too late" in str(error)
    else:
        assert len(read(written).performance) == len(piece.without_overlaps())
    return True


def test_thousands_of_mutations() -> None:
    outcomes = [check_survives(data) for data in mutations(good_files(), 2400)]
    assert 1200 < sum(outcomes) < 2400


def parsed(data: bytes) -> str:
    """All events of a file, or why there are none."""
    try:
        events = midi_events.parse(data)
    except MidiError as error:
        return str(error)
    return repr([(x.dtype.name, x.tolist()) if isinstance(x, np.ndarray) else x for x in events])


def test_compiled_or_not_and_in_strides_of_any_length_the_same_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    running = [(k % 200, bytes((60 + k % 9, k % 64))) for k in range(300)]
    long_track = smf(track((0, on(60)), *running, *note(0, 70_000)))
    files = list(mutations([*good_files(), long_track], 600))
    found = [[parsed(data) for data in files]]  # by the compiled loops, where there was a compiler
    monkeypatch.setattr(sequential, "library", lambda: None)
    for stride in (1, 4, 8):
        monkeypatch.setattr(midi_events, "_STRIDE", stride)
        found.append([parsed(data) for data in files])
    assert found[1] == found[2] == found[3] == found[0]


def corpus() -> list[Path]:
    default = Path(__file__).parents[1].parent / "shared" / "corpus"
    folder = Path(os.environ.get("PULSE88_CORPUS", default))
    return sorted(folder.rglob("*.mid"))


@pytest.mark.skipif(not corpus(), reason="no .mid files under PULSE88_CORPUS")
def test_real_files_and_their_mutations() -> None:
    files = sorted(corpus()[::200], key=lambda f: f.stat().st_size)[:20]
    contents = [file.read_bytes() for file in files]
    for data in contents:
        piece, report = read(data)
        assert report.notes >= 100
        cut = piece.without_overlaps()
        back = read(to_bytes(cut)).performance
        np.testing.assert_allclose(np.sort(back.onset), np.sort(cut.onset), rtol=0, atol=half_tick(cut))
    assert sum(check_survives(data) for data in mutations(contents, 200)) > 50
