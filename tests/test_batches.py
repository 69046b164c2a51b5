"""Batches as a pure function: which windows come when, what is in them, how often a token is seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pulse88.batches import Ahead, Batches, TokenCorpus
from pulse88.config import TINY_RECIPE
from pulse88.vocabulary import BLOCKS, BOS, EOS, EVENT_TOKENS, FINE, GRIDS, PAD, Grammar, Slot, TimeGrid

CONFIG = replace(TINY_RECIPE, window=64, batch_windows=6, transpose_down=0, transpose_up=0)
PITCH = BLOCKS[Slot.PITCH]


def piece(events: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """BOS, legal events (never a chord, so that any pitch may come), EOS."""
    ids = np.stack([random.integers(BLOCKS[slot].start, BLOCKS[slot].stop, events) for slot in Slot], axis=1)
    ids[:, 0] = random.integers(1, BLOCKS[Slot.DELTA].stop, events)
    ids[0, 0] = 0
    return np.concatenate(([BOS], ids.ravel(), [EOS])).astype(np.uint8)


def corpus(*events: int, seed: int = 0) -> TokenCorpus:
    random = np.random.default_rng(seed)
    pieces = [piece(n, random) for n in events]
    names = tuple(f"source/{n}" for n in range(len(pieces)))
    return TokenCorpus(np.concatenate(pieces), np.array([len(p) for p in pieces]), names)


MIXED = corpus(1, 3, 15, 16, 17, 40, 100, 231)


def without_spreads(grid: TimeGrid) -> TokenCorpus:
    """MIXED without the shortest deltas, which another tempo may turn into a chord."""
    short = (MIXED.tokens > 0) & (MIXED.tokens < 4)
    return replace(MIXED, tokens=MIXED.tokens + 4 * short.astype(np.uint8), grid=grid)


def offsets(batches: Batches, epoch: int) -> list[list[int]]:
    """First tokens of an epoch's windows, by piece."""
    found: list[list[int]] = [[] for _ in batches.corpus.lengths]
    first = epoch * batches.windows_per_epoch
    for number in range(first, first + batches.windows_per_epoch):
        index, offset = batches.place(number)
        found[index].append(offset)
    return found


def test_a_batch_depends_on_its_arguments_alone() -> None:
    ahead, back = Batches(MIXED, CONFIG), Batches(MIXED, CONFIG)
    steps = list(range(25))  # several epochs
    forwards = {step: ahead.batch(step) for step in steps}
    backwards = {step: back.batch(step) for step in reversed(steps)}
    for step in steps:
        assert forwards[step].shape == (6, 65)
        np.testing.assert_array_equal(forwards[step], backwards[step])
        np.testing.assert_array_equal(forwards[step], Batches(MIXED, CONFIG).batch(step))
    assert len({batch.tobytes() for batch in forwards.values()}) == 25
    other = Batches(MIXED, replace(CONFIG, seed=1))
    assert any(not np.array_equal(other.batch(step), forwards[step]) for step in steps)


def test_a_batch_of_seed_0_is_what_it_always_was() -> None:
    """Released weights name their recipe by its seed, so this mapping never changes."""
    batch = Batches(MIXED, replace(CONFIG, transpose_down=5, transpose_up=6)).batch(3)
    places = [Batches(MIXED, CONFIG).place(number) for number in range(18, 24)]
    assert places == [(4, 1), (6, 249), (5, 0), (6, 137), (5, 49), (7, 725)]
    assert batch.sum(axis=1).tolist() == [6195, 6150, 6224, 6339, 6204, 6211]


def test_processes_share_the_batch_of_one() -> None:
    batches = Batches(MIXED, replace(CONFIG, transpose_down=5, transpose_up=6))
    for step in (0, 7):
        whole = batches.batch(step)
        for world in (1, 2, 3, 6):
            shared = [Batches(MIXED, batches.config).batch(step, rank, world) for rank in range(world)]
            np.testing.assert_array_equal(np.concatenate(shared), whole)
    with pytest.raises(ValueError, match="6 windows can't be shared by 4 processes"):
        batches.batch(0, 0, 4)


