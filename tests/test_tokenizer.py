"""Tokens against a slow encoder in plain Python, against hand-made music, and against the bounds that are promised."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pulse88 import midi_file
from pulse88.notes import Meter, Note, Performance, Tempo
from pulse88.tokenizer import EncodingReport, Tokenizer
from pulse88.vocabulary import BOS, EOS, FINE, GRIDS, PAD, PUBLISHED, Grammar, Slot, TimeGrid

BOTH = pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
more = settings(max_examples=60)

# ---------------------------------------------------------------- strategies


@st.composite
def legal_ids(draw: st.DrawFn, begins: bool | None = None) -> list[int]:
    """Whole legal sequences, found by walking the grammar, every third event in a chord if it can be."""
    begins = draw(st.booleans()) if begins is None else begins
    dice = draw(st.randoms(use_true_random=False))
    ids, state = ([BOS], Grammar.begin()) if begins else ([], Grammar.middle())
    for _ in range(4 * draw(st.integers(0, 60))):
        allowed = state.legal(may_end=False).tolist()
        ids.append(allowed[0] if state.slot is Slot.DELTA and dice.random() < 0.3 else dice.choice(allowed))
        state = state.after(ids[-1])
    return [*ids, EOS] if EOS in state.legal() and draw(st.booleans()) else ids


def deltas_up_to(longest: float) -> st.SearchStrategy[list[float]]:
    """Gaps of a piece in seconds: chords, spread chords, runs, longer ones."""
    usual = st.floats(0.03, min(longest, 0.8))
    return st.lists(st.just(0.0) | st.floats(0, 0.03) | usual | st.floats(0, longest), max_size=60)


@st.composite
def pieces(draw: st.DrawFn, lowest: int = 18, highest: int = 111, pedal: bool = True) -> Performance:
    """Any music of two parts: few keys, so that they are often struck twice at once, and gaps of up to 10 s."""
    onsets = list(accumulate(draw(deltas_up_to(10.0)), initial=draw(st.floats(0, 5))))
    middle = draw(st.integers(lowest, highest))
    keys = st.integers(max(lowest, middle - 2), min(highest, middle + 2)) | st.integers(lowest, highest)
    durations = st.floats(0.001, 10) | st.sampled_from([0.1, 0.5])
    rows = st.tuples(durations, keys, st.integers(1, 127), st.integers(0, 1))
    notes = [Note(onset, *draw(rows)) for onset in onsets]
    times = draw(st.lists(st.floats(0, onsets[-1] + 5), max_size=6)) if pedal else []
    return replace(
        Performance.from_notes(notes),
        pedal_time=np.array(times, np.float64),
        pedal_value=np.array([draw(st.sampled_from([0, 127])) for _ in times], np.uint8),
        pedal_part=np.array([draw(st.integers(0, 1)) for _ in times], np.uint8),
    )


# ---------------------------------------------------------------- the slow encoder


def slow_bin(seconds: float, bins: Sequence[float]) -> int:
    return min(range(len(bins)), key=lambda k: abs(bins[k] - seconds))


def slow_limit(delta: float) -> float:
    """Seconds by which a delta may be bent."""
    return 0.25 * delta if delta >= 0.6 else max(0.15 * delta, 0.012)


def slow_deltas(deltas: Sequence[float], grid: TimeGrid) -> list[int]:
    """Of the bins that a delta may be bent to, the one that brings the clock nearest, once it is 40 ms off."""
    chosen, drift = [], 0.0
    for delta in deltas:
        own = slow_bin(delta, grid.delta)
        if grid.carries_error and delta <= grid.delta[-1]:
            before, drift = drift, drift + grid.delta[own] - delta
            if abs(drift) >= 0.04:
                against = range(own, -1, -1) if drift > 0 else range(own, 32)
                may = [k for k in against if k == own or abs(grid.delta[k] - delta) <= slow_limit(delta)]
                own = min(may, key=lambda k: abs(before + grid.delta[k] - delta))
                drift = before + grid.delta[own] - delta
        chosen.append(own)
    return chosen


def slow_encode(
    piece: Performance, grid: TimeGrid, begins: bool, ends: bool, origin: float | None = None
) -> tuple[list[int], list[int]]:
    """Ids, and how many of the sorted notes were left out for pitch and for striking a key twice at once."""
    notes = [note for note in piece.sustained() if 21 <= note.pitch <= 108]
    onsets = [note.onset for note in notes]
    previous = [onsets[0] if origin is None else origin, *onsets] if notes else []
    chords: list[tuple[int, dict[int, Note]]] = []
    for index, note in zip(slow_deltas([b - a for a, b in pairwise(previous)], grid), notes, strict=True):
        if index or not chords:
            chords.append((index, {}))
        keys = chords[-1][1]
        if note.pitch not in keys or note.duration > keys[note.pitch].duration:
            keys[note.pitch] = note
    ids = [BOS] if begins else []
    for delta, keys in chords:
        for place, pitch in enumerate(sorted(keys)):
            duration = slow_bin(keys[pitch].duration, grid.duration)
            velocity = round(keys[pitch].velocity / 127 * 15)
            ids += [0 if place else delta, 32 + pitch - 21, 120 + duration, 152 + velocity]
    written = sum(len(keys) for _, keys in chords)
    if ends and (notes or not begins):
        ids.append(EOS)
    return ids, [len(piece) - len(notes), len(notes) - written]


@BOTH
@more
@given(piece=pieces(), begins=st.booleans(), ends=st.booleans(), before=st.none() | st.floats(0, 12))
def test_encode_does_what_the_slow_encoder_does(
    grid: TimeGrid, piece: Performance, begins: bool, ends: bool, before: float | None
) -> None:
    origin = None if before is None or begins else float(piece.sustained().onset[0]) - before
    if origin is not None and not ((piece.pitch >= 21) & (piece.pitch <= 108)).any():
        origin = None
    encoding = Tokenizer(grid).encode(piece, begins=begins, ends=ends, origin=origin)
    ids, left_out = slow_encode(piece, grid, begins, ends, origin)
    assert encoding.ids.tolist() == ids
    assert encoding.ids.dtype == np.uint8
    assert [encoding.report.out_of_range, encoding.report.doubled] == left_out
    assert encoding.report.notes == len(piece)
    Grammar.of(ids)


STEPS_OF_A_FIFTH = replace(FINE, name="to 4 s", delta=(0.0, *np.geomspace(0.01, 4, 31).tolist()))


@pytest.mark.parametrize("grid", [*GRIDS.values(), STEPS_OF_A_FIFTH], ids=lambda grid: grid.name)
@pytest.mark.parametrize("typical", [0.005, 0.05, 0.2, 0.9, 3.0])
def test_long_pieces_as_by_the_slow_rule(grid: TimeGrid, typical: float) -> None:
    delta = np.random.default_rng(1).lognormal(math.log(typical), 0.7, 1500)
    assert Tokenizer(grid).delta_bins(delta).tolist() == slow_deltas(delta.tolist(), grid)


# ---------------------------------------------------------------- there and back


@BOTH
@more
@given(ids=legal_ids(), origin=st.floats(0, 1e5))
def test_ids_survive_decoding(grid: TimeGrid, ids: list[int], origin: float) -> None:
    tokenizer = Tokenizer(grid)
    begins, ends = ids[:1] == [BOS], ids[-1:] == [EOS]
    decoded = tokenizer.decode(ids, origin=origin, part=5)
    again = tokenizer.encode(decoded, begins=begins, ends=ends, origin=None if begins else origin)
    assert again.ids.tolist() == ids
    assert again.report == EncodingReport(notes=len(decoded))
    assert again.report.lines() == []
    assert again.notes.tolist() == list(range(len(decoded)))
    assert set(decoded.part.tolist()) <= {5}


@BOTH
@more
@given(piece=pieces())
def test_what_comes_back_is_near(grid: TimeGrid, piece: Performance) -> None:
    tokenizer = Tokenizer(grid)
    encoding = tokenizer.encode(piece)
    decoded = tokenizer.decode(encoding.ids)
    written = encoding.notes
    assert decoded.pitch.tolist() == piece.pitch[written].tolist()
    assert np.abs(decoded.velocity.astype(int) - piece.velocity[written]).max(initial=0) <= 4
    wanted = np.clip(piece.sounding_durations()[written], grid.duration[0], grid.duration[-1])
    ratio = (grid.duration[1] / grid.duration[0] + 1) / 2  # to the middle between two bins
    assert (np.maximum(decoded.duration / wanted, wanted / decoded.duration) <= ratio + 1e-9).all()
    again = tokenizer.encode(decoded)
    assert again.ids.tolist() == encoding.ids.tolist()


def test_decoding_follows_the_published_numbers() -> None:
    first, second = Tokenizer(PUBLISHED).decode([BOS, 0, 32, 120, 152, 31, 119, 151, 167, EOS], origin=2.5)
    assert first == pytest.approx((2.5, 0.05, 21, 1, 0))
    assert second == pytest.approx((4.5, 4.0, 108, 127, 0))


def test_a_worked_example() -> None:
    """The one of docs/tokens.md: two chord notes, a note a quarter of a second later, and one after a long rest."""
    notes = [Note(1.0, 0.5, 64, 80), Note(1.004, 0.5, 60, 72), Note(1.25, 0.2, 67, 96), Note(13.0, 12.0, 72, 40)]
    encoding = Tokenizer(FINE).encode(Performance.from_notes(notes))
    assert encoding.ids.tolist() == [
        *[BOS],
        *[0, 71, 136, 161],
        *[0, 75, 136, 161],
        *[16, 78, 131, 163],
        *[31, 83, 151, 157],
        *[EOS],
    ]
    assert encoding.notes.tolist() == [1, 0, 2, 3]
    assert encoding.report.lines() == [
        "1 of 4 notes came later than the longest gap of the grid and were moved closer",
        "1 of 4 notes rang longer than the longest duration of the grid and were cut",
    ]


@BOTH
def test_no_notes(grid: TimeGrid) -> None:
    tokenizer = Tokenizer(grid)
    empty = Performance(tempos=(Tempo(0, 90),), meters=(Meter(0, 3, 4),))
    assert tokenizer.encode(empty, ends=False).ids.tolist() == [BOS]
    assert tokenizer.encode(empty).ids.tolist() == [BOS], "EOS comes after an event, never after BOS"
    assert tokenizer.encode(empty, begins=False).ids.tolist() == [EOS]
    assert tokenizer.encode(empty, begins=False, ends=False, origin=3.0).ids.tolist() == []
    assert tokenizer.encode(empty).report == EncodingReport()
    for ids in ([], [BOS], [EOS]):
        assert tokenizer.decode(ids) == Performance()
    outside = Performance.from_notes([Note(0, 1, 20, 64), Note(1, 1, 109, 64)])
    encoding = tokenizer.encode(outside)
    assert encoding.ids.tolist() == [BOS]
    assert encoding.notes.tolist() == []
    assert encoding.report == EncodingReport(notes=2, out_of_range=2)


@BOTH
def test_one_note(grid: TimeGrid) -> None:
    tokenizer = Tokenizer(grid)
    encoding = tokenizer.encode(Performance.from_notes([Note(7.3, 0.5, 60, 64)]))
    assert encoding.ids[[0, 1, 2, 4, 5]].tolist() == [BOS, 0, 71, 160, EOS]
    (note,) = tokenizer.decode(encoding.ids, origin=7.3, part=2)
    assert (note.onset, note.pitch, note.velocity, note.part) == (7.3, 60, 68, 2)
    assert note.duration == pytest.approx(0.5, rel=0.09)


# ---------------------------------------------------------------- what encoding does not depend on, and leaves alone


@BOTH
@more
@given(piece=pieces(), dice=st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(grid: TimeGrid, piece: Performance, dice: random.Random) -> None:
    notes = list(piece)
    dice.shuffle(notes)
    pedal = {f.name: getattr(piece, f.name) for f in fields(piece) if f.name.startswith("pedal_")}
    shuffled = replace(Performance.from_notes(notes), **pedal)
    assert Tokenizer(grid).encode(shuffled).ids.tolist() == Tokenizer(grid).encode(piece).ids.tolist()


@BOTH
@more
@given(piece=pieces(lowest=40, highest=90), semitones=st.integers(-19, 18))
def test_transposition_moves_pitch_ids_only(grid: TimeGrid, piece: Performance, semitones: int) -> None:
    ids = Tokenizer(grid).encode(piece, begins=False, ends=False).ids.astype(int).reshape(-1, 4)
    moved = Tokenizer(grid).encode(piece.transposed(semitones), begins=False, ends=False).ids.reshape(-1, 4)
    assert (moved - ids == [0, semitones, 0, 0]).all()


@BOTH
@more
@given(piece=pieces(), seconds=st.floats(0, 1000))
def test_lateness_does_not_matter(grid: TimeGrid, piece: Performance, seconds: float) -> None:
    # On whole multiples of 2 ** -20 s sums are exact.
    exact = replace(piece, **{n: np.round(getattr(piece, n) * 2**20) / 2**20 for n in ("onset", "pedal_time")})
    exact = replace(exact, duration=np.ceil(exact.duration * 2**20) / 2**20)
    later = exact.shifted(round(seconds * 2**20) / 2**20)
    assert Tokenizer(grid).encode(later).ids.tolist() == Tokenizer(grid).encode(exact).ids.tolist()


@BOTH
@more
@given(piece=pieces())
def test_nothing_given_is_changed(grid: TimeGrid, piece: Performance) -> None:
    before = {f.name: np.copy(getattr(piece, f.name)) for f in fields(piece)}
    ids = Tokenizer(grid).encode(piece).ids
    assert all(np.array_equal(getattr(piece, name), was) for name, was in before.items())
    kept = ids.copy()
    Tokenizer(grid).decode(ids)
    assert ids.tolist() == kept.tolist()


@BOTH
@more
@given(piece=pieces())
def test_every_event_names_its_note(grid: TimeGrid, piece: Performance) -> None:
    encoding = Tokenizer(grid).encode(piece, begins=False, ends=False)
    events, notes = encoding.ids.reshape(-1, 4).astype(int), encoding.notes
    assert len(set(notes.tolist())) == len(notes) == len(piece) - encoding.report.out_of_range - encoding.report.doubled
    assert (events[:, Slot.PITCH] == piece.pitch[notes].astype(int) + 11).all()
    assert (events[:, Slot.VELOCITY] == 152 + np.rint(piece.velocity[notes] / 127 * 15)).all()
    sounding = [slow_bin(t, grid.duration) for t in piece.sounding_durations()[notes].tolist()]
    assert (events[:, Slot.DURATION] - 120).tolist() == sounding
    chord = np.cumsum(events[:, Slot.DELTA] != 0)
    first, last = ([f(piece.onset[notes][chord == c]) for c in np.unique(chord)] for f in (np.min, np.max))
    assert all(a <= b for a, b in zip(last, first[1:], strict=False)), "chords come one after another"


# ---------------------------------------------------------------- pedal, range, doubled strikes, clamping


@BOTH
@more
@given(piece=pieces())
def test_the_pedal_is_folded_exactly_once(grid: TimeGrid, piece: Performance) -> None:
    assert Tokenizer(grid).encode(piece).ids.tolist() == Tokenizer(grid).encode(piece.sustained()).ids.tolist()


def test_a_pedalled_note_rings_until_the_pedal_rises() -> None:
    notes = [Note(0.0, 0.1, 60, 64), Note(0.5, 0.1, 62, 64), Note(3.0, 0.1, 64, 64)]
    piece = replace(
        Performance.from_notes(notes),
        pedal_time=np.array([0.05, 2.0]),
        pedal_value=np.array([127, 0]),
        pedal_part=np.zeros(2, np.uint8),
    )
    durations = Tokenizer(FINE).encode(piece, begins=False, ends=False).ids.reshape(-1, 4)[:, Slot.DURATION] - 120
    assert durations.tolist() == [slow_bin(t, FINE.duration) for t in (2.0, 1.5, 0.1)]


def test_a_unison_of_two_parts_names_the_note_that_sounds() -> None:
    """The pedal makes the short loud note outlast the long soft one, and turns their order round."""
    piece = replace(
        Performance.from_notes([Note(1.0, 0.5, 60, 90, 0), Note(1.0, 2.0, 60, 30, 1)]),
        pedal_time=np.array([1.2, 6.0]),
        pedal_value=np.array([127, 0]),
        pedal_part=np.zeros(2, np.uint8),
    )
    encoding = Tokenizer(FINE).encode(piece)
    assert encoding.report.doubled == 1
    assert encoding.notes.tolist() == [0]
    assert encoding.ids.tolist() == [BOS, 0, 71, 120 + slow_bin(5.0, FINE.duration), 152 + round(90 / 127 * 15), EOS]


def test_of_a_unison_that_the_pedal_evens_out_the_softer_stays() -> None:
    piece = replace(
        Performance.from_notes([Note(1.0, 0.5, 60, 90), Note(1.0, 2.0, 60, 30)]),
        pedal_time=np.array([1.2, 6.0]),
        pedal_value=np.array([127, 0]),
        pedal_part=np.zeros(2, np.uint8),
    )
    assert Tokenizer(FINE).encode(piece).notes.tolist() == [1]
    assert Tokenizer(FINE).encode(piece.sustained()).ids.tolist() == Tokenizer(FINE).encode(piece).ids.tolist()


@BOTH
def test_keys_that_a_piano_lacks_are_left_out_and_counted(grid: TimeGrid) -> None:
    notes = [Note(0.5 * i, 0.2, pitch, 64) for i, pitch in enumerate((20, 21, 0, 108, 109, 127, 60))]
    encoding = Tokenizer(grid).encode(Performance.from_notes(notes))
    events = encoding.ids[1:-1].reshape(-1, 4)
    assert events[:, Slot.PITCH].tolist() == [32, 119, 71]
    assert events[0, Slot.DELTA] == 0
    assert grid.seconds(Slot.DELTA, events[1:, Slot.DELTA]) == pytest.approx([1.0, 1.5], rel=0.2)
    assert encoding.notes.tolist() == [1, 3, 6]
    assert encoding.report == EncodingReport(notes=7, out_of_range=4)
    assert encoding.report.lines() == ["4 of 7 notes left out, outside the 88 keys (MIDI 21-108)"]


def test_of_a_key_struck_twice_at_once_the_longest_stays() -> None:
    strikes = [Note(1.0, 0.3, 60, 10), Note(1.002, 0.9, 60, 50), Note(1.004, 0.5, 60, 90), Note(1.004, 0.1, 50, 64)]
    encoding = Tokenizer(FINE).encode(Performance.from_notes(strikes))
    assert encoding.ids[1:-1].reshape(-1, 4)[:, [Slot.DELTA, Slot.PITCH]].tolist() == [[0, 61], [0, 71]]
    assert encoding.notes.tolist() == [2, 1], "in the performance, which sorts 50 before 60 at 1.004 s"
    assert encoding.report == EncodingReport(notes=4, doubled=2)
    assert encoding.report.lines() == ["2 of 4 notes left out, the same key struck twice at once"]


def test_of_equally_long_strikes_the_first_stays() -> None:
    strikes = [Note(1.004, 0.5, 60, 90), Note(1.002, 0.5, 60, 50)]
    assert Tokenizer(FINE).encode(Performance.from_notes(strikes)).notes.tolist() == [0]
    together = [Note(1.0, 0.5, 60, 90), Note(1.0, 0.5, 60, 50)]
    encoding = Tokenizer(FINE).encode(Performance.from_notes(together))
    assert encoding.ids[4] == 152 + round(50 / 127 * 15)


@BOTH
def test_chords_are_written_from_below_whatever_was_struck_first(grid: TimeGrid) -> None:
    tick = grid.delta[1] / 4
    before = [Note(0.0, 0.5, 100, 64)]
    chord = [Note(1.0 + i * tick, 0.5, pitch, 64) for i, pitch in enumerate((76, 60, 72, 64))]
    after = [Note(2.0, 0.5, 30, 64)]
    encoding = Tokenizer(grid).encode(Performance.from_notes(before + chord + after), ends=False)
    deltas, pitches, *_ = encoding.ids[1:].reshape(-1, 4).T
    assert (pitches - 11).tolist() == [100, 60, 64, 72, 76, 30]
    assert deltas[[0, 2, 3, 4]].tolist() == [0, 0, 0, 0]
    assert (deltas[[1, 5]] > 0).all()


@BOTH
def test_long_gaps_and_notes_are_cut_and_counted(grid: TimeGrid) -> None:
    longest_gap, longest_note = grid.delta[-1], grid.duration[-1]
    onsets = [0.0, longest_gap, 2 * longest_gap + 0.5, 3 * longest_gap + 4.0, 3 * longest_gap + 4.5]
    lengths = [longest_note, longest_note + 0.1, 0.2, 50.0, 0.2]
    piece = Performance.from_notes(
        Note(onset, length, 60 + i, 64) for i, (onset, length) in enumerate(zip(onsets, lengths, strict=True))
    )
    encoding = Tokenizer(grid).encode(piece)
    assert encoding.report == EncodingReport(notes=5, clamped_gaps=2, clamped_durations=2)
    decoded = Tokenizer(grid).decode(encoding.ids)
    assert np.diff(decoded.onset)[:3] == pytest.approx([longest_gap] * 3)
    assert decoded.duration[[0, 1, 3]] == pytest.approx([longest_note] * 3)


@BOTH
def test_sums_of_the_longest_gap_are_not_too_long(grid: TimeGrid) -> None:
    tokenizer = Tokenizer(grid)
    decoded = tokenizer.decode([31, 60, 130, 160] * 300, origin=77.7123)
    assert (np.diff(decoded.onset) > grid.delta[-1]).any()
    assert tokenizer.encode(decoded).report.clamped_gaps == 0


def test_what_a_gap_loses_is_not_made_up_for() -> None:
    steady = [FINE.delta[12]] * 60
    late = Tokenizer(FINE).delta_bins(np.array([0.0, 30.0, *steady]))
    assert late.tolist() == [0, 31, *[12] * 60]


def test_a_gap_that_is_cut_is_not_bent_as_well() -> None:
    grid = replace(FINE, delta=(*FINE.delta[:30], 7.9, 8.0))
    ahead = [2.12] * 10  # each decoded 26 ms too long, and the bin below is too far to bend to
    assert Tokenizer(grid).delta_bins(np.array([*ahead, 8.0, 8.05])).tolist() == [*[27] * 10, 30, 31]
    assert Tokenizer(grid).delta_bins(np.array([*ahead, 8.05])).tolist() == [*[27] * 10, 31]


# ---------------------------------------------------------------- the two rules of time


@more
@given(deltas=deltas_up_to(12.0))
def test_the_published_grid_rounds_every_delta_by_itself(deltas: list[float]) -> None:
    bins = Tokenizer(PUBLISHED).delta_bins(np.array(deltas, np.float64))
    assert bins.tolist() == [slow_bin(delta, PUBLISHED.delta) for delta in deltas]


def errors(deltas: Sequence[float], grid: TimeGrid) -> NDArray[np.float64]:
    """[N] seconds that the decoded clock is ahead after each delta; what clamped gaps lose left aside."""
    delta = np.array(deltas, np.float64)
    error = grid.seconds(Slot.DELTA, Tokenizer(grid).delta_bins(delta)) - delta
    return np.cumsum(np.where(delta > grid.delta[-1], 0.0, error))


@more
@given(deltas=deltas_up_to(12.0))
def test_no_delta_is_bent_beyond_its_limit(deltas: list[float]) -> None:
    for delta, index in zip(deltas, Tokenizer(FINE).delta_bins(np.array(deltas, np.float64)).tolist(), strict=True):
        if index != slow_bin(delta, FINE.delta):
            assert abs(FINE.delta[index] - delta) <= slow_limit(delta)
            assert delta <= FINE.delta[-1]


@more
@given(deltas=deltas_up_to(12.0))
def test_small_drift_bends_nothing(deltas: list[float]) -> None:
    own = [slow_bin(delta, FINE.delta) for delta in deltas]
    drifts = np.cumsum([FINE.delta[k] - d if d <= FINE.delta[-1] else 0.0 for k, d in zip(own, deltas, strict=True)])
    calm = int(np.argmax(np.abs(drifts) >= 0.04 - 1e-9)) if (np.abs(drifts) >= 0.04 - 1e-9).any() else len(own)
    assert Tokenizer(FINE).delta_bins(np.array(deltas, np.float64))[:calm].tolist() == own[:calm]


def stuck(delta: float) -> float:
    """Seconds that a delta adds to a clock's error at worst, because no bend that is allowed goes against it."""
    if delta > FINE.delta[-1]:
        return 0.0
    own = slow_bin(delta, FINE.delta)
    reached = [t - delta for k, t in enumerate(FINE.delta) if k == own or abs(t - delta) <= slow_limit(delta)]
    return max(min(reached), -max(reached), 0.0)


