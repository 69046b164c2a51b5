from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from made_corpus import joined, piece, played_again
from pulse88.duplicates import (
    ANCHORS,
    LEAST_KINDS,
    LEAST_SHARED,
    TOGETHER,
    Fingerprint,
    Likeness,
    Sketch,
    fingerprint,
    groups,
    likenesses,
)
from pulse88.notes import Performance


def print_of(performance: Performance) -> Fingerprint:
    return fingerprint(performance.onset, performance.pitch)


def slow_shingles(pitch: list[int]) -> set[tuple[int, ...]]:
    """The 11 intervals of every 12 notes, where LEAST_KINDS of them differ (modulo 64)."""
    intervals = [b - a for a, b in itertools.pairwise(pitch)]
    runs = {tuple(intervals[i : i + 11]) for i in range(len(intervals) - 10)}
    return {run for run in runs if len({interval % 64 for interval in run}) >= LEAST_KINDS}


def slow_chordal(onset: list[float], pitch: list[int]) -> list[int]:
    chords: list[list[int]] = []
    for index, key in enumerate(pitch):
        if index and onset[index] - onset[index - 1] < TOGETHER:
            chords[-1].append(key)
        else:
            chords.append([key])
    return [key for chord in chords for key in sorted(chord)]


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.2]), st.integers(60, 70)), min_size=0, max_size=80))
def test_a_sketch_of_a_short_piece_has_one_hash_for_each_shingle(notes: list[tuple[float, int]]) -> None:
    onset, pitch = np.cumsum([step for step, _ in notes]), [key for _, key in notes]
    found = fingerprint(onset, np.array(pitch, np.uint8))
    assert len(found.struck) == len(slow_shingles(pitch))
    assert len(found.chordal) == len(slow_shingles(slow_chordal(onset.tolist(), pitch)))
    for sketch in (found.struck, found.chordal):
        assert sketch.dtype == np.uint32
        assert (np.diff(sketch.astype(np.int64)) > 0).all()


def test_equal_shingles_have_equal_hashes_and_others_have_not() -> None:
    random = np.random.default_rng(0)
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(300):
        pitch = random.integers(40, 46, 12)
        for moved in (pitch, pitch + 7):
            sketch = fingerprint(np.arange(12.0), moved.astype(np.uint8)).struck
            for shingle in slow_shingles(pitch.tolist()):
                assert seen.setdefault(shingle, int(sketch[0])) == sketch[0]
    assert len(set(seen.values())) == len(seen) > 200


def test_transposition_tempo_and_dynamics_change_nothing_of_a_print() -> None:
    original = piece(1)
    moved = original.transposed(-5)
    same = fingerprint(original.onset * 1.2 + 3, moved.pitch)
    for mine, other in zip(print_of(original), same, strict=True):
        assert np.array_equal(mine, other)


def test_the_opening_is_that_of_the_first_200_notes() -> None:
    random = np.random.default_rng(0)
    pitch = random.integers(40, 80, 300).astype(np.uint8)
    onset = np.arange(300.0)
    opening = fingerprint(onset, pitch).opening
    pitch[200:] += 1
    assert fingerprint(onset, pitch).opening == opening
    pitch[199] += 1
    assert fingerprint(onset, pitch).opening != opening
    assert fingerprint(onset[:150], pitch[:150]).opening != fingerprint(onset[:151], pitch[:151]).opening


def alike(pieces: list[Performance], kind: str, least: float) -> dict[tuple[int, int], float]:
    sketches = [getattr(print_of(p), kind) for p in pieces]
    found = likenesses(sketches, [len(p) for p in pieces], least)
    assert found == sorted(found, key=lambda like: (like.second, like.first))
    return {(like.first, like.second): like.share for like in found}


def test_another_performance_shares_the_chords_and_not_the_order_of_strikes() -> None:
    original = piece(1, 400)
    again = played_again(original, 2)
    assert alike([original, again], "chordal", 0.1)[0, 1] > 0.9
    assert not alike([original, again], "struck", 0.5)