def test_a_run_goes_on_after_any_step() -> None:
    """Windows are numbered over all epochs: step n begins where step n - 1 ended."""
    batches = Batches(MIXED, CONFIG)
    numbers = [number for step in range(20) for number in batches.numbers(step)]
    assert numbers == list(range(120))
    later = Batches(MIXED, CONFIG)
    for step in (13, 4, 19):
        np.testing.assert_array_equal(later.batch(step), [batches.window(n) for n in numbers[6 * step : 6 * step + 6]])


def test_windows_are_stretches_of_one_piece() -> None:
    batches = Batches(MIXED, CONFIG)
    for number in range(5 * batches.windows_per_epoch):
        index, offset = batches.place(number)
        ids = batches.window(number)
        start, length = int(MIXED.starts[index]), int(MIXED.lengths[index])
        real = ids[ids != PAD]
        assert len(real) == min(65, length - offset)
        np.testing.assert_array_equal(real, MIXED.tokens[start + offset : start + offset + len(real)])
        assert (ids[len(real) :] == PAD).all()  # padding at the end only
        assert offset == 0 or (offset - 1) % EVENT_TOKENS == 0  # BOS, or an event
        assert (real[1:] != BOS).all()
        assert (real[:-1] != EOS).all()
        if len(real) < 65:
            assert real[-1] == EOS  # short because the piece ends, and for no other reason
        Grammar.of(real.tolist())  # ValueError for an illegal id


@pytest.mark.parametrize("window", [62, 64])
def test_windows_without_ends_are_the_same_stretches_without_bos_and_eos(window: int) -> None:
    config = replace(CONFIG, window=window)
    with_ends, batches = Batches(MIXED, config), Batches(MIXED, replace(config, ends=False))
    assert batches.windows_per_epoch == with_ends.windows_per_epoch
    first_events = last_events = 0
    for number in range(5 * batches.windows_per_epoch):
        index, offset = batches.place(number)
        ids = batches.window(number)
        start, length = int(MIXED.starts[index]), int(MIXED.lengths[index])
        real = ids[ids != PAD]
        assert offset % EVENT_TOKENS == 1  # an event's first token
        assert len(real) == min(window + 1, length - 1 - offset)
        np.testing.assert_array_equal(real, MIXED.tokens[start + offset : start + offset + len(real)])
        assert not np.isin(ids, (BOS, EOS)).any()
        there, place = with_ends.place(number)
        assert there == index
        assert abs(place - offset) <= EVENT_TOKENS
        first_events += length > window + 3 and offset == 1
        last_events += length > window + 3 and offset + len(real) == length - 1
    assert first_events > 5
    assert last_events > 5


def test_windows_without_ends_change_their_tempo_too() -> None:
    music = without_spreads(FINE)
    plain = Batches(music, replace(CONFIG, ends=False))
    stretching = Batches(music, replace(CONFIG, ends=False, tempo_stretch=0.2))
    for number in range(plain.windows_per_epoch):
        before, after = plain.window(number), stretching.window(number)
        assert (before == PAD).tolist() == (after == PAD).tolist()
        assert not np.isin(after, (BOS, EOS)).any()


