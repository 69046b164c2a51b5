"""The compiled loops and their twins in Python: the same to the last bit, on what is ordinary and on what is odd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulse88 import midi_file, sequential
from pulse88.config import SamplingConfig
from pulse88.duplicates import fingerprint
from pulse88.midi_file import to_bytes
from pulse88.notes import Note, Performance
from pulse88.sampling import pick
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import FINE
from smf import meta, note, off, on, smf, track

pytestmark = pytest.mark.skipif(
    sequential.library() is None, reason="pulse88._sequential was not built on installation: there was no C compiler"
)
some = settings(max_examples=60, deadline=None)


def both(find: Callable[[], Any]) -> tuple[Any, Any]:
    """What is found with the compiled loops and without."""
    compiled = find()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequential, "library", lambda: None)
        return compiled, find()


def columns(performance: Performance) -> list[list[float]]:
    names = ("onset", "duration", "pitch", "velocity", "part", "pedal_time", "pedal_value", "pedal_part")
    return [getattr(performance, name).tolist() for name in names]


def random_notes(seed: int, count: int, moments: int, pitches: int = 88, parts: int = 3) -> dict[str, Any]:
    """Notes of which many begin together, some are the same, and pedals of several parts."""
    random = np.random.default_rng(seed)
    pedals = int(random.integers(0, 60))
    return {
        "onset": random.integers(0, moments, count) * 0.01 + random.integers(0, 2, count) * random.random(count) * 0.03,
        "duration": random.integers(1, 40, count) * 0.05,
        "pitch": random.integers(20, 20 + pitches, count),
        "velocity": random.integers(1, 4, count),
        "part": random.integers(0, parts, count),
        "pedal_time": np.sort(random.random(pedals) * 0.01 * moments),
        "pedal_value": random.integers(0, 128, pedals),
        "pedal_part": random.integers(0, parts + 1, pedals),
    }


@some
@given(seed=st.integers(0, 2**32), count=st.integers(0, 400), moments=st.integers(1, 800), pitches=st.integers(1, 100))
def test_notes_are_sorted_sounded_and_written_alike(seed: int, count: int, moments: int, pitches: int) -> None:
    given = random_notes(seed, count, moments, pitches)

    def find() -> Any:
        performance = Performance(**given)
        encoding = Tokenizer(FINE).encode(performance)
        sounding = performance.sounding_durations().tolist()
        return columns(performance), sounding, encoding.ids.tolist(), encoding.notes.tolist(), encoding.report

    compiled, plain = both(find)
    assert compiled == plain


@some
@given(
    seed=st.integers(0, 2**32), count=st.integers(0, 1200), moments=st.integers(1, 3000), pitches=st.integers(1, 100)
)
def test_fingerprints_are_alike(seed: int, count: int, moments: int, pitches: int) -> None:
    performance = Performance(**random_notes(seed, count, moments, pitches))

    def find() -> Any:
        found = fingerprint(performance.onset, performance.pitch)
        assert found.struck.dtype == found.chordal.dtype == np.uint32
        return found.opening, found.struck.tolist(), found.chordal.tolist()

    compiled, plain = both(find)
    assert compiled == plain


def test_chords_of_any_size_are_alike() -> None:
    """More notes at once than the compiled loops sort by hand, some of them the same key."""
    notes = [Note(1.0, 0.1 + n % 7, 21 + n * 37 % 88, 1 + n % 3, n % 2) for n in range(300)]
    notes += [Note(1.001 * k, 0.5, 60 + k % 3, 9) for k in range(2, 40)]

    def find() -> Any:
        performance = Performance.from_notes(notes)
        found = fingerprint(performance.onset, performance.pitch)
        return (
            columns(performance),
            Tokenizer(FINE).encode(performance).ids.tolist(),
            found.opening,
            found.chordal.tolist(),
        )

    compiled, plain = both(find)
    assert compiled == plain


def test_of_notes_that_are_alike_the_lower_part_comes_first() -> None:
    notes = [Note(0.5, 1.0, 60, 64, part) for part in (2, 0, 1)]
    for found in both(lambda: Performance.from_notes(notes).part.tolist()):
        assert found == [0, 1, 2]


def test_pedals_that_change_all_the_time_are_alike() -> None:
    """Notes that end far from one another in time, among thousands of changes: the search can't rely on its guess."""
    random = np.random.default_rng(4)
    given = {
        "onset": np.sort(random.random(3000) * 100),
        "duration": random.random(3000) * 90 + 0.01,
        "pitch": random.integers(0, 128, 3000),
        "velocity": np.full(3000, 64),
        "part": np.zeros(3000, np.int64),
        "pedal_time": np.sort(random.random(9000) * 200),
        "pedal_value": random.integers(0, 128, 9000),
        "pedal_part": np.zeros(9000, np.int64),
    }
    compiled, plain = both(lambda: Performance(**given).sounding_durations().tolist())
    assert compiled == plain


