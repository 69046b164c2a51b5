"""Musicality: hand-made music whose numbers are known, invariances, and bounds on any music at all."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulse88 import midi_file, musicality
from pulse88.musicality import Loop
from pulse88.notes import Note, Performance

C_MAJOR = (60, 62, 64, 65, 67, 69, 71, 72)
EMPTY = Performance()


def melody(pitches: list[int] | tuple[int, ...], gap: float = 0.25, duration: float | None = None) -> Performance:
    """Single notes, one every `gap` seconds, each held for `duration` (the gap if None)."""
    return Performance.from_notes(Note(i * gap, duration or gap, pitch, 80) for i, pitch in enumerate(pitches))


SCALE = melody(C_MAJOR)
CHORD = Performance.from_notes(Note(1.0, 2.0, pitch, 80) for pitch in (48, 60, 64, 67))
ONE_NOTE = melody([60] * 240)


@st.composite
def music(draw: st.DrawFn) -> Performance:
    """Any music, on a grid of 50 ms so that tempo and chord spread don't meet the 30 ms of a chord."""
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 100), st.integers(1, 40), st.integers(30, 90), st.integers(1, 127)), max_size=60
        )
    )
    return Performance.from_notes(Note(on / 20, hold / 20, pitch, velocity) for on, hold, pitch, velocity in rows)


def faster(p: Performance, factor: float) -> Performance:
    return replace(p, onset=p.onset / factor, duration=p.duration / factor)


def test_scale() -> None:
    histogram = musicality.pitch_class_histogram(SCALE)
    assert histogram.tolist() == [0.25, 0, 0.125, 0, 0.125, 0.125, 0, 0.125, 0, 0.125, 0, 0.125]
    assert musicality.pitch_class_entropy(SCALE) == pytest.approx(0.25 * 2 + 6 * 0.125 * 3)
    assert musicality.density(SCALE) == pytest.approx(4.0)
    assert musicality.pitch_range(SCALE) == 12
    assert musicality.commonest_pitch_share(SCALE) == 0.125
    assert musicality.polyphony(SCALE) == pytest.approx(1.0)
    assert musicality.polyphony_shares(SCALE) == pytest.approx([0.0, 1.0])
    assert musicality.inter_onset_intervals(SCALE) == pytest.approx([0.25] * 7)
    assert musicality.silence_share(SCALE) == 0.0
    assert musicality.longest_loop(SCALE) == Loop(1, 0, 0.0, 0.0)
    assert musicality.longest_bar_repetition(SCALE) == 1
    assert musicality.degenerate(SCALE) == ()


def test_twelve_equal_pitch_classes_have_the_most_entropy() -> None:
    chromatic = melody(range(48, 72))
    assert musicality.pitch_class_entropy(chromatic) == pytest.approx(np.log2(12))


def test_chord() -> None:
    assert musicality.polyphony(CHORD) == pytest.approx(4.0)
    assert musicality.polyphony_shares(CHORD) == pytest.approx([0, 0, 0, 0, 1])
    assert musicality.density(CHORD) == pytest.approx(2.0)
    assert musicality.inter_onset_intervals(CHORD).size == 0
    assert musicality.pitch_class_histogram(CHORD)[0] == 0.5
    assert musicality.degenerate(CHORD) == ()


def test_polyphony_of_overlapping_notes() -> None:
    p = Performance.from_notes([Note(0, 3, 60, 80), Note(1, 1, 64, 80), Note(5, 1, 67, 80)])
    assert musicality.polyphony_shares(p) == pytest.approx([2 / 6, 3 / 6, 1 / 6])
    assert musicality.polyphony(p) == pytest.approx(5 / 4)


def test_the_sound_counts_that_the_pedal_holds() -> None:
    short = melody((60, 64, 67, 72), gap=1.0, duration=0.1)
    pedalled = replace(
        short, pedal_time=np.array([0.0, 4.0]), pedal_value=np.array([127, 0]), pedal_part=np.array([0, 0])
    )
    assert musicality.silence_share(short) == pytest.approx(2.7 / 3.1)
    assert musicality.silence_share(pedalled) == 0.0
    assert musicality.polyphony_shares(pedalled) == pytest.approx([0, 0.25, 0.25, 0.25, 0.25])
    assert musicality.density(pedalled) == pytest.approx(1.0)


def test_chords_of_a_human_hand_are_one_onset() -> None:
    p = Performance.from_notes(
        Note(beat + spread, 0.2, 60 + i, 80) for beat in (0, 1, 2) for i, spread in enumerate((0.0, 0.012, 0.02))
    )
    assert musicality.inter_onset_intervals(p) == pytest.approx([1.0, 1.0])