def test_every_epoch_has_every_pieces_windows() -> None:
    batches = Batches(MIXED, CONFIG)
    expected = [-(-length // 64) for length in MIXED.lengths.tolist()]
    assert batches.windows_per_epoch == sum(expected)
    orders = set()
    for epoch in range(5):
        assert [len(found) for found in offsets(batches, epoch)] == expected
        first = epoch * batches.windows_per_epoch
        orders.add(tuple(batches.place(first + i)[0] for i in range(batches.windows_per_epoch)))
    assert len(orders) == 5  # shuffled anew


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 130), st.integers(0, 99))
def test_how_often_a_token_is_seen(events: int, seed: int) -> None:
    """The guarantee of batches.py: once in a short piece; else a chance of a half or better, 3 at most, mean 1 to 2."""
    one = corpus(events)
    length = int(one.lengths[0])
    batches = Batches(one, replace(CONFIG, seed=seed))
    epochs = 200
    seen = np.zeros((epochs, length), np.int64)
    for epoch in range(epochs):
        for offset in offsets(batches, epoch)[0]:
            seen[epoch, offset + 1 : offset + 65] += 1  # what is predicted: all but the window's first token
    targets = seen[:, 1:]  # nothing predicts BOS
    if length <= 64:
        assert (targets == 1).all()
        return
    assert targets.max() <= 3
    assert (targets > 0).mean(0).min() > 0.5 - 5 * (0.25 / epochs) ** 0.5  # five standard errors
    assert 0.95 < targets.mean() <= 2


def test_long_pieces_are_seen_once_on_average() -> None:
    batches = Batches(corpus(2000), CONFIG)
    seen = np.zeros(8002)
    for epoch in range(30):
        for offset in offsets(batches, epoch)[0]:
            seen[offset + 1 : offset + 65] += 1 / 30
    assert abs(seen[1:].mean() - 1) < 0.02
    assert np.abs(seen[201:-201].reshape(-1, 200).mean(1) - 1).max() < 0.15  # evenly over the piece


def test_beginnings_and_ends_are_seen() -> None:
    """Of a long piece in half of the epochs each, of a short one always."""
    batches = Batches(corpus(100, 5), CONFIG)
    begins = ends = 0
    for epoch in range(200):
        long, short = offsets(batches, epoch)
        assert short == [0]
        begins += 0 in long
        ends += any(offset + 65 >= 402 for offset in long)
    assert 70 < begins < 130
    assert 70 < ends < 130


def test_transposition_stays_on_the_keyboard_and_moves_all_pitches_alike() -> None:
    config = replace(CONFIG, transpose_down=5, transpose_up=6)
    narrow = corpus(40)
    tokens = narrow.tokens.astype(np.int64)
    is_pitch = (tokens >= PITCH.start) & (tokens < PITCH.stop)
    tokens[is_pitch] = 76 + tokens[is_pitch] % 7  # in the middle, so that every shift fits
    plain = Batches(replace(narrow, tokens=tokens.astype(np.uint8)), CONFIG)
    moved = Batches(plain.corpus, config)
    shifts = set()
    for number in range(300):
        before, after = plain.window(number), moved.window(number)
        pitched = (before >= PITCH.start) & (before < PITCH.stop)
        np.testing.assert_array_equal(before[~pitched], after[~pitched])
        (shift,) = set((after - before)[pitched].tolist())
        shifts.add(shift)
    assert shifts == set(range(-5, 7))


def test_loudness_moves_all_velocities_alike_and_nothing_else() -> None:
    velocity = BLOCKS[Slot.VELOCITY]
    soft = corpus(40)
    tokens = soft.tokens.astype(np.int64)
    is_velocity = (tokens >= velocity.start) & (tokens < velocity.stop)
    tokens[is_velocity] = velocity.start + 5 + tokens[is_velocity] % 5  # bins 5 to 9, so that every shift fits
    plain = Batches(replace(soft, tokens=tokens.astype(np.uint8)), CONFIG)
    louder = Batches(plain.corpus, replace(CONFIG, velocity_shift=2))
    shifts = set()
    for number in range(100):
        before, after = plain.window(number), louder.window(number)
        struck = (before >= velocity.start) & (before < velocity.stop)
        np.testing.assert_array_equal(before[~struck], after[~struck])
        (shift,) = set((after - before)[struck].tolist())
        shifts.add(shift)
    assert shifts == set(range(-2, 3))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: grid.name)