@some
@given(seed=st.integers(0, 2**32), tempos=st.integers(0, 40), tracks=st.integers(1, 4))
def test_files_with_many_tempos_are_read_alike(seed: int, tempos: int, tracks: int) -> None:
    random = np.random.default_rng(seed)
    changes = [
        (int(random.integers(0, 300)), meta(0x51, int(random.integers(1, 2**24)).to_bytes(3, "big")))
        for _ in range(tempos)
    ]
    chunks = []
    for _ in range(tracks):
        events: list[tuple[int, bytes]] = []
        for _ in range(int(random.integers(0, 60))):
            key = int(random.integers(21, 60))
            if random.random() < 0.9:
                events += note(int(random.integers(0, 90)), int(random.integers(0, 300)), key)
            else:  # A key that is struck again, or let go for nothing.
                events.append((int(random.integers(0, 90)), on(key) if random.random() < 0.5 else off(key)))
        chunks.append(track(*events))
    data = smf(track(*changes), *chunks)

    def find() -> Any:
        try:
            reading = midi_file.read(data)
        except midi_file.MidiError as error:
            return str(error)
        return columns(reading.performance), reading.performance.tempos, reading.report

    compiled, plain = both(find)
    assert compiled == plain


@pytest.mark.parametrize("struck", [1, 2, 40, 88])
def test_keys_that_are_only_struck_are_read_alike(struck: int) -> None:
    data = smf(track(*((1, on(21 + n)) for n in range(struck))))
    compiled, plain = both(lambda: columns(midi_file.read(data).performance))
    assert compiled == plain


def test_a_file_of_ours_is_read_alike() -> None:
    data = to_bytes(Performance(**random_notes(7, 500, 4000)).without_overlaps())
    compiled, plain = both(lambda: columns(midi_file.read(data).performance))
    assert compiled == plain


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 171),
    spread=st.sampled_from([0.0, 0.01, 1.0, 20.0]),
    coarse=st.booleans(),
    config=st.builds(
        SamplingConfig,
        temperature=st.sampled_from([0.0, 1e-3, 0.8, 1.0, 1.3]),
        top_p=st.sampled_from([0.25, 0.5, 0.97, 1.0]),
        top_k=st.sampled_from([0, 1, 5, 40, 171]),
        min_p=st.sampled_from([0.0, 0.05, 0.5]),
    ),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_ids_are_picked_alike(
    seed: int, size: int, spread: float, coarse: bool, config: SamplingConfig, uniform: float
) -> None:
    random = np.random.default_rng(seed)
    row = (random.standard_normal(171) * spread).astype(np.float32)
    if coarse:  # Many are equally likely.
        row = np.rint(row)
    legal = np.sort(random.permutation(171)[:size])
    row[legal[1::7]] = -np.inf
    compiled, in_python = both(lambda: pick(row, legal, config, uniform))
    assert compiled == in_python


def test_more_ids_than_the_loop_has_room_for_are_picked_in_python() -> None:
    row = np.zeros(1000)
    compiled, in_python = both(lambda: pick(row, range(1000), SamplingConfig(top_p=1.0), 0.7995))
    assert compiled == in_python == 799