def widest_step(deltas: Sequence[float]) -> float:
    """Seconds of the widest step between two bins that one of the deltas may choose between."""
    reach = [
        [k for k, t in enumerate(FINE.delta) if k == slow_bin(d, FINE.delta) or abs(t - d) <= slow_limit(d)]
        for d in deltas
    ]
    return max((FINE.delta[b] - FINE.delta[a] for ks in reach for a, b in pairwise(ks)), default=0.0)


@settings(max_examples=100)
@given(deltas=deltas_up_to(0.6) | deltas_up_to(9.0) | st.lists(st.sampled_from([0.0845, 0.2425, 0.5125, 0.88, 1.1])))
def test_the_clock_is_held_where_the_deltas_can_bend(deltas: list[float]) -> None:
    """The bound of docs/tokens.md: 40 ms or half the widest step, and what the deltas that can't bend add up to."""
    allowed = np.cumsum([stuck(delta) for delta in deltas]) + max(0.04, widest_step(deltas) / 2)
    assert (np.abs(errors(deltas, FINE)) <= allowed + 1e-9).all()


def test_which_deltas_can_not_bend() -> None:
    for delta in np.geomspace(0.001, 0.8, 4000, endpoint=False).tolist():
        assert stuck(delta) <= 0.0107 * delta
        assert delta > 0.0838 or stuck(delta) == 0.0
    for delta in np.geomspace(0.8, 8.0, 4000).tolist():
        assert stuck(delta) <= 0.1005 * delta