def test_another_tempo_is_a_whole_legal_window_of_the_same_place(grid: TimeGrid) -> None:
    music = without_spreads(grid)
    plain, stretching = Batches(music, CONFIG), Batches(music, replace(CONFIG, tempo_stretch=0.2))
    differ = 0
    for number in range(3 * plain.windows_per_epoch):
        before, after = plain.window(number), stretching.window(number)
        Grammar.of(after[after != PAD].tolist())  # ValueError for an illegal id
        assert plain.place(number) == stretching.place(number)
        assert after.shape == (65,)
        assert (before == PAD).tolist() == (after == PAD).tolist()
        np.testing.assert_array_equal(before == BOS, after == BOS)
        np.testing.assert_array_equal(before == EOS, after == EOS)
        for slot in (Slot.PITCH, Slot.VELOCITY):  # No chords in this corpus, so no note changes its place.
            block = BLOCKS[slot]
            there = (before >= block.start) & (before < block.stop)
            np.testing.assert_array_equal(before[there], after[there])
        differ += not np.array_equal(before, after)
    assert differ > 2.5 * plain.windows_per_epoch


def test_each_change_has_its_own_chance() -> None:
    """One turned on, the others stay what they were, and batches are as pure as before."""
    music = without_spreads(FINE)
    keys = Batches(music, replace(CONFIG, transpose_down=5, transpose_up=6))
    everything = replace(keys.config, tempo_stretch=0.1, velocity_shift=2)
    all_three = Batches(music, everything)
    for number in range(60):
        before, after = keys.window(number), all_three.window(number)
        pitched = (before >= PITCH.start) & (before < PITCH.stop)
        np.testing.assert_array_equal(before[pitched], after[pitched])
    shared = [Batches(music, everything).batch(7, rank, 3) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate(shared), all_three.batch(7))


def test_another_tempo_needs_the_grid() -> None:
    with pytest.raises(ValueError, match="without the corpus's time grid"):
        Batches(MIXED, replace(CONFIG, tempo_stretch=0.1))


def test_the_fingerprint_knows_every_token_and_every_cut() -> None:
    assert corpus(5, 9).fingerprint == corpus(5, 9).fingerprint
    tokens = corpus(5, 9).tokens.copy()
    tokens[7] ^= 1
    changed = replace(corpus(5, 9), tokens=tokens)
    cut = replace(corpus(5, 9), lengths=np.array([26, 34]))
    assert len({corpus(5, 9).fingerprint, corpus(9, 5).fingerprint, changed.fingerprint, cut.fingerprint}) == 4


def test_a_corpus_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="10 tokens, but lengths for 9"):
        TokenCorpus(np.zeros(10, np.uint8), np.array([4, 5]), ("a", "b"))
    with pytest.raises(ValueError, match="no pieces"):
        TokenCorpus(np.zeros(0, np.uint8), np.zeros(0, np.int64), ())


def test_batches_made_ahead_are_those_that_are_asked_for() -> None:
    batches = Batches(MIXED, replace(CONFIG, transpose_down=5, transpose_up=6))
    ahead = Ahead(batches, 1, 3)
    for step, next_step in ((0, 1), (1, 2), (7, 8), (8, 9), (3, 4), (3, 4), (4, 5)):
        np.testing.assert_array_equal(ahead.batch(step), batches.batch(step, 1, 3))
        ahead.begin(next_step)
    ahead.close()


def test_a_batch_that_fails_ahead_fails_when_it_is_asked_for() -> None:
    class Failing(Batches):
        def batch(self, step: int, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
            if step == 1:
                raise ValueError("no step 1")
            return super().batch(step, rank, world)

    ahead = Ahead(Failing(MIXED, CONFIG))
    ahead.begin(1)
    with pytest.raises(ValueError, match="no step 1"):
        ahead.batch(1)
    np.testing.assert_array_equal(ahead.batch(2), Batches(MIXED, CONFIG).batch(2))
    ahead.close()
