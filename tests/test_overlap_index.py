"""Overlaps: planted passages are found at any transposition and tempo, copies score as copies, and noise as nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from made_corpus import piece
from pulse88 import overlap_index
from pulse88.duplicates import SHINGLE_NOTES, TOGETHER
from pulse88.notes import Performance
from pulse88.overlap_index import Line, OverlapIndex, OverlapIndexError, build, exact, line_of


def a_piece(seed: int) -> Performance:
    """600 notes, no key twice in a chord."""
    performance = piece(seed, 700)
    return performance.take(np.sort(line_of(performance.onset, performance.pitch).note)).take(slice(0, 600))


PIECES = {f"made/{seed}": a_piece(seed) for seed in range(12)}
EVERY = 16


def index_of(pieces: dict[str, Performance], every: int = EVERY) -> OverlapIndex:
    return build(((name, p.onset, p.pitch) for name, p in pieces.items()), every)


INDEX = index_of(PIECES)


def planted(
    passage: Performance, host: Performance, at: int, semitones: int, tempo: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Onsets and pitches of a host with a passage, transposed and `tempo` times as fast, after its first `at` notes."""
    onset = (passage.onset - passage.onset[0]) / tempo
    begins = host.onset[at - 1] + 0.5
    after = host.onset[at:] - host.onset[at - 1] + begins + onset[-1] + 0.5
    # The keyboard's ends, where no piece goes, stand next to it: the host never happens to go on as the passage did.
    fenced = np.r_[host.pitch[: at - 1], 108, 21, host.pitch[at + 1 :]].astype(np.int64)
    pitch = np.r_[fenced[:at], passage.pitch.astype(np.int64) + semitones, fenced[at:]]
    return np.r_[host.onset[:at], begins + onset, after], pitch.astype(np.int64)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(PIECES)),
    st.integers(0, 600 - INDEX.resolution),
    st.integers(-12, 12),
    st.floats(0.7, 1.4),
    st.integers(1, 200),
)
def test_a_plant_of_the_promised_length_is_always_found(
    name: str, begin: int, semitones: int, tempo: float, at: int
) -> None:
    chords = line_of(PIECES[name].onset, PIECES[name].pitch)  # a passage begins and ends with a whole chord
    begin = int(np.searchsorted(chords.onset, chords.onset[begin]))
    end = int(np.searchsorted(chords.onset, chords.onset[min(begin + INDEX.resolution - 1, 599)], "right"))
    passage = PIECES[name].take(slice(begin, end))
    if len(passage) < INDEX.resolution:
        return
    overlaps = INDEX.overlaps(*planted(passage, piece(1000, 400), at, semitones, tempo))
    assert overlaps, "nothing was found"
    best = overlaps[0]
    assert INDEX.names[best.piece] == name
    assert len(passage) - 2 * (EVERY - 1) <= best.notes <= len(passage)
    assert at <= best.first <= best.last < at + len(passage)


@pytest.mark.parametrize("every", [1, 5, 16, 44])
def test_a_copied_piece_scores_as_copied(every: int) -> None:
    index = index_of(PIECES, every)
    for number, performance in enumerate(PIECES.values()):
        best = index.overlaps(performance.onset, performance.pitch)[0]
        assert best.piece == number
        assert 600 - 2 * (every - 1) <= best.notes <= 600
        assert exact(performance.onset, performance.pitch, performance.onset, performance.pitch).notes == 600


def test_other_music_does_not_overlap() -> None:
    for seed in range(2000, 2030):
        other = piece(seed, 600)
        assert INDEX.overlaps(other.onset, other.pitch) == []


def test_a_changed_note_ends_an_overlap() -> None:
    index = index_of(PIECES, 1)
    performance = PIECES["made/3"]
    pitch = performance.pitch.astype(np.int64)
    pitch[400] = 20 + (pitch[400] - 20 + 37) % 88
    best = index.overlaps(performance.onset, pitch)[0]
    assert 380 <= best.notes <= 400 and best.last <= 402
    match = exact(performance.onset, pitch, performance.onset, performance.pitch)
    assert 395 <= match.notes <= 402


def test_the_same_notes_in_another_rhythm_are_no_overlap() -> None:
    index = index_of(PIECES, 8)
    performance = PIECES["made/5"]
    begins = np.diff(performance.onset, prepend=-np.inf) >= TOGETHER
    random = np.random.default_rng(0)
    gaps = np.exp(random.uniform(np.log(0.05), np.log(20.0), int(begins.sum())))
    onset = np.cumsum(gaps)[np.cumsum(begins) - 1] + 0.001 * np.arange(len(begins)) % 0.02
    assert max((o.notes for o in index.overlaps(onset, performance.pitch)), default=0) < 300
    assert index.overlaps(1.3 * performance.onset, performance.pitch)[0].notes > 580


