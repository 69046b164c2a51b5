"""Windows in another key, at another tempo, louder: what changes, and what must not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulse88.augmentation import moved, stretched, tempo_factor
from pulse88.notes import Note, Performance
from pulse88.tokenizer import TOLERATED_DRIFT, Tokenizer
from pulse88.vocabulary import BLOCKS, BOS, EOS, FINE, GRIDS, PAD, PUBLISHED, Grammar, Slot, TimeGrid

CHANCE = np.random.default_rng(0)
PITCH = BLOCKS[Slot.PITCH]
GAPS = st.one_of(st.just(0.0), st.floats(0.03, 1.5))


@st.composite
def performances(draw: st.DrawFn) -> Performance:
    """Chords and runs of different keys, so that no note of one key falls on another."""
    gaps = draw(st.lists(GAPS, min_size=1, max_size=40))
    onsets = np.cumsum(gaps)
    return Performance.from_notes(
        Note(float(onset), draw(st.floats(0.05, 3.0)), 30 + (7 * n) % 71, draw(st.integers(1, 127)))
        for n, onset in enumerate(onsets)
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(PITCH.start, PITCH.stop - 1), min_size=1, max_size=6), st.integers(0, 2**32))
def test_moving_never_leaves_the_slot(pitches: list[int], seed: int) -> None:
    ids = np.array([BOS, *(x for pitch in pitches for x in (5, pitch, 130, 160)), EOS, PAD])
    higher = moved(ids, Slot.PITCH, np.random.default_rng(seed), 40, 40)
    (shift,) = {b - a for a, b in zip(ids[2:-2:4].tolist(), higher[2:-2:4].tolist(), strict=True)}
    assert PITCH.start <= higher[2:-2:4].min() <= higher[2:-2:4].max() < PITCH.stop
    assert -40 <= shift <= 40
    still = np.ones(len(ids), bool)
    still[2:-2:4] = False
    np.testing.assert_array_equal(ids[still], higher[still])


def test_factors_are_log_uniform_between_their_bounds() -> None:
    random = np.random.default_rng(0)
    logs = np.log([tempo_factor(random, 0.25) for _ in range(4000)]) / np.log(1.25)
    assert -1 <= logs.min() < -0.99 and 0.99 < logs.max() <= 1
    assert np.abs(np.histogram(logs, 4, (-1, 1))[0] - 1000).max() < 5 * np.sqrt(1000 * 0.75)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: grid.name)
@settings(max_examples=60, deadline=None)
@given(performances(), st.floats(0.7, 1.4), st.booleans(), st.booleans())
def test_another_tempo_is_legal_and_keeps_every_note(
    grid: TimeGrid, performance: Performance, factor: float, begins: bool, ends: bool
) -> None:
    tokenizer = Tokenizer(grid)
    ids = tokenizer.encode(performance, begins=begins, ends=ends, origin=None if begins else 0.0).ids.astype(np.int64)
    other = stretched(ids, factor, tokenizer, CHANCE)
    Grammar.of(other.tolist())
    assert len(other) == len(ids)
    assert (other[0] == BOS, other[-1] == EOS) == (begins, ends)
    for slot in (Slot.PITCH, Slot.VELOCITY):
        block = BLOCKS[slot]
        before, after = (np.sort(x[(x >= block.start) & (x < block.stop)]) for x in (ids, other))
        np.testing.assert_array_equal(before, after)


@settings(max_examples=60, deadline=None)
@given(performances(), st.booleans())
def test_the_same_tempo_is_the_same_ids(performance: Performance, begins: bool) -> None:
    tokenizer = Tokenizer(FINE)
    ids = tokenizer.encode(performance, begins=begins, origin=None if begins else 0.0).ids.astype(np.int64)
    np.testing.assert_array_equal(stretched(ids, 1.0, tokenizer, CHANCE), ids)


def test_on_a_grid_that_carries_no_errors_the_mean_follows_the_factor() -> None:
    tokenizer = Tokenizer(PUBLISHED)
    ids = np.tile([BLOCKS[Slot.DELTA].start + 24, 60, 140, 160], 500)
    before = tokenizer.decode(ids)
    after = tokenizer.decode(stretched(ids, 1.05, tokenizer, np.random.default_rng(3)))
    assert after.onset[-1] / before.onset[-1] == pytest.approx(1.05, abs=0.02)
    assert after.duration.mean() / before.duration.mean() == pytest.approx(1.05, abs=0.02)


@pytest.mark.parametrize("factor", [0.83, 0.95, 1.03, 1.2])
def test_a_window_lasts_longer_by_the_factor_and_so_do_its_notes(factor: float) -> None:
    """Even by less than a bin is wide: the tokenizer carries its errors."""
    random = np.random.default_rng(1)
    onset = np.cumsum(random.uniform(0.06, 0.7, 400))
    piece = Performance(onset, random.uniform(0.2, 2.0, 400), random.integers(30, 90, 400), np.full(400, 60), onset * 0)
    tokenizer = Tokenizer(FINE)
    ids = tokenizer.encode(piece, begins=False, ends=False, origin=0.0).ids.astype(np.int64)
    before, after = tokenizer.decode(ids), tokenizer.decode(stretched(ids, factor, tokenizer, CHANCE))
    assert np.abs(after.onset - factor * before.onset).max() < 5 * TOLERATED_DRIFT
    assert after.onset[-1] == pytest.approx(factor * before.onset[-1], rel=1e-3)
    ratio = after.duration / (factor * before.duration)
    assert 0.8 < ratio.min() <= ratio.max() < 1.25  # within a bin
    assert np.exp(np.log(ratio).mean()) == pytest.approx(1, abs=0.02)


def test_two_notes_of_one_key_that_come_together_become_one() -> None:
    """A tenth of a millisecond is none at 0.4 of it, and a chord strikes a key once."""
    start = BLOCKS[Slot.DELTA].start
    ids = np.array([BOS, start, 60, 140, 160, start + 1, 60, 140, 160, EOS])
    other = stretched(ids, 0.4, Tokenizer(PUBLISHED), CHANCE).tolist()
    assert [*other[:3], *other[4:]] == [BOS, start, 60, 160, EOS]
    assert 133 <= other[3] <= 134  # six and a half bins of 15 %


def test_windows_without_a_whole_event_stay() -> None:
    for ids in ([BOS], [BOS, EOS], [5]):
        np.testing.assert_array_equal(stretched(np.array(ids), 1.1, Tokenizer(FINE), CHANCE), ids)
