"""Reading sound MIDI files, built here byte by byte, and refusing what is none."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulse88 import midi_events, midi_file
from pulse88.midi_file import MidiError, read, read_texts
from pulse88.notes import Meter, Note, Tempo
from smf import ONE, TICK, Row, control, meta, note, off, on, program, rows, smf, tempo, track, var


def test_one_note() -> None:
    reading = read(ONE)
    assert list(reading.performance) == [Note(0, 5 * TICK, 60, 64)]
    assert reading.report.lines() == ["format 1, 1 track, 1 piano note"]
    assert reading.report.parser == "strict"


def test_velocity_zero_lets_go() -> None:
    assert rows(smf(track((0, on(60)), (7, on(60, 0)), (3, on(60)), (2, off(60))))) == [
        (0, 7, 60, 64, 0),
        (10, 2, 60, 64, 0),
    ]


def test_overlapping_notes_of_a_key_end_first_in_first_out() -> None:
    events = [(0, on(60, 10)), (10, on(60, 20)), (5, off(60)), (20, off(60))]
    assert rows(smf(track(*events))) == [(0, 15, 60, 10, 0), (10, 25, 60, 20, 0)]


def test_a_note_on_before_the_note_off_of_its_tick() -> None:
    events = [(0, on(60)), (5, on(60)), (0, off(60)), (5, off(60))]
    assert rows(smf(track(*events))) == [(0, 5, 60, 64, 0), (5, 5, 60, 64, 0)]


def test_idle_note_offs_end_nothing_later() -> None:
    events = [(0, off(60)), (0, on(60)), (4, off(60)), (2, off(60)), (1, on(60)), (3, off(60)), (0, off(61))]
    reading = read(smf(track(*events)))
    assert rows(smf(track(*events))) == [(0, 4, 60, 64, 0), (7, 3, 60, 64, 0)]
    assert reading.report.unended_notes == 0


def test_the_same_key_on_two_channels_and_tracks() -> None:
    first = [(0, on(60)), (2, on(60, 50, 1)), (5, off(60)), (5, off(60, 1))]
    data = smf(track(*first), track(*note(1, 3)))
    assert rows(data) == [(0, 7, 60, 64, 0), (1, 3, 60, 64, 2), (2, 10, 60, 50, 1)]


def test_an_unended_note_ends_where_the_key_is_struck_again() -> None:
    # First in, first out would give the lost note-off's gap to every later note of the key.
    events = [(0, on(60)), (10, on(60)), (5, off(60)), (5, on(60)), (5, off(60))]
    reading = read(smf(track(*events)))
    assert rows(smf(track(*events))) == [(0, 10, 60, 64, 0), (10, 5, 60, 64, 0), (20, 5, 60, 64, 0)]
    assert reading.report.unended_notes == 1
    assert "1 note without end" in reading.report.lines()[1]


def test_an_unended_note_ends_with_its_track() -> None:
    assert rows(smf(track((0, on(60)), *note(3, 4, 62), end=var(9) + meta(0x2F)))) == [
        (0, 16, 60, 64, 0),
        (3, 4, 62, 64, 0),
    ]


def test_an_unended_note_ends_after_8_seconds() -> None:
    piece = read(smf(track((0, on(60)), *note(960 * 60, 4, 62)))).performance
    assert piece.duration.tolist() == pytest.approx([8.0, 4 * TICK])


def test_a_note_off_in_another_track_ends_nothing() -> None:
    reading = read(smf(track((0, on(60)), (9, off(61))), track((5, off(60)))))
    assert round(reading.performance.duration[0] / TICK) == 9
    assert reading.report.unended_notes == 1


def test_an_unended_note_at_the_very_end_of_its_track_is_short() -> None:
    reading = read(smf(track(*note(0, 5), (0, on(61)))))
    assert reading.performance.duration.tolist() == pytest.approx([5 * TICK, 0.05])
    assert (reading.report.unended_notes, reading.report.zero_length_notes) == (1, 0)


def test_notes_of_no_length_become_audible() -> None:
    reading = read(smf(track(*note(0, 0), *note(0, 0, 62), *note(5, 5, 64))))
    assert reading.performance.duration.tolist() == pytest.approx([0.05, 0.05, 5 * TICK])
    assert reading.report.zero_length_notes == 2
    assert "2 notes of no length, given 50 ms" in reading.report.lines()


def paired_by_hand(events: list[tuple[int, bytes]]) -> list[Row]:
    """Note-offs end the first of the strikes that sound; the last, if one of the key is never let go."""
    struck: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (channel, pitch) -> (tick, velocity or 0)
    now = 0
    for delta, (status, pitch, velocity) in events:
        now += delta
        struck.setdefault((status & 15, pitch), []).append((now, velocity if status & 0x10 else 0))
    result = []
    for (channel, pitch), key in struck.items():
        for take in (0, -1):
            ends: dict[int, int] = {}
            sounding: list[int] = []
            for index, (tick, velocity) in enumerate(key):
                if velocity:
                    sounding.append(index)
                elif sounding:
                    ends[sounding.pop(take)] = tick
            if not sounding:
                break
        for index, (tick, velocity) in enumerate(key):
            if velocity:
                later = [t for t, v in key[index + 1 :] if v]
                end = ends.get(index, min([now, *later]))
                result.append((tick, end - tick or 48, pitch, velocity, channel))
    return sorted(result)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.builds(
                lambda is_on, channel, pitch, velocity: bytes(((0x90 if is_on else 0x80) | channel, pitch, velocity)),
                st.booleans(),
                st.integers(0, 1),
                st.integers(60, 61),
                st.integers(0, 127),
            ),
        ),
        max_size=40,
    )
)
def test_pairing_as_by_hand(events: list[tuple[int, bytes]]) -> None:
    # A last note on either channel, so that both are parts.
    events = [*events, (0, on(99)), (0, on(99, 64, 1)), (9, off(99)), (0, off(99, 1))]
    assert sorted(rows(smf(track(*events)))) == paired_by_hand(events)


def test_ten_hours_of_silence() -> None:
    piece = read(smf(track(*note(0, 5), *note(36_000 * 960, 5, 61)))).performance
    assert piece.onset.tolist() == pytest.approx([0, 36_000 + 5 * TICK])


def test_ticks_beyond_31_bits() -> None:
    step = 2**28 - 1
    piece = read(smf(track(*(row for _ in range(40) for row in note(step, 960))))).performance
    assert piece.onset.tolist() == pytest.approx([((k + 1) * step + k * 960) * TICK for k in range(40)], rel=1e-12)


# Pedal, programs, parts


def test_each_part_has_its_own_pedal() -> None:
    data = smf(
        track((0, control(127)), (1, control(3, channel=1)), *note(0, 5), *note(0, 5, 61, 1), (2, control(0))),
        track((3, control(90, channel=5))),  # no note, no part
    )
    piece = read(data).performance
    assert (piece.pedal_time / TICK).round().tolist() == [0, 1, 13]
    assert piece.pedal_value.tolist() == [127, 3, 0]
    assert piece.pedal_part.tolist() == [0, 1, 0]


def test_other_controllers_are_no_pedal() -> None:
    assert len(read(smf(track((0, control(127, number=66)), *note(0, 5)))).performance.pedal_time) == 0


def test_drums_and_other_programs_are_left_out_and_said() -> None:
    data = smf(
        track((0, program(0)), *note(0, 5), *note(0, 5, 35, 9)),
        track((0, program(48, 3)), *note(0, 5, 70, 3), *note(0, 5, 71, 3)),
    )
    reading = read(data)
    assert rows(data) == [(0, 5, 60, 64, 0)]
    assert reading.report.drum_notes == 1
    assert reading.report.other_programs == ((48, 2),)
    assert reading.report.lines()[1] == "left out: 1 note of drums (channel 10), 2 notes of ensemble (program 48)"


@pytest.mark.parametrize("number", range(8))
def test_all_general_midi_pianos_count(number: int) -> None:
    assert len(rows(smf(track((0, program(number)), *note(0, 5))))) == 1


def test_the_program_at_the_time_of_the_note_counts() -> None:
    events = [(0, program(4)), *note(0, 5, 60), (0, program(40)), *note(0, 5, 61), (0, program(1)), *note(0, 5, 62)]
    data = smf(track((0, control(127)), *events, (0, control(0))))
    assert rows(data) == [(0, 5, 60, 64, 0), (10, 5, 62, 64, 0)]
    assert read(data).performance.pedal_value.tolist() == [127, 0]  # one part, one pedal, whatever the program
    assert read(data).report.other_programs == ((40, 1),)


def test_a_program_holds_for_its_own_track_and_channel() -> None:
    data = smf(track((0, program(40)), *note(0, 5, 50)), track(*note(0, 5)), track(*note(0, 5, 61, 1)))
    assert rows(data) == [(0, 5, 60, 64, 0), (0, 5, 61, 64, 1)]


def test_programs_of_a_track_without_notes_hold_for_the_channel() -> None:
    setup = track((0, program(40, 3)), (0, program(2, 4)), (100, program(0, 3)))
    played = [*note(0, 5, 60, 3), *note(0, 5, 61, 4), *note(200, 5, 62, 3)]
    assert [row[2] for row in rows(smf(setup, track(*played)))] == [61, 62]
    own = track((0, program(0, 3)), *note(0, 5, 60, 3))
    assert [row[2] for row in rows(smf(setup, own))] == [60]


@pytest.mark.parametrize(
    ("events", "words"),
    [
        (note(0, 5, 35, 9), "no piano in it, only 1 note of drums"),
        (
            [(0, program(25)), *note(0, 5)],
            r"1 note of guitar \(program 25\): give a file with a piano track, or set the",
        ),
        ([(9, control(127))], "no notes in its 1 track: give a file"),
        ([(0, off(60))], "no notes"),
    ],
)
def test_no_piano_is_an_error_that_says_what_is_there(events: list[tuple[int, bytes]], words: str) -> None:
    with pytest.raises(MidiError, match=words):
        read(smf(track(*events)))


def test_merged_tracks_are_named() -> None:
    data = smf(
        track((0, meta(3, "Flügel".encode())), *note(0, 5)),
        track((0, meta(3, "é".encode("latin-1"))), *note(0, 5), *note(0, 5, 61, 2)),
        track(*note(0, 5)),
    )
    report = read(data).report
    assert report.parts == ("Flügel", "é (channel 1)", "é (channel 3)", "track 3")
    assert report.lines()[1].startswith("4 parts merged, each with its own pedal: Flügel, ")


def test_more_parts_than_a_performance_can_number() -> None:
    reading = read(smf(*[track(*note(i, 5)) for i in range(300)]))
    assert reading.performance.part.tolist() == [min(i, 255) for i in range(300)]
    assert "parts from the 256th on are one part" in reading.report.lines()


# Time


def test_tempo_map_of_any_track_holds_for_all() -> None:
    data = smf(track(*note(0, 480), *note(480, 960)), track((480, tempo(1_000_000)), (480, tempo(250_000))))
    piece = read(data).performance
    assert piece.onset.tolist() == [0, 1.5]
    assert piece.duration.tolist() == [0.5, 0.5]
    assert piece.tempos == (Tempo(0.5, 60), Tempo(1.5, 240))


def test_of_two_tempos_at_a_tick_the_last_holds() -> None:
    piece = read(smf(track((0, tempo(1_000_000)), (0, tempo(250_000)), *note(480, 480)))).performance
    assert piece.tempos == (Tempo(0, 240),)
    assert piece.onset.tolist() == [0.25]


@pytest.mark.parametrize("bad", [tempo(0), meta(0x51, b"\x07\xa1"), meta(0x51)])
def test_senseless_tempos_are_ignored(bad: bytes) -> None:
    reading = read(smf(track((0, bad), *note(0, 480))))
    assert reading.performance.duration.tolist() == [0.5]
    assert reading.report.lines()[-1] == "1 tempo change without sense, ignored"


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 2**24 - 1)), max_size=30),
    st.lists(st.integers(0, 20_000), min_size=1, max_size=20),
    st.integers(1, 32_767),
)
def test_seconds_are_exact(changes: list[tuple[int, int]], gaps: list[int], division: int) -> None:
    conductor = track(*((delta, tempo(microseconds)) for delta, microseconds in changes))
    played = track(*(row for gap in gaps for row in note(gap, 1)))
    piece = read(smf(conductor, played, division=division)).performance
    at, tempos = 0, {0: 500_000}
    for delta, microseconds in changes:
        at += delta
        tempos[at] = microseconds
    expected, now = [], 0
    for gap in gaps:
        now += gap
        bounds = [*sorted(t for t in tempos if t < now), now]
        passed = sum((b - a) * tempos[a] for a, b in itertools.pairwise(bounds))
        expected.append(float(Fraction(passed, division * 10**6)))
        now += 1
    np.testing.assert_allclose(piece.onset, expected, rtol=1e-14)


@pytest.mark.parametrize(("frames", "rate"), [(24, 24), (25, 25), (29, 30_000 / 1001), (30, 30)])
def test_smpte_time_knows_no_tempo(frames: int, rate: float) -> None:
    division = (256 - frames) << 8 | 40
    data = smf(track((0, tempo(250_000)), *note(40, 80)), division=division)
    piece = read(data).performance
    assert piece.onset[0] == pytest.approx(1 / rate)
    assert piece.duration[0] == pytest.approx(2 / rate)


@pytest.mark.parametrize("division", [0, 0xE700])
def test_no_ticks_no_time(division: int) -> None:
    with pytest.raises(MidiError, match="0 ticks a beat"):
        read(smf(track(*note(0, 5)), division=division))


def test_meters() -> None:
    events = [(0, meta(0x58, bytes((6, 3, 24, 8)))), (480, meta(0x58, bytes((4, 2, 24, 8)))), *note(0, 5)]
    senseless = [(0, meta(0x58, bytes((0, 2, 24, 8)))), (0, meta(0x58, bytes((4, 200, 24, 8)))), (0, meta(0x58, b"\4"))]
    piece = read(smf(track(*events, *senseless))).performance
    assert piece.meters == (Meter(0, 6, 8), Meter(0.5, 4, 4))


def test_patterns_of_format_2_follow_one_another() -> None:
    data = smf(track(*note(0, 5), end=b"\x0a\xff\x2f\x00"), track((0, tempo(500_000)), *note(2, 5, 62)), form=2)
    assert rows(data) == [(0, 5, 60, 64, 0), (17, 5, 62, 64, 1)]
    assert "format 2" in read(data).report.lines()[1]
    unended = track((2, on(62)), end=b"\x05\xff\x2f\x00")
    assert rows(smf(track(*note(0, 5)), unended, form=2)) == [(0, 5, 60, 64, 0), (7, 5, 62, 64, 1)]


def test_format_0_with_two_channels() -> None:
    reading = read(smf(track(*note(0, 5), *note(0, 5, 61, 1)), form=0))
    assert reading.report.format == 0
    assert reading.performance.part.tolist() == [0, 1]


def test_three_hundred_thousand_tempo_changes() -> None:
    changes = [(1, tempo(500_000 + k % 100)) for k in range(300_000)]
    piece = read(smf(track(*changes, *note(0, 480)))).performance
    exact = sum(500_000 + k % 100 for k in range(299_999)) + 500_000
    assert len(piece.tempos) == 300_000
    assert piece.onset[0] == pytest.approx(exact / 480e6, rel=1e-14)


# Running status, system exclusive, meta events


@pytest.mark.parametrize(
    "between",
    [meta(1, b"ab"), meta(1, b"x" * 300), b"\xf0\x02a\xf7", b"\xf7\x03abc", b"\xf0" + var(1000) + bytes(1000)],
)
def test_running_status_goes_on_behind_other_events(between: bytes) -> None:
    data = smf(track((0, on(60)), (0, between), (5, b"\x3c\x00"), (0, b"\x3e\x40"), (300, b"\x3e\x00")))
    assert rows(data) == [(0, 5, 60, 64, 0), (5, 300, 62, 64, 0)]
    assert read(data).report.parser == "strict"


def test_running_status_of_one_data_byte() -> None:
    events = [
        (0, program(40)),
        (0, b"\x05"),
        (0, on(60)),
        (5, b"\x3c\x00"),
        (0, b"\xd0\x10"),
        (1, b"\x11"),
        (1, b"\x12"),
    ]
    assert rows(smf(track(*events, *note(3, 4, 61)))) == [(0, 5, 60, 64, 0), (10, 4, 61, 64, 0)]


def test_pitch_bend_and_aftertouch_are_passed_over() -> None:
    events = [(0, on(60)), (1, b"\xe0\x00\x40"), (1, b"\xa0\x3c\x10"), (1, b"\x3c\x20"), (2, off(60))]
    assert rows(smf(track(*events))) == [(0, 5, 60, 64, 0)]


def test_texts_are_utf_8_or_latin_1() -> None:
    data = smf(
        track((0, meta(1, "größe ♪".encode())), (0, meta(1, "größe".encode("latin-1"))), (0, meta(3, b"name"))),
        track(*note(0, 5), (0, meta(1, b"")), (0, meta(6, b"marker"))),
    )
    assert read_texts(data) == ["größe ♪", "größe", ""]
    assert read_texts(smf(track((0, meta(1, b"no note"))))) == ["no note"]


# What is no MIDI file, and what is too much


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "a PNG picture"),
        (b"RIFF\0\0\0\0WAVEfmt ", "WAV recording"),
        (b"ID3\x03", "an MP3 recording"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"<!DOCTYPE html>", "XML or HTML"),
        (b"just some words\n", "text"),
        (bytes(range(256)), "unknown binary data"),
        (track(*note(0, 5)), "without their header"),
        (b"MThd", "within the MIDI header"),
        (smf(), "no notes in its 0 tracks"),
    ],
)
def test_no_midi_file_is_told_what_it_looks_like(data: bytes, words: str) -> None:
    for reader in (read, read_texts) if words[0] != "n" else (read,):
        with pytest.raises(MidiError, match=words):
            reader(data)


def test_errors_name_the_path(tmp_path: Path) -> None:
    with pytest.raises(MidiError, match=r"gone\.mid: there is no such file"):
        read(tmp_path / "gone.mid")
    with pytest.raises(MidiError, match="this is a folder"):
        read(str(tmp_path))
    with pytest.raises(MidiError, match="can't be read"):
        read("a\0b.mid")
    (tmp_path / "words.mid").write_text("words")
    with pytest.raises(MidiError, match=r"words\.mid: text, not a MIDI file: give"):
        read_texts(tmp_path / "words.mid")
    (tmp_path / "good.mid").write_bytes(ONE)
    assert read(tmp_path / "good.mid") == read(str(tmp_path / "good.mid")) == read(ONE)


@pytest.mark.parametrize(
    ("module", "limit", "words"),
    [
        (midi_events, "MAX_BYTES", "MiB: take a smaller file"),
        (midi_events, "MAX_EVENTS", "too many events"),
        (midi_events, "MAX_METAS", "too many events"),
        (midi_events, "MAX_TRACKS", "more than 4 tracks"),
        (midi_file, "MAX_NOTES", "10 notes, at most 4"),
    ],
)
def test_limits(module: object, limit: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "large.mid"
    path.write_bytes(smf(*[track(*note(0, 5), *note(0, 5), (0, tempo(1))) for _ in range(5)]))
    assert len(read(path).performance) == 10
    monkeypatch.setattr(module, limit, 4)
    for source in (path, path.read_bytes()):
        with pytest.raises(MidiError, match=words):
            read(source)
