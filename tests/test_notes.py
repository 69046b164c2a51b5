"""Performances: refusal of bad values, order, and the pedal against slow loops in plain Python."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulse88.notes import PEDAL_DOWN, Meter, Note, Performance, Tempo, pedal_spans


def performance(*notes: Note, pedal: tuple[tuple[float, int, int], ...] = (), **more: Any) -> Performance:
    """From notes and (time, value, part) pedal events."""
    return replace(
        Performance.from_notes(notes),
        pedal_time=np.array([p[0] for p in pedal], np.float64),
        pedal_value=np.array([p[1] for p in pedal], np.int64),
        pedal_part=np.array([p[2] for p in pedal], np.int64),
        **more,
    )


# Times on a coarse grid of exact fractions, so that strikes, releases and pedal changes often coincide.
grid_times = st.integers(0, 24).map(lambda k: k / 4)
grid_notes = st.builds(
    Note,
    grid_times,
    st.integers(1, 12).map(lambda k: k / 4),
    st.integers(60, 62),
    st.integers(1, 127),
    st.integers(0, 2),
)
pedal_events = st.tuples(grid_times, st.sampled_from([0, 1, 63, 64, 65, 127]), st.integers(0, 2))
grid_performances = st.builds(
    lambda notes, pedal: performance(*notes, pedal=tuple(pedal)),
    st.lists(grid_notes, max_size=14),
    st.lists(pedal_events, max_size=10),
)
any_notes = st.builds(
    Note,
    st.floats(0, 1e4),
    st.floats(1e-3, 1e3),
    st.integers(0, 127),
    st.integers(1, 127),
    st.integers(0, 255),
)


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (Note(-0.1, 1, 60, 64), "note 1: onset -0.1"),
        (Note(math.nan, 1, 60, 64), "note 1: onset nan"),
        (Note(math.inf, 1, 60, 64), "note 1: onset inf"),
        (Note(0, 0, 60, 64), "note 1: duration 0.0"),
        (Note(0, -1, 60, 64), "note 1: duration -1.0"),
        (Note(0, math.nan, 60, 64), "note 1: duration nan"),
        (Note(0, 1, -1, 64), "note 1: pitch -1"),
        (Note(0, 1, 128, 64), "note 1: pitch 128"),
        (Note(0, 1, 60, 0), "note 1: velocity 0"),
        (Note(0, 1, 60, 128), "note 1: velocity 128"),
        (Note(0, 1, 60, 64, -1), "note 1: part -1"),
        (Note(0, 1, 60, 64, 256), "note 1: part 256"),
    ],
)
def test_a_bad_note_is_named(note: Note, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Performance.from_notes([Note(0, 1, 60, 64), note])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pitch": [60, 61]}, "pitch has 2 values for 1 notes"),
        ({"pitch": [60.5]}, "pitch 60.5"),
        ({"pedal_time": [0.0]}, "differ in length"),
        ({"pedal_time": [-1.0], "pedal_value": [0], "pedal_part": [0]}, "pedal event 0: time -1.0"),
        ({"pedal_time": [math.nan], "pedal_value": [0], "pedal_part": [0]}, "pedal event 0: time nan"),
        ({"pedal_time": [0.0], "pedal_value": [128], "pedal_part": [0]}, "pedal event 0: value 128"),
        ({"pedal_time": [0.0], "pedal_value": [0], "pedal_part": [256]}, "pedal event 0: part 256"),
        ({"tempos": (Tempo(-1, 120),)}, "Tempo"),
        ({"tempos": (Tempo(0, 0),)}, "bpm=0"),
        ({"tempos": (Tempo(0, math.nan),)}, "bpm=nan"),
        ({"tempos": (Tempo(math.inf, 120),)}, "time=inf"),
        ({"meters": (Meter(0, 0, 4),)}, "numerator=0"),
        ({"meters": (Meter(math.nan, 4, 4),)}, "Meter"),
    ],
)
def test_bad_columns_are_named(changes: dict[str, Any], words: str) -> None:
    columns = {"onset": [0.0], "duration": [1.0], "pitch": [60], "velocity": [64], "part": [0]}
    with pytest.raises(ValueError, match=words):
        Performance(**{**columns, **changes})  # type: ignore[arg-type]


few = st.integers(1, 2)


@given(st.lists(st.builds(Note, few, few, few, few, st.just(0)) | any_notes, max_size=20), st.randoms())
def test_notes_are_sorted_by_onset_pitch_duration_and_velocity(notes: list[Note], random: Any) -> None:
    shuffled = list(notes)
    random.shuffle(shuffled)
    rows = list(Performance.from_notes(shuffled))
    assert [(n.onset, n.pitch, n.duration, n.velocity) for n in rows] == sorted(
        (n.onset, n.pitch, n.duration, n.velocity) for n in notes
    )
    assert sorted(rows) == sorted(notes)


def test_pedal_tempos_and_meters_are_sorted_by_time_alone() -> None:
    piece = performance(
        pedal=((2, 127, 0), (1, 5, 0), (1, 3, 0)),
        tempos=(Tempo(1, 60), Tempo(0, 120), Tempo(0, 90)),
        meters=(Meter(3, 3, 4), Meter(0, 4, 4)),
    )
    assert piece.pedal_time.tolist() == [1, 1, 2]
    assert piece.pedal_value.tolist() == [5, 3, 127]
    assert piece.tempos == (Tempo(0, 120), Tempo(0, 90), Tempo(1, 60))
    assert piece.meters == (Meter(0, 4, 4), Meter(3, 3, 4))


def test_nothing_can_be_changed_and_the_callers_arrays_stay_theirs() -> None:
    onset = np.array([1.0, 0.0])
    piece = Performance(onset, [1.0, 1.0], [60, 61], [64, 65], [0, 0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="read-only"):
        piece.onset[0] = 5
    with pytest.raises(FrozenInstanceError):
        piece.onset = onset  # type: ignore[misc]
    onset[0] = 7.0
    assert piece.onset.tolist() == [0.0, 1.0]
    with pytest.raises(TypeError, match="unhashable"):
        hash(piece)


def test_equality_is_by_value() -> None:
    a, b = Note(0, 1, 60, 64), Note(0, 1, 64, 64)
    assert performance(a, b) == performance(b, a)
    assert performance(a) != performance(b)
    assert performance(a) != performance(a, pedal=((0, 64, 0),))
    assert performance(a) != performance(a, tempos=(Tempo(0, 120),))
    assert performance(a) != "a performance"


def test_an_empty_performance_lasts_nothing() -> None:
    empty = Performance()
    assert (len(empty), empty.end, list(empty)) == (0, 0.0, [])
    assert empty.sustained() == empty == empty.without_overlaps()


def test_the_end_is_that_of_the_last_key() -> None:
    assert performance(Note(0, 9, 60, 64), Note(5, 1, 62, 64)).end == 9


def test_take_keeps_pedal_and_tempos() -> None:
    piece = performance(
        Note(0, 1, 60, 64), Note(1, 1, 61, 64), Note(2, 1, 62, 64), pedal=((0, 127, 0),), tempos=(Tempo(0, 90),)
    )
    for keep in (piece.pitch != 61, np.array([0, 2]), slice(0, 3, 2)):
        taken = piece.take(keep)
        assert taken.pitch.tolist() == [60, 62]
        assert taken.pedal_value.tolist() == [127]
        assert taken.tempos == piece.tempos


def test_shifting_moves_everything_and_stops_at_zero() -> None:
    piece = performance(
        Note(0, 1, 60, 64),
        Note(4, 1, 62, 64),
        pedal=((0, 127, 0), (1, 0, 0), (4, 127, 0)),
        tempos=(Tempo(0, 120), Tempo(1, 60), Tempo(5, 90)),
        meters=(Meter(0, 4, 4), Meter(2, 3, 4), Meter(6, 2, 4)),
    )
    later = piece.shifted(1.5)
    assert later.onset.tolist() == [1.5, 5.5]
    assert later.pedal_time.tolist() == [1.5, 2.5, 5.5]
    assert later.tempos == (Tempo(1.5, 120), Tempo(2.5, 60), Tempo(6.5, 90))
    earlier = piece.shifted(-3)
    assert earlier.onset.tolist() == [0, 1]
    assert earlier.duration.tolist() == [1, 1]
    assert list(zip(earlier.pedal_time, earlier.pedal_value, strict=True)) == [(0, 127), (0, 0), (1, 127)]
    # What was in force at second 3 is in force at the start: 60 bpm (not 120, the larger number), 3/4.
    assert earlier.tempos == (Tempo(0, 60), Tempo(2, 90))
    assert earlier.meters == (Meter(0, 3, 4), Meter(3, 2, 4))
    assert piece.shifted(0) == piece


def test_transposing_refuses_to_leave_the_midi_range() -> None:
    piece = performance(Note(0, 1, 0, 64), Note(0, 1, 127, 64))
    assert piece.take(slice(0, 1)).transposed(127).pitch.tolist() == [127]
    for semitones in (1, -1, 300):
        with pytest.raises(ValueError, match="pitch"):
            piece.transposed(semitones)


def sustained_by_hand(piece: Performance) -> list[Note]:
    """Note after note, pedal event after pedal event."""
    notes = list(piece)
    pedal = list(zip(piece.pedal_time.tolist(), piece.pedal_value.tolist(), piece.pedal_part.tolist(), strict=True))
    if not notes or not pedal:
        return sorted(notes)
    piece_end = max([n.onset + n.duration for n in notes] + [pedal[-1][0]])
    result = []
    for note in notes:
        key_end = note.onset + note.duration
        down = False
        for time, value, part in pedal:
            if part == note.part and time <= key_end:
                down = value >= PEDAL_DOWN
        end = key_end
        if down:
            rises = [t for t, value, part in pedal if part == note.part and t > key_end and value < PEDAL_DOWN]
            strikes = [n.onset for n in notes if n.pitch == note.pitch and n.onset > note.onset]
            end = max(key_end, min([piece_end, *rises[:1], *strikes]))
        result.append(note._replace(duration=end - note.onset))
    return sorted(result)


@given(grid_performances)
def test_sustain_as_by_hand(piece: Performance) -> None:
    sounding = piece.sustained()
    assert sorted(sounding) == sustained_by_hand(piece)
    assert len(sounding.pedal_time) == 0
    assert sounding.sustained() == sounding


@pytest.mark.parametrize(
    ("pedal", "durations"),
    [
        ((), [1, 1]),
        (((0.5, 127, 0), (3, 0, 0)), [3, 1]),  # caught before the key rises, held until the pedal does
        (((1.5, 127, 0), (3, 0, 0)), [1, 1]),  # too late for the first key
        (((0.5, 127, 0),), [5, 1]),  # never rises: until the end of the piece
        (((0.5, 63, 0), (3, 0, 0)), [1, 1]),  # half a pedal below 64 is none
        (((0.5, 64, 0), (2, 100, 0), (2.5, 70, 0), (3, 63, 0)), [3, 1]),  # half pedals above it are one long one
        (((0.5, 127, 1), (3, 0, 1)), [1, 1]),  # another part's pedal
    ],
)
def test_pedal(pedal: tuple[tuple[float, int, int], ...], durations: list[float]) -> None:
    piece = performance(Note(0, 1, 60, 64), Note(4, 1, 72, 64), pedal=pedal)
    assert piece.sustained().duration.tolist() == durations


def test_the_pedal_does_not_hold_a_key_that_is_struck_again_even_by_another_part() -> None:
    held = ((0.5, 127, 0), (5, 0, 0))
    piece = performance(Note(0, 1, 60, 64), Note(2, 1, 60, 64, 1), pedal=held)
    assert list(piece.sustained()) == [Note(0, 2, 60, 64), Note(2, 1, 60, 64, 1)]
    chord = performance(Note(0, 1, 60, 64), Note(0, 1, 60, 90), pedal=held)
    assert chord.sustained().duration.tolist() == [5, 5]


def test_a_key_held_beyond_its_next_strike_keeps_its_length() -> None:
    piece = performance(Note(0, 3, 60, 64), Note(2, 1, 60, 64), pedal=((0.5, 127, 0), (5, 0, 0)))
    assert piece.sustained().duration.tolist() == [3, 3]


def test_pedal_spans_pair_the_first_press_with_the_first_release() -> None:
    time = np.array([0.0, 1, 2, 3, 4])
    starts, stops = pedal_spans(time, np.array([False, True, True, False, True]), 9.0)
    assert starts.tolist() == [1, 4]
    assert stops.tolist() == [3, 9]


def without_overlaps_by_hand(piece: Performance) -> list[Note]:
    longest: dict[tuple[float, int, int], Note] = {}
    for note in piece:
        strike = (note.onset, note.pitch, note.part)
        if strike not in longest or note.duration > longest[strike].duration:
            longest[strike] = note
    result = []
    for note in longest.values():
        later = [
            n.onset for n in longest.values() if (n.pitch, n.part) == (note.pitch, note.part) and n.onset > note.onset
        ]
        result.append(note._replace(duration=min([note.onset + note.duration, *later]) - note.onset))
    return sorted(result)


@given(grid_performances)
def test_without_overlaps_as_by_hand(piece: Performance) -> None:
    cut = piece.without_overlaps()
    assert sorted(cut) == without_overlaps_by_hand(piece)
    assert cut.without_overlaps() == cut
    assert cut.pedal_time.tolist() == piece.pedal_time.tolist()


def test_no_rounding_makes_a_note_reach_its_next_strike() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.uniform(0.5, 1, 128), rng.uniform(3, 4, 128)
    assert (first + (second - first) > second).any()
    keys = np.tile(np.arange(128, dtype=np.uint8), 2)
    piece = Performance(
        np.r_[first, second], np.full(256, 20.0), keys, np.full(256, 64, np.uint8), np.zeros(256, np.uint8)
    )
    cut = piece.without_overlaps()
    for pitch in range(128):
        key = cut.take(cut.pitch == pitch)
        assert key.onset[0] + key.duration[0] <= key.onset[1]


@given(grid_performances, st.integers(-30, 30), st.floats(0, 100))
def test_nothing_mutates(piece: Performance, semitones: int, seconds: float) -> None:
    before = replace(piece)
    piece.sustained()
    piece.without_overlaps()
    piece.shifted(seconds)
    piece.transposed(semitones)
    piece.take(piece.onset > 1)
    assert piece == before
    assert piece.transposed(semitones).transposed(-semitones) == piece