def test_silence() -> None:
    p = Performance.from_notes([Note(1, 1, 60, 80), Note(1.5, 2, 64, 80), Note(8, 2, 67, 80)])
    assert musicality.longest_silence(p) == pytest.approx(4.5)
    assert musicality.silence_share(p) == pytest.approx(0.5)
    assert musicality.longest_silence(p, (0.0, 20.0)) == pytest.approx(10.0)
    assert musicality.silence_share(p, (0.0, 20.0)) == pytest.approx(15.5 / 20)
    assert musicality.longest_silence(p, (2.0, 5.0)) == pytest.approx(1.5)
    assert musicality.degenerate(p) == ("silence",)


def test_a_short_note_under_a_long_one_hides_no_sound() -> None:
    p = Performance.from_notes([Note(0, 10, 40, 80), Note(1, 0.1, 60, 80), Note(9, 0.1, 60, 80)])
    assert musicality.longest_silence(p) == 0.0


def test_staccato_is_no_silence() -> None:
    assert musicality.degenerate(melody(C_MAJOR, gap=1.0, duration=0.05)) == ()


def test_a_take_that_stops_early_is_silent_within_its_span() -> None:
    assert musicality.degenerate(SCALE, (0.0, 3.0)) == ()
    assert musicality.degenerate(SCALE, (0.0, 30.0)) == ("silence",)


def test_nothing() -> None:
    assert musicality.degenerate(EMPTY) == ("silence",)
    numbers = musicality.summary(EMPTY)
    assert numbers.pop("silence_share") == 1.0
    assert set(numbers.values()) == {0.0}
    assert musicality.polyphony_shares(EMPTY).tolist() == [1.0]
    assert musicality.pitch_class_cosine(EMPTY, SCALE) == 0.0
    assert musicality.longest_bar_repetition(EMPTY, bar_seconds=2.0) == 0


@pytest.mark.parametrize("repeats", [2, 3, 9])
def test_a_loop_is_counted_exactly(repeats: int) -> None:
    group = (60, 67, 64, 67, 72)
    p = melody((50, 53, *group * repeats, 90, 41), gap=0.25)
    assert musicality.longest_loop(p) == Loop(repeats, 5, 1.25, 0.5)
    assert musicality.longest_bar_repetition(p) == repeats


def test_a_loop_that_breaks_off_counts_its_whole_rounds_only() -> None:
    p = melody((60, 67, 64, 67, 72) * 3 + (60, 67, 64), gap=0.25)
    assert musicality.longest_loop(p).repeats == 3


def test_a_loop_may_come_in_at_any_distance_from_what_was_before() -> None:
    loop = melody((60, 67, 64, 67, 72) * 4).shifted(7.25)
    p = Performance.from_notes([Note(0, 1, 30, 80), *loop])
    assert musicality.longest_loop(p) == Loop(4, 5, 1.25, 7.25)


def test_a_loop_of_chords_and_uneven_rhythm() -> None:
    bar = [(0.0, 48), (0.0, 64), (0.75, 67), (1.0, 52), (1.0, 71), (1.0, 76)]
    p = Performance.from_notes(Note(2.0 * k + t, 0.3, pitch, 80) for k in range(9) for t, pitch in bar)
    assert musicality.longest_loop(p) == Loop(9, 6, 2.0, 0.0)
    assert musicality.longest_bar_repetition(p, bar_seconds=2.0) == 9
    assert musicality.bar_self_similarity(p, bar_seconds=2.0) == pytest.approx(1.0)
    assert musicality.degenerate(p) == ("loop",)


def test_another_pitch_or_another_rhythm_ends_a_loop() -> None:
    group = (60, 67, 64, 67, 72)
    assert musicality.longest_loop(melody(group * 3 + (60, 67, 65, 67, 72) + group * 2)).repeats == 3
    gaps = [0.25] * 15 + [0.5] * 10
    onset = np.cumsum([0.0, *gaps])[:25]
    p = Performance.from_notes(Note(float(t), 0.2, pitch, 80) for t, pitch in zip(onset, group * 5, strict=True))
    assert musicality.longest_loop(p).repeats == 3


def test_of_equally_frequent_loops_the_longer_one_counts() -> None:
    short, long = (60, 67, 64, 67), (50, 57, 53, 58, 41, 45, 49, 40)
    for pitches in (short * 3 + (90,) + long * 3, long * 3 + (90,) + short * 3):
        assert musicality.longest_loop(melody(pitches))[:3] == (3, 8, 2.0)


def test_a_loop_survives_the_jitter_of_a_time_grid() -> None:
    rng = np.random.default_rng(1)
    gaps = 0.25 * (1 + rng.uniform(-0.1, 0.1, 45))
    onset = np.cumsum(gaps)
    p = Performance.from_notes(
        Note(float(t), 0.2, pitch, 80) for t, pitch in zip(onset, (60, 67, 64, 67, 72) * 9, strict=True)
    )
    assert musicality.longest_loop(p).repeats == 9