def test_an_excerpt_is_as_like_as_can_be_and_other_music_is_not_alike() -> None:
    pieces = [
        piece(1, 400),
        piece(1, 400).take(slice(150, 300)),
        piece(2, 400),
        joined(piece(3, 300), piece(2, 400).take(slice(100))),
    ]
    found = alike(pieces, "struck", 0.05)
    assert found.keys() == {(0, 1), (2, 3)}
    assert found[0, 1] == 1.0


def test_scales_trills_and_repetitions_are_no_evidence() -> None:
    scale = np.array([60, 62, 64, 65, 67, 69, 71, 72] * 40, np.uint8)
    trill = np.array([60, 62] * 160, np.uint8)
    for pitch in (scale, trill, np.full(320, 60, np.uint8)):
        assert not len(fingerprint(np.arange(320.0), pitch).struck)


def test_long_pieces_are_sampled_and_shares_stay_right() -> None:
    random = np.random.default_rng(1)
    long = random.integers(40, 80, 8000).astype(np.uint8)
    half = np.r_[long[:2000], random.integers(40, 80, 2000)].astype(np.uint8)
    excerpt = np.r_[long[3000:3150], random.integers(40, 80, 150)].astype(np.uint8)
    prints = [fingerprint(np.arange(float(len(p))), p) for p in (long, half, excerpt)]
    sizes = [len(p.struck) for p in prints]
    assert 900 < sizes[0] < 1100
    assert sizes[2] > 280
    found = likenesses([p.struck for p in prints], [8000, 4000, 300], 0.1)
    assert [(like.first, like.second) for like in found] == [(0, 1), (0, 2)]
    assert found[0].share == pytest.approx(0.5, abs=0.06)
    assert found[1].share == pytest.approx(0.47, abs=0.2)


def slow_likenesses(sketches: list[Sketch], least: float) -> dict[tuple[int, int], float]:
    found = {}
    for (i, a), (j, b) in itertools.combinations(enumerate(sketches), 2):
        shared = len(np.intersect1d(a, b))
        if shared >= LEAST_SHARED and shared / min(len(a), len(b)) >= least:
            found[i, j] = shared / min(len(a), len(b))
    return found


@pytest.mark.parametrize("at_once", [2**22, 100])
def test_likenesses_are_those_of_every_pair_looked_at(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pulse88.duplicates._ENTRIES_AT_ONCE", at_once)
    random = np.random.default_rng(3)
    pool = random.integers(0, 2**32, 300, dtype=np.uint32)
    sketches = [np.unique(random.choice(pool, size)) for size in random.integers(0, 120, 40)]
    found = {(a, b): share for a, b, share in likenesses(sketches, [100] * 40, 0.2)}
    assert found == slow_likenesses(sketches, 0.2)
    assert len(found) > 50


def test_the_first_holders_of_a_shingle_are_compared_with_all_others() -> None:
    sketch = np.arange(20, dtype=np.uint32)
    count = ANCHORS + 10
    found = likenesses([sketch] * count, [100] * count, 0.5)
    assert {(like.first, like.second) for like in found} == {
        (a, b) for a, b in itertools.combinations(range(count), 2) if a < ANCHORS
    }


def test_nothing_is_like_nothing() -> None:
    empty: NDArray[np.uint32] = np.zeros(0, np.uint32)
    assert likenesses([], [], 0.1) == []
    assert likenesses([empty, empty], [0, 0], 0.1) == []


def test_groups_hand_likeness_on() -> None:
    likes = [Likeness(1, 2, 0.5), Likeness(4, 6, 0.5), Likeness(2, 6, 0.5)]
    assert groups(8, likes).tolist() == [0, 1, 1, 3, 1, 5, 1, 7]
    assert groups(0, []).tolist() == []
