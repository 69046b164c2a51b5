"""Tokens against a slow encoder in plain Python and against hand-made music; refusals of illegal ids."""

from __future__ import annotations

import math
import random
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulse88.notes import Meter, Note, Performance, Tempo
from pulse88.tokenizer import EncodingReport, Tokenizer
from pulse88.vocabulary import BOS, EOS, FINE, GRIDS, PAD, PUBLISHED, Grammar, Slot, TimeGrid
from slow_tokenizer import legal_ids, pieces, slow_bin, slow_encode

BOTH = pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
more = settings(max_examples=60)


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


def test_the_example_of_the_documents() -> None:
    text = (Path(__file__).parents[1] / "docs" / "tokens.md").read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith("    169 "))
    notes = [Note(1.0, 0.5, 64, 80), Note(1.004, 0.5, 60, 72), Note(1.25, 0.2, 67, 96), Note(13.0, 12.0, 72, 40)]
    encoding = Tokenizer(FINE).encode(Performance.from_notes(notes))
    assert encoding.ids.tolist() == [int(token) for token in row.split()]
    decoded = Tokenizer(FINE).decode(encoding.ids)
    assert decoded.onset == pytest.approx([0, 0, 0.240, 8.240], abs=5e-4)
    assert decoded.duration == pytest.approx([0.536, 0.536, 0.218, 8.0], abs=5e-4)
    assert decoded.velocity.tolist() == [76, 76, 93, 42]
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
