"""Writing MIDI files: reading them back gives the same music, here and in another reader."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulse88.midi_file import MidiError, read, read_texts, to_bytes, write
from pulse88.notes import Meter, Note, Performance, Tempo
from smf import half_tick


def in_file_order(piece: Performance) -> list[Note]:
    return sorted(piece, key=lambda n: (n.part, n.pitch, n.onset))


microseconds = st.integers(1000, 2**24 - 1) | st.integers(300_000, 1_000_000)


@st.composite
def performances(draw: st.DrawFn) -> Performance:
    """With one to three parts, each with a note, and tempos that MIDI can hold. No key is struck twice in a tick."""
    offset = draw(st.floats(0, 0.001))
    seconds = st.integers(0, 60_000).map(lambda milliseconds: milliseconds / 1000 + offset)
    parts = draw(st.integers(1, 3))
    note_of = st.builds(
        Note, seconds, st.floats(1e-4, 5), st.integers(60, 63) | st.integers(0, 127), st.integers(1, 127)
    )
    notes = [n._replace(part=part) for part in range(parts) for n in draw(st.lists(note_of, min_size=1, max_size=12))]
    pedal = draw(st.lists(st.tuples(seconds, st.integers(0, 127), st.integers(0, parts - 1)), max_size=10))
    changes = draw(st.lists(st.tuples(st.floats(0.5, 60), microseconds), max_size=6))
    times = np.cumsum([0.0] + [gap for gap, _ in changes])
    meters = draw(st.lists(st.tuples(st.integers(1, 255), st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128])), max_size=4))
    return Performance(
        onset=np.array([n.onset for n in notes]),
        duration=np.array([n.duration for n in notes]),
        pitch=np.array([n.pitch for n in notes]),
        velocity=np.array([n.velocity for n in notes]),
        part=np.array([n.part for n in notes]),
        pedal_time=np.array([p[0] for p in pedal]),
        pedal_value=np.array([p[1] for p in pedal], np.uint8),
        pedal_part=np.array([p[2] for p in pedal], np.uint8),
        tempos=tuple(Tempo(t, 60e6 / mspq) for t, (_, mspq) in zip(times[:-1].tolist(), changes, strict=True)),
        meters=tuple(Meter(7.5 * k, *meter) for k, meter in enumerate(meters)),
    ).without_overlaps()


@given(performances())
@settings(max_examples=150)
def test_what_is_written_is_read_back(piece: Performance) -> None:
    data = to_bytes(piece, texts=["a", "b"])
    reading = read(data)
    back = reading.performance
    near = half_tick(piece)
    assert reading.report.damage == ()
    assert reading.report.unended_notes == reading.report.zero_length_notes == reading.report.dropped_tempos == 0
    written, heard = in_file_order(piece), in_file_order(back)
    assert [(n.pitch, n.velocity, n.part) for n in heard] == [(n.pitch, n.velocity, n.part) for n in written]
    for a, b in zip(written, heard, strict=True):
        assert abs(a.onset - b.onset) <= near
        end_error = abs(a.onset + a.duration - b.onset - b.duration)
        assert end_error <= near or (end_error <= 4 * near and a.duration <= 4 * near)  # one tick at least
    assert sorted(back.pedal_part) == sorted(piece.pedal_part)
    for part in set(piece.pedal_part.tolist()):
        mine, theirs = piece.pedal_part == part, back.pedal_part == part
        assert back.pedal_value[theirs].tolist() == piece.pedal_value[mine].tolist()
        np.testing.assert_allclose(back.pedal_time[theirs], piece.pedal_time[mine], rtol=0, atol=near)
    for change in ("tempos", "meters"):
        before, after = getattr(piece, change), getattr(back, change)
        np.testing.assert_allclose([c.time for c in after], [c.time for c in before], rtol=0, atol=near)
        assert [c[1:] for c in after] == [c[1:] for c in before]
    assert read_texts(data) == ["a", "b"]
    again = to_bytes(back, texts=["a", "b"])
    assert read(again).performance == back  # what lies on ticks stays there


@given(performances())
@settings(max_examples=40)
def test_another_reader_hears_the_same(piece: Performance) -> None:
    midi = mido.MidiFile(file=io.BytesIO(to_bytes(piece)))
    assert midi.type == 1
    heard = []
    now = 0.0
    sounding: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for message in midi:
        now += message.time
        if message.type == "note_on" and message.velocity:
            sounding.setdefault((message.channel, message.note), []).append((now, message.velocity))
        elif message.type == "note_off":
            start, velocity = sounding[message.channel, message.note].pop(0)
            heard.append(Note(start, now - start, message.note, velocity, message.channel))
    assert not any(sounding.values())
    heard.sort(key=lambda n: (n.part, n.pitch, n.onset))
    for mine, theirs in zip(in_file_order(piece), heard, strict=True):
        assert mine[2:] == theirs[2:]
        assert abs(mine.onset - theirs.onset) <= half_tick(piece) + 1e-6  # mido adds up rounded deltas


def test_a_tempo_map_of_an_hour_does_not_drift() -> None:
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.uniform(0.001, 3.6, 2000))
    tempos = tuple(Tempo(t, 60e6 / rng.integers(200_000, 2_000_000)) for t in times.tolist())
    onset = np.arange(0, 3700, 1.7)
    piece = Performance(
        onset=onset,
        duration=np.full(len(onset), 0.5),
        pitch=np.full(len(onset), 60),
        velocity=np.full(len(onset), 64),
        part=np.zeros(len(onset), np.uint8),
        tempos=tempos,
    )
    back = read(to_bytes(piece)).performance
    assert half_tick(piece) < 0.000_126
    np.testing.assert_allclose(back.onset, onset, rtol=0, atol=half_tick(piece))
    np.testing.assert_allclose([t.time for t in back.tempos], times, rtol=0, atol=half_tick(piece))


@pytest.mark.parametrize(
    ("bpm", "longest"), [(3.58, 0.000_512), (7.4, 0.000_25), (60, 0.000_25), (120, 0.000_25), (1000, 0.000_25)]
)
def test_a_tick_lasts_a_quarter_of_a_millisecond_at_most(bpm: float, longest: float) -> None:
    piece = Performance.from_notes([Note(0, 1, 60, 64)], tempos=(Tempo(0, bpm), Tempo(10, 240)))
    assert half_tick(piece) * 2 <= longest + 1e-8


def test_without_tempos_none_are_written() -> None:
    piece = Performance.from_notes([Note(1.5, 0.25, 60, 64)])
    assert read(to_bytes(piece)).performance == piece


def test_note_offs_come_before_note_ons_and_pedal_before_both() -> None:
    piece = Performance(
        onset=np.array([0.0, 1.0]),
        duration=np.array([1.0, 1.0]),
        pitch=np.array([60, 60], np.uint8),
        velocity=np.array([1, 2], np.uint8),
        part=np.zeros(2, np.uint8),
        pedal_time=np.array([1.0]),
        pedal_value=np.array([127], np.uint8),
        pedal_part=np.zeros(1, np.uint8),
    )
    messages = [m for m in mido.MidiFile(file=io.BytesIO(to_bytes(piece))).tracks[1] if not m.is_meta]
    kinds = ["program_change", "note_on", "control_change", "note_off", "note_on", "note_off"]
    assert [m.type for m in messages] == kinds
    assert [m.time > 0 for m in messages] == [False, False, True, False, False, True]


def test_overlaps_are_refused_and_without_overlaps_helps() -> None:
    piece = Performance.from_notes([Note(0, 2, 60, 64), Note(1, 2, 60, 64), Note(5, 1, 61, 64)])
    with pytest.raises(ValueError, match=r"part 0: key 60, struck at 0.000 s.*without_overlaps"):
        to_bytes(piece)
    assert read(to_bytes(piece.without_overlaps())).performance == piece.without_overlaps()
    two_parts = Performance.from_notes([Note(0, 2, 60, 64, 0), Note(1, 2, 60, 64, 1)])
    assert read(to_bytes(two_parts)).performance == two_parts


def test_a_rounded_sum_is_no_overlap() -> None:
    rng = np.random.default_rng(2)
    tick = 0.5 / int.from_bytes(to_bytes(Performance())[12:14], "big")
    count = 8 * 128
    first = rng.uniform(0, 0.3, count)
    second = (np.rint(rng.uniform(1, 10, count) / tick) + 0.5) * tick  # halfway, where the last bit picks the tick
    assert (first + (second - first) > second).any()
    piece = Performance(
        onset=np.r_[first, second],
        duration=np.r_[second - first, np.ones(count)],
        pitch=np.tile(np.arange(128, dtype=np.uint8), 16),
        velocity=np.full(2 * count, 64, np.uint8),
        part=np.tile(np.repeat(np.arange(8, dtype=np.uint8), 128), 2),
    )
    assert len(read(to_bytes(piece)).performance) == 2 * count


def test_strikes_within_a_tick_stay_two_notes() -> None:
    piece = Performance.from_notes([Note(0.5, 1e-5, 60, 1), Note(0.50001, 1, 60, 2)])
    back = read(to_bytes(piece)).performance
    assert sorted(back.velocity.tolist()) == [1, 2]
    assert sorted(back.duration.round(3).tolist()) == [0, 1]


def test_parts_take_channels_without_the_tenth() -> None:
    piece = Performance.from_notes([Note(0, 1, 60, 64, part) for part in range(20)])
    names = [f"part {k}" for k in range(19)]
    midi = mido.MidiFile(file=io.BytesIO(to_bytes(piece, part_names=names)))
    channels = [next(m.channel for m in t if m.type == "note_on") for t in midi.tracks[1:]]
    assert channels == [*range(9), *range(10, 16), 15, 15, 15, 15, 15]
    assert [t.name for t in midi.tracks[1:]] == [*names, "Piano 20"]
    assert read(to_bytes(piece)).performance == piece


def test_text_is_utf_8() -> None:
    piece = Performance.from_notes([Note(0, 1, 60, 64)])
    texts = ["größe ♪", "", "x" * 70_000]
    data = to_bytes(piece, texts=texts, part_names=["Flügel 琴"])
    assert read_texts(data) == texts
    assert read(data).report.parts == ("Flügel 琴",)


def test_silence_longer_than_a_delta_time_can_say() -> None:
    piece = Performance.from_notes([Note(0, 1, 60, 64), Note(40 * 3600, 1, 62, 64)], meters=(Meter(39 * 3600, 3, 4),))
    back = read(to_bytes(piece)).performance
    assert back == piece


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tempos": (Tempo(0, 3.5),)}, "a tempo of 3.5 bpm"),
        ({"tempos": (Tempo(0, 1e9),)}, "a tempo of 1e\\+09 bpm"),
        ({"meters": (Meter(0, 3, 5),)}, "3/5"),
        ({"meters": (Meter(0, 300, 4),)}, "300/4"),
        ({"meters": (Meter(0, 4, 256),)}, "4/256"),
        ({"onset": np.array([1e12])}, "too late"),
    ],
)
def test_what_midi_cannot_say_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_bytes(replace(Performance.from_notes([Note(0, 1, 60, 64)]), **changes))


def test_nothing_to_write_is_a_file_without_notes() -> None:
    data = to_bytes(Performance(), texts=["nothing"])
    assert read_texts(data) == ["nothing"]
    with pytest.raises(MidiError, match="no notes"):
        read(data)


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mid"
    piece = Performance.from_notes([Note(0, 1, 60, 64)])
    write(piece, path, texts=["t"], part_names=["n"])
    first = path.read_bytes()
    assert first == to_bytes(piece, texts=["t"], part_names=["n"])
    write(piece, str(path), texts=["t"], part_names=["n"])
    assert path.read_bytes() == first
    with pytest.raises(ValueError, match="tempo"):
        write(replace(piece, tempos=(Tempo(0, 1),)), path)

    def full(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write(piece, path)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]
