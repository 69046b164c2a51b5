"""A tokenizer in plain Python, as slow as it is plain, and strategies for music and legal ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
from hypothesis import strategies as st

from pulse88.notes import Note, Performance
from pulse88.vocabulary import BOS, EOS, Grammar, Slot, TimeGrid


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