def test_a_trill_is_no_loop_but_a_minute_of_it_is() -> None:
    assert musicality.degenerate(melody((72, 74) * 24, gap=0.0625)) == ()  # 3 s
    assert musicality.longest_loop(melody((72, 74) * 24, gap=0.0625)) == Loop(3, 16, 1.0, 0.0)
    assert musicality.degenerate(melody((72, 74) * 480, gap=0.0625)) == ("loop",)


def test_one_note_forever() -> None:
    assert musicality.longest_loop(ONE_NOTE) == Loop(60, 4, 1.0, 0.0)
    assert musicality.pitch_class_entropy(ONE_NOTE) == 0.0
    assert musicality.degenerate(ONE_NOTE) == ("one note", "loop")
    slow = melody([60] * 10, gap=2.0)
    assert musicality.longest_loop(slow) == Loop(10, 1, 2.0, 0.0)


def test_a_few_notes_of_one_key_are_no_failure() -> None:
    assert musicality.degenerate(melody([60] * 6)) == ()


def test_a_phrase_of_five_seconds_played_five_times_is_a_loop() -> None:
    phrase = list(np.random.default_rng(3).integers(40, 80, 20))
    assert musicality.degenerate(melody(phrase * 4)) == ()
    assert musicality.degenerate(melody(phrase * 5)) == ("loop",)


def test_bars_of_known_length() -> None:
    bars = [(60, 64, 67, 72), (60, 64, 67, 72), (62, 65, 69, 74), (62, 65, 69, 74), (62, 65, 69, 74), (60, 64, 67, 72)]
    p = melody([pitch for bar in bars for pitch in bar], gap=0.5)
    assert musicality.longest_bar_repetition(p, bar_seconds=2.0) == 3
    late = p.shifted(0.7)
    assert musicality.longest_bar_repetition(late, bar_seconds=2.0, first_bar=0.7) == 3
    human = replace(p, onset=2.0 + p.onset + np.random.default_rng(0).uniform(-0.05, 0.05, len(p)))
    assert musicality.longest_bar_repetition(human, bar_seconds=2.0) == 3


def test_an_empty_bar_ends_a_row_of_equal_bars() -> None:
    bar = (60, 64, 67, 72)
    p = Performance.from_notes(Note(2.0 * k + 0.5 * i, 0.4, n, 80) for k in (0, 1, 3, 4, 5) for i, n in enumerate(bar))
    assert musicality.longest_bar_repetition(p, bar_seconds=2.0) == 3


def test_bar_self_similarity() -> None:
    p = melody((60, 62, 64, 65, 60, 62, 67, 69), gap=0.5)  # two bars that share two of six keys
    assert musicality.bar_self_similarity(p) == pytest.approx(2 / 6)
    assert musicality.bar_self_similarity(melody(range(40, 60), gap=0.5)) == 0.0
    assert musicality.bar_self_similarity(CHORD) == 0.0


def test_ngram_repetition() -> None:
    assert musicality.ngram_repetition(SCALE, n=8) == 0.0
    # 40 notes hold 33 runs of 8; of a loop of 5 notes 5 differ, and the other 28 came before.
    assert musicality.ngram_repetition(melody((60, 67, 64, 67, 72) * 8), n=8) == pytest.approx(28 / 33)
    rising = melody([pitch + step for step in (0, 5) for pitch in (60, 67, 64, 69, 62, 73, 61, 70)])
    assert musicality.ngram_repetition(rising, n=8) == pytest.approx(1 / 9)


def test_ngrams_tell_rhythms_apart() -> None:
    straight = melody([60, 62, 64, 65, 67, 69, 71, 72])
    onset = np.r_[straight.onset, 4.0 + np.cumsum([0, 0.25, 0.25, 0.25, 1.0, 0.25, 0.25, 0.25])]
    p = Performance.from_notes(Note(float(t), 0.2, n, 80) for t, n in zip(onset, C_MAJOR * 2, strict=True))
    assert musicality.ngram_repetition(p, n=8) == 0.0
    assert musicality.ngram_repetition(p, n=4) > 0.0


def test_cosine() -> None:
    assert musicality.pitch_class_cosine(SCALE, melody(C_MAJOR[::-1], gap=3.0)) == pytest.approx(1.0)
    assert musicality.pitch_class_cosine(melody((60, 62)), melody((61, 63))) == 0.0
    assert musicality.pitch_class_cosine(melody((60, 62)), melody((60, 63))) == pytest.approx(0.5)