def test_steady_beats_keep_their_tempo_but_for_long_ones() -> None:
    """Of one repeated delta that can't bend the tempo is off for good: by 1 % at most below 0.8 s, by 10 % above."""
    slips = {}
    for beat in np.geomspace(0.01, 4.0, 300).tolist():
        slips[beat] = abs(errors([beat] * 400, FINE)[-1]) / (400 * beat)
    assert max(slip for beat, slip in slips.items() if 0.035 < beat < 0.8) < 0.0115
    assert 0.09 < max(slip for beat, slip in slips.items() if beat >= 0.8) < 0.1015
    held = [slip for beat, slip in slips.items() if stuck(beat) == 0.0 and beat > 0.035]
    assert len(held) > 150
    assert max(held) < 0.006


def test_carrying_errors_holds_a_tempo_that_rounding_loses() -> None:
    rng = np.random.default_rng(2)
    deltas = (0.19 * rng.lognormal(0, 0.03, 3000)).tolist()
    assert abs(errors(deltas, FINE)).max() < 0.06
    assert abs(errors(deltas, replace(FINE, carries_error=False))).max() > 5


# ---------------------------------------------------------------- refusals


def test_an_origin_must_lie_before_the_first_note() -> None:
    piece = Performance.from_notes([Note(0.0, 1, 20, 64), Note(2.0, 1, 60, 64)])
    encode = Tokenizer(FINE).encode
    with pytest.raises(ValueError, match="give begins or origin, not both"):
        encode(piece, origin=1.0)
    for origin in (2.001, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=rf"origin {origin} s is not a time before the first note, at 2\.0 s"):
            encode(piece, begins=False, origin=origin)
    with pytest.raises(ValueError, match=r"origin nan s is not a time before the first note$"):
        encode(Performance(), begins=False, origin=math.nan)
    assert encode(piece, begins=False, origin=2.0).ids[0] == 0
    assert encode(piece, begins=False).ids[0] == 0
    assert encode(piece, begins=False, origin=1.5).ids[0] == slow_bin(0.5, FINE.delta)
    assert encode(piece, begins=False, origin=-100.0).ids[0] == 31