@settings(max_examples=20)
@given(st.integers(0, 450), st.integers(20, 150), st.integers(-10, 10), st.floats(0.75, 1.35))
def test_the_exact_match_says_how_long_where_how_high_and_how_fast(
    begin: int, notes: int, semitones: int, tempo: float
) -> None:
    performance = PIECES["made/7"]
    line = line_of(performance.onset, performance.pitch)
    cut = slice(
        int(np.searchsorted(line.onset, line.onset[begin])),
        int(np.searchsorted(line.onset, line.onset[min(begin + notes, 599)], "right")),
    )
    passage = performance.take(cut)
    onset, pitch = planted(passage, piece(1001, 200), 60, semitones, tempo)
    match = exact(onset, pitch, performance.onset, performance.pitch)
    assert len(passage) <= match.notes <= len(passage) + 3  # a neighbour may happen to fit
    assert match.semitones == semitones
    assert match.tempo == pytest.approx(tempo, rel=0.1)
    assert abs(match.seconds - line.onset[cut.start]) < 0.6


def test_chords_are_read_from_below_whatever_their_order() -> None:
    onset = np.array([0.0, 0.01, 0.02, 0.5, 0.51])
    line = line_of(onset, np.array([67, 60, 64, 72, 48]))
    assert line.pitch.tolist() == [60, 64, 67, 48, 72]
    assert line.note.tolist() == [1, 2, 0, 4, 3]
    assert line.onset.tolist() == [0.0, 0.0, 0.0, 0.5, 0.5]


def test_a_key_struck_twice_in_a_chord_counts_once() -> None:
    line = line_of(np.array([0.0, 0.01, 0.02, 0.5]), np.array([60, 64, 60, 60]))
    assert line.pitch.tolist() == [60, 64, 60]
    assert line.note.tolist() == [0, 1, 3]


def test_scales_trills_and_repeated_notes_are_nothing() -> None:
    scale = Performance(
        onset=np.arange(300) * 0.1,
        duration=np.full(300, 0.1),
        pitch=np.concatenate([np.tile([60, 62], 50), np.full(100, 60), 40 + np.arange(100) % 30]),
        velocity=np.full(300, 64),
        part=np.zeros(300),
    )
    index = index_of({"scale": scale}, 4)
    assert index.overlaps(scale.onset, scale.pitch) == []


@pytest.mark.parametrize("notes", [0, 1, SHINGLE_NOTES - 1, SHINGLE_NOTES])
def test_few_notes_are_no_trouble(notes: int) -> None:
    few = PIECES["made/2"].take(slice(0, notes))
    index = index_of({"few": few, "made": PIECES["made/1"]})
    assert index.overlaps(few.onset, few.pitch) == []
    assert exact(few.onset, few.pitch, few.onset, few.pitch).notes == (notes if notes == SHINGLE_NOTES else 0)
    assert index.counts[0] == (1 if notes == SHINGLE_NOTES else 0)


def slowly_winnowed(hashes: NDArray[np.uint32], telling: NDArray[np.bool_], every: int) -> list[int]:
    chosen = set()
    for begin in range(max(1, len(hashes) - every + 1)):
        window = [(int(hashes[i]), -i) for i in range(begin, min(begin + every, len(hashes))) if telling[i]]
        if window:
            chosen.add(-min(window)[1])
    return sorted(chosen)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans()), max_size=60), st.integers(1, 20))
def test_winnowing_keeps_the_least_of_every_window(rows: list[tuple[int, bool]], every: int) -> None:
    hashes = np.array([row[0] for row in rows], np.uint32)
    telling = np.array([row[1] for row in rows], bool)
    assert overlap_index._winnowed(hashes, telling, every).tolist() == slowly_winnowed(hashes, telling, every)


def test_a_file_is_read_back_and_equal_indexes_give_equal_bytes(tmp_path: Path) -> None:
    made = replace(INDEX, about={"split": "train", "held_out": {"overlaps": {"0": 3}}})
    made.write(tmp_path / "a.npz")
    read = OverlapIndex.read(tmp_path / "a.npz")
    for field in ("counts", "seeds", "gaps", "seconds"):
        np.testing.assert_array_equal(getattr(read, field), getattr(made, field))
    assert (read.names, read.every, read.about) == (made.names, made.every, made.about)
    read.write(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"not an index")
    with pytest.raises(OverlapIndexError, match=r"a\.npz: no index .*pulse88 index DATA"):
        OverlapIndex.read(path)
    np.savez(path, tokens=np.zeros(3))
    with pytest.raises(OverlapIndexError, match="no index"):
        OverlapIndex.read(path)
    INDEX.write(path)
    with np.load(path) as arrays:
        parts = dict(arrays)
    parts["header"] = overlap_index._squeezed(json.dumps({"format": 99}).encode())
    np.savez(path, **parts)
    with pytest.raises(OverlapIndexError, match="format is 99"):
        OverlapIndex.read(path)
    with pytest.raises(FileNotFoundError):
        OverlapIndex.read(tmp_path / "none.npz")


@pytest.mark.parametrize("every", [0, 244])
def test_a_meaningless_every_is_refused(every: int) -> None:
    with pytest.raises(ValueError, match="every must be"):
        build([], every)


def test_lines_are_named_tuples_of_their_notes() -> None:
    assert Line._fields == ("pitch", "onset", "note")