def test_summary_agrees_with_the_functions() -> None:
    numbers = musicality.summary(SCALE)
    assert numbers["density"] == musicality.density(SCALE)
    assert numbers["notes"] == 8
    assert numbers["seconds"] == pytest.approx(2.0)
    assert numbers["median_inter_onset_interval"] == pytest.approx(0.25)
    assert all(type(value) is float for value in numbers.values())


@settings(max_examples=60, deadline=None)
@given(music(), st.integers(-20, 20))
def test_transposition_turns_the_histogram_and_changes_nothing_else(p: Performance, semitones: int) -> None:
    moved = p.transposed(semitones)
    assert musicality.summary(moved) == pytest.approx(musicality.summary(p))
    turned = np.roll(musicality.pitch_class_histogram(p), semitones)
    assert musicality.pitch_class_histogram(moved) == pytest.approx(turned)


@settings(max_examples=60, deadline=None)
@given(music(), st.sampled_from([0.5, 1.25, 1.5]))
def test_tempo_scales_times_and_leaves_shares(p: Performance, factor: float) -> None:
    quick, numbers = musicality.summary(faster(p, factor)), musicality.summary(p)
    for name in ("seconds", "longest_silence", "median_inter_onset_interval"):
        assert quick[name] == pytest.approx(numbers[name] / factor)
    assert quick["density"] == pytest.approx(numbers["density"] * factor)
    for name in ("pitch_range", "pitch_class_entropy", "commonest_pitch_share", "polyphony", "silence_share"):
        assert quick[name] == pytest.approx(numbers[name])


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25])
def test_tempo_leaves_repetition(factor: float) -> None:
    p = melody((50, 53, *(60, 67, 64, 67, 72) * 9, 90, 41), gap=0.5)
    quick = faster(p, factor)
    assert musicality.longest_loop(quick, group_seconds=1.0 / factor).repeats == 9
    # Two rounds of eight notes, whose gaps of 0.36 and 0.5 s count as equal at any tempo.
    onset = np.cumsum([0.0] + [0.5] * 8 + [0.36] * 3 + [0.5] * 4)
    human = Performance.from_notes(Note(float(t), 0.2, n, 80) for t, n in zip(onset, C_MAJOR * 2, strict=True))
    assert musicality.ngram_repetition(human) == pytest.approx(1 / 9)
    assert musicality.ngram_repetition(faster(human, factor)) == pytest.approx(1 / 9)
    similarity = musicality.bar_self_similarity(quick, bar_seconds=2.5 / factor)
    assert similarity == pytest.approx(musicality.bar_self_similarity(p, bar_seconds=2.5))


@settings(max_examples=60, deadline=None)
@given(music(), st.floats(0, 100))
def test_time_of_day_changes_nothing(p: Performance, seconds: float) -> None:
    rounded = round(seconds * 64) / 64  # a shift that float64 adds exactly enough
    assert musicality.summary(p.shifted(rounded)) == pytest.approx(musicality.summary(p), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(music())
def test_bounds(p: Performance) -> None:
    numbers = musicality.summary(p)
    for name in ("silence_share", "commonest_pitch_share", "bar_self_similarity", "ngram_repetition"):
        assert 0 <= numbers[name] <= 1
    assert 0 <= numbers["pitch_class_entropy"] <= np.log2(12) + 1e-9
    assert musicality.polyphony_shares(p).sum() == pytest.approx(1.0)
    assert musicality.polyphony_shares(p)[0] == pytest.approx(numbers["silence_share"], abs=1e-9)
    assert musicality.pitch_class_cosine(p, p) == pytest.approx(1.0 if len(p) else 0.0)
    loop = musicality.longest_loop(p)
    assert loop.repeats * max(loop.notes, 1) <= max(len(p), 1)
    assert loop.start + loop.total <= p.end + loop.seconds


@settings(max_examples=40, deadline=None)
@given(music(), st.integers(2, 5))
def test_music_played_k_times_in_a_row_loops_at_least_k_times(p: Performance, k: int) -> None:
    if not len(p):
        return
    period = p.end + 1.0
    again = Performance.from_notes(note._replace(onset=note.onset + period * i) for i in range(k) for note in p)
    assert musicality.longest_loop(again).repeats >= k


def test_real_music_is_rarely_accused() -> None:
    corpus = Path(os.environ.get("PULSE88_CORPUS", Path(__file__).parents[1].parent / "shared" / "corpus"))
    files = sorted((corpus / "validation").glob("*/*.mid"))[::12]
    if not files:
        pytest.skip(f"no validation pieces under {corpus}; set PULSE88_CORPUS to the unpacked corpus")
    accused = [f.name for f in files if musicality.degenerate(midi_file.read(f).performance)]
    assert len(accused) <= 1, accused