@more
@given(ids=legal_ids(), index=st.integers(0, 240), token=st.integers(-2, 260))
def test_decode_refuses_exactly_what_the_grammar_refuses(ids: list[int], index: int, token: int) -> None:
    ids[index % (len(ids) + 1) : index % (len(ids) + 1) + 1] = [token]
    body = [i for i in ids if i not in (BOS, EOS)]
    try:
        Grammar.of(ids)
    except ValueError as error:
        with pytest.raises(ValueError, match=r"^token \d+: ") as refusal:
            Tokenizer(FINE).decode(ids)
        assert str(refusal.value) == str(error)
    else:
        if len(body) % 4:
            with pytest.raises(ValueError, match=f"the last event has only {len(body) % 4} of its 4 ids"):
                Tokenizer(FINE).decode(ids)
        else:
            assert len(Tokenizer(FINE).decode(ids)) == len(body) // 4


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([BOS, 1, 71, 130, 160], r"token 1: delta 1 \(id 1\) may not come here"),
        ([BOS, EOS], r"token 1: EOS \(id 170\) may not come here"),
        ([0, 71, 130, 160, 0, 71, 130, 160], r"token 5: pitch 60 \(id 71\) may not come here"),
        ([0, 71, 130, 160, 0, 70, 130, 160], r"token 5: pitch 59"),
        ([3, 71, 130], r"the last event has only 3 of its 4 ids"),
        ([3, 71, 130, 160, EOS, EOS], r"token 5: EOS"),
        ([3, 71, 130, 160, PAD], r"token 4: PAD \(id 168\) may not come here"),
        ([3, 71, EOS], r"token 2: EOS"),
        ([3, 71, 130, 171], r"token 3: id 171 is not in the vocabulary"),
        ([-1, 71, 130, 160], r"token 0: id -1 is not in the vocabulary"),
        ([0.0, 71.0, 130.0, 160.0], r"ids are one row of whole numbers, not float64 of shape \(4,\)"),
        ([[3, 71, 130, 160]], r"not int64 of shape \(1, 4\)"),
        (7, r"not int64 of shape \(\)"),
    ],
)
def test_illegal_ids_are_named(ids: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Tokenizer(FINE).decode(ids)


@BOTH
def test_decode_takes_any_whole_number_type(grid: TimeGrid) -> None:
    ids = [BOS, 0, 71, 130, 160, 5, 72, 130, 160, EOS]
    expected = Tokenizer(grid).decode(ids)
    for dtype in (np.uint8, np.int16, np.int64, np.uint64):
        assert Tokenizer(grid).decode(np.array(ids, dtype)) == expected


# ---------------------------------------------------------------- real music


@pytest.fixture(scope="module")
def real_pieces() -> list[Performance]:
    """Every twentieth held-out piece."""
    corpus = Path(os.environ.get("PULSE88_CORPUS", Path(__file__).parents[1].parent / "shared" / "corpus"))
    files = sorted((corpus / "validation").glob("*/*.mid"))[::20]
    if not files:
        pytest.skip(f"no validation pieces under {corpus}; set PULSE88_CORPUS to the unpacked corpus")
    return [midi_file.read(file).performance for file in files]


@BOTH
def test_real_pieces_there_and_back(grid: TimeGrid, real_pieces: list[Performance]) -> None:
    tokenizer = Tokenizer(grid)
    for piece in real_pieces:
        encoding = tokenizer.encode(piece)
        report = encoding.report
        decoded = tokenizer.decode(encoding.ids)
        assert tokenizer.encode(decoded).ids.tolist() == encoding.ids.tolist()
        assert report.out_of_range + report.doubled <= 0.05 * len(piece), "pop files double their melody"
        assert len(decoded) == len(piece) - report.out_of_range - report.doubled
        assert decoded.pitch.tolist() == piece.pitch[encoding.notes].tolist()


def test_real_pieces_keep_their_times(real_pieces: list[Performance]) -> None:
    """The bounds that the grid was chosen for: 4.15 % and 12 % between onsets, 0.5 % of tempo over 100 notes."""
    between, tempo = [], []
    for piece in real_pieces:
        delta = np.diff(piece.onset)
        decoded = FINE.seconds(Slot.DELTA, Tokenizer(FINE).delta_bins(delta))
        audible = (delta >= 0.03) & (delta <= 2)
        between.append(np.abs(decoded[audible] / delta[audible] - 1))
        true, kept = (np.convolve(t, np.ones(100), "valid") for t in (delta, decoded))
        tempo.append(np.abs(kept / true - 1)[true > 1])
    assert np.median(np.concatenate(between)) < 0.0415
    assert np.percentile(np.concatenate(between), 95) < 0.12
    assert np.concatenate(tempo).mean() < 0.005
