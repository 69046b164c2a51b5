"""The table of ids against the specification's numbers, and the grammar against a slow oracle of its own."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulse88 import vocabulary
from pulse88.vocabulary import (
    BLOCKS,
    BOS,
    EOS,
    FINE,
    GRIDS,
    PAD,
    PUBLISHED,
    Grammar,
    Slot,
    TimeGrid,
    bin_velocity,
    name_of,
    slot_of,
    velocity_bin,
)

IDS = range(-1, 173)  # the vocabulary, and two neighbours outside it


# ---------------------------------------------------------------- the table


def test_every_id_is_what_the_specification_says() -> None:
    ranges = {Slot.DELTA: (0, 31), Slot.PITCH: (32, 119), Slot.DURATION: (120, 151), Slot.VELOCITY: (152, 167)}
    expected: dict[int, Slot | None] = dict.fromkeys((168, 169, 170))
    expected |= {token: slot for slot, (first, last) in ranges.items() for token in range(first, last + 1)}
    assert {token: slot_of(token) for token in range(171)} == expected
    assert Counter(slot for slot in expected.values() if slot is not None) == dict(
        zip(Slot, (32, 88, 32, 16), strict=True)
    )
    assert (PAD, BOS, EOS, vocabulary.SIZE, vocabulary.EVENT_TOKENS) == (168, 169, 170, 171, 4)
    assert [slot.name for slot in Slot] == ["DELTA", "PITCH", "DURATION", "VELOCITY"]
    for slot, (first, last) in ranges.items():
        assert BLOCKS[slot].ids.tolist() == list(range(first, last + 1))
        assert BLOCKS[slot].size == last - first + 1


@pytest.mark.parametrize("token", [-1, 171, 255])
def test_an_id_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match=f"id {token} is not in the vocabulary of 171"):
        slot_of(token)


def test_names_are_readable_and_differ() -> None:
    assert [name_of(token) for token in (0, 31, 32, 119, 120, 151, 152, 167, 168, 169, 170)] == [
        "delta 0",
        "delta 31",
        "pitch 21",
        "pitch 108",
        "duration 0",
        "duration 31",
        "velocity 0",
        "velocity 15",
        "PAD",
        "BOS",
        "EOS",
    ]
    assert len({name_of(token) for token in range(171)}) == 171


def test_velocity_bins_are_the_published_formula() -> None:
    for velocity in range(1, 128):
        assert velocity_bin(velocity) == round(velocity / 127 * 15)
    back = [round(index / 15 * 127) for index in range(16)]
    assert bin_velocity(np.arange(16)).tolist() == [1, *back[1:]]  # A note of velocity 0 would be a note-off.
    assert velocity_bin(bin_velocity(np.arange(16))).tolist() == list(range(16))
    assert max(abs(int(bin_velocity(velocity_bin(v))) - v) for v in range(1, 128)) == 4


# ---------------------------------------------------------------- time grids


def test_the_published_grid_is_the_specification() -> None:
    assert PUBLISHED.delta[0] == 0.0
    assert PUBLISHED.delta[1:] == pytest.approx([0.0001 * (2.0 / 0.0001) ** (i / 30) for i in range(31)], rel=1e-12)
    assert PUBLISHED.duration == pytest.approx([0.05 * (4.0 / 0.05) ** (i / 31) for i in range(32)], rel=1e-12)
    assert PUBLISHED.delta[2] / PUBLISHED.delta[1] == pytest.approx(1.391, abs=5e-4)
    assert PUBLISHED.duration[1] / PUBLISHED.duration[0] == pytest.approx(1.152, abs=5e-4)
    assert sum(t < 0.01 for t in PUBLISHED.delta[1:]) == 14
    assert not PUBLISHED.carries_error


def test_the_fine_grid_is_what_the_documents_say() -> None:
    assert FINE.delta[:3] == (0.0, 0.012, 0.022)
    assert (FINE.delta[3], FINE.delta[24], FINE.delta[31]) == pytest.approx((0.034, 0.8, 8.0))
    assert [b / a for a, b in pairwise(FINE.delta[3:25])] == pytest.approx([(0.8 / 0.034) ** (1 / 21)] * 21)
    assert [b / a for a, b in pairwise(FINE.delta[24:])] == pytest.approx([10 ** (1 / 7)] * 7)
    assert FINE.duration == pytest.approx([0.03 * (8.0 / 0.03) ** (i / 31) for i in range(32)])
    assert FINE.carries_error
    assert GRIDS == {"fine": FINE, "published": PUBLISHED}


def test_no_id_has_come_to_mean_something_else() -> None:
    """Weights are trained on these meanings. A new meaning is a new grid, under a new name."""
    assert {name: grid.fingerprint for name, grid in GRIDS.items()} == FINGERPRINTS


FINGERPRINTS = {"fine": "c0829566122928ed", "published": "c32778022dd902c6"}


@pytest.mark.parametrize(
    "other",
    [
        replace(FINE, delta=(0.0, 0.011, *FINE.delta[2:])),
        replace(FINE, duration=(*FINE.duration[:31], 8.001)),
        replace(FINE, carries_error=False),
        replace(FINE, delta=PUBLISHED.delta),
    ],
)
def test_fingerprints_tell_grids_apart(other: TimeGrid) -> None:
    assert other.fingerprint != FINE.fingerprint


def test_fingerprints_overlook_names_and_last_bits() -> None:
    assert replace(FINE, name="another").fingerprint == FINE.fingerprint
    nudged = (0.0, *(math.nextafter(t, math.inf) for t in FINE.delta[1:]))
    assert nudged != FINE.delta
    assert replace(FINE, delta=nudged).fingerprint == FINE.fingerprint


@pytest.mark.parametrize("name", ["LOWEST_PITCH", "HIGHEST_PITCH", "PAD", "BOS", "EOS"])
def test_fingerprints_hold_the_whole_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = FINE.fingerprint
    monkeypatch.setattr(vocabulary, name, getattr(vocabulary, name) - 1)
    assert FINE.fingerprint != before


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
def test_a_grid_survives_json(grid: TimeGrid) -> None:
    again = TimeGrid.from_json(grid.to_json())
    assert again == grid
    assert again.fingerprint == grid.fingerprint
    assert TimeGrid.from_json(json.dumps(json.loads(grid.to_json()), indent=1)) == grid


ROW = tuple(range(32))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"delta": FINE.delta[:-1]}, r"time grid 'fine': DELTA has 31 bins, not 32"),
        ({"duration": (*FINE.duration, 9.0)}, r"time grid 'fine': DURATION has 33 bins, not 32"),
        ({"delta": (0.0, 0.012, 0.012, *FINE.delta[3:])}, r"DELTA bins are not finite or do not ascend strictly"),
        ({"delta": FINE.delta[::-1]}, r"DELTA bins are not finite or do not ascend"),
        ({"duration": (*FINE.duration[:-1], math.nan)}, r"DURATION bins are not finite or do not ascend"),
        ({"duration": (*FINE.duration[:-1], math.inf)}, r"DURATION bins are not finite or do not ascend"),
        ({"delta": (0.001, *FINE.delta[1:])}, r"delta bin 0 must be 0 s and duration bin 0 above 0 s"),
        ({"delta": (-1.0, *FINE.delta[1:])}, r"delta bin 0 must be 0 s"),
        ({"duration": (0.0, *FINE.duration[1:])}, r"duration bin 0 above 0 s"),
    ],
)
def test_a_bad_grid_is_refused(changes: dict[str, tuple[float, ...]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(FINE, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"delta": None}, "not a time grid"),
        ({"delta": 7}, "not a time grid"),
        ({"delta": ["a"] * 32}, "not a time grid: could not convert"),
        ({"delta": [[0.1]] * 32}, "not a time grid"),
        ({"delta": [0.0, 10**400]}, "not a time grid"),
        ({"delta": [0.0, 1.0]}, "DELTA has 2 bins, not 32"),
        ({"carries_error": "false"}, "carries_error is neither true nor false"),
        ({"carries_error": 1}, "carries_error is neither true nor false"),
    ],
)
def test_bad_json_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TimeGrid.from_json(json.dumps(json.loads(FINE.to_json()) | change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"fine"'])
def test_text_that_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a time grid"):
        TimeGrid.from_json(text)


@pytest.mark.parametrize("key", ["name", "delta", "duration", "carries_error"])
def test_a_missing_key_is_named(key: str) -> None:
    data = json.loads(FINE.to_json())
    del data[key]
    with pytest.raises(ValueError, match=f"not a time grid: it has no '{key}'"):
        TimeGrid.from_json(json.dumps(data))


def test_a_grid_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        FINE.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
@pytest.mark.parametrize("slot", [Slot.DELTA, Slot.DURATION])
@given(seconds=st.floats(0, 12) | st.floats(0, 0.05))
def test_nearest_is_the_nearest_in_seconds(grid: TimeGrid, slot: Slot, seconds: float) -> None:
    bins = grid.delta if slot is Slot.DELTA else grid.duration
    distance = abs(seconds - bins[int(grid.nearest(slot, seconds))])
    assert distance == pytest.approx(min(abs(seconds - t) for t in bins), abs=1e-12)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
@pytest.mark.parametrize("slot", [Slot.DELTA, Slot.DURATION])
def test_bins_clamp_and_return(grid: TimeGrid, slot: Slot) -> None:
    bins = np.array(grid.delta if slot is Slot.DELTA else grid.duration)
    assert grid.seconds(slot, np.arange(32)).tolist() == bins.tolist()
    assert grid.nearest(slot, bins).tolist() == list(range(32))
    assert grid.nearest(slot, [0.0, bins[-1] + 1, 1e9]).tolist() == [0, 31, 31]
    middle = (bins[3] + bins[4]) / 2
    assert grid.nearest(slot, [np.nextafter(middle, 0), middle]).tolist() == [3, 4]


# ---------------------------------------------------------------- grammar


def allowed_after(sequence: list[int]) -> set[int]:
    """The ids that may follow a legal sequence, straight from the rules in words; slow, and knows no Grammar."""
    if sequence and sequence[-1] == 170:
        return set()
    begins = bool(sequence) and sequence[0] == 169
    body = sequence[1:] if begins else sequence
    whole, under_way = len(body) // 4, body[len(body) // 4 * 4 :]
    last_pitch = body[4 * whole - 3] if whole else None
    match len(under_way):
        case 0:
            if begins and not whole:
                return {0}
            deltas = set(range(32))
            if last_pitch == 119:  # C8: no key lies above it
                deltas.remove(0)
            return deltas | {170}
        case 1:
            lowest = last_pitch + 1 if under_way[0] == 0 and last_pitch is not None else 32
            return set(range(lowest, 120))
        case 2:
            return set(range(120, 152))
        case _:
            return set(range(152, 168))


@st.composite
def walks(draw: st.DrawFn) -> list[int]:
    """Legal sequences of up to ten events by the oracle, often chords, often at the top of the keyboard."""
    sequence = [BOS] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 40))):
        allowed = sorted(allowed_after(sequence))
        if not allowed:
            break
        likely = [token for token in allowed if token in (0, 1, 60, 61, 117, 118, 119, 130, 160)]
        sequence.append(draw(st.sampled_from(likely or allowed) | st.sampled_from(allowed)))
    return sequence


@settings(max_examples=80)
@given(walks())
def test_grammar_lists_and_accepts_exactly_what_the_rules_say(sequence: list[int]) -> None:
    state = Grammar.of(sequence)
    allowed = allowed_after(sequence)
    assert state.legal().tolist() == sorted(allowed)
    assert state.legal(may_end=False).tolist() == sorted(allowed - {EOS})
    assert state.slot == (None if sequence[-1:] == [EOS] else Slot((len(sequence) - (sequence[:1] == [BOS])) % 4))
    for token in IDS:
        if token in allowed:
            assert Grammar.of([*sequence, token]) == state.after(token)
        else:
            with pytest.raises(ValueError, match=r"may not come here|not in the vocabulary"):
                state.after(token)


@settings(max_examples=80)
@given(walks(), st.integers(0, 40), st.sampled_from(IDS))
def test_the_first_illegal_id_is_named(sequence: list[int], index: int, token: int) -> None:
    broken = list(sequence)
    broken[index : index + 1] = [token]
    fine = 0
    while fine < len(broken) and (broken[fine] in allowed_after(broken[:fine]) or (fine == 0 and broken[0] == BOS)):
        fine += 1
    if fine == len(broken):
        Grammar.of(broken)
    else:
        with pytest.raises(ValueError, match=f"^token {fine}: "):
            Grammar.of(np.array(broken, np.int64))


def test_a_piece_begins_with_delta_0() -> None:
    assert Grammar.begin().legal().tolist() == [0]
    assert Grammar.of([BOS]) == Grammar.begin()
    assert Grammar.of([]) == Grammar.middle()
    assert Grammar.middle().legal().tolist() == [*range(32), EOS]
    assert Grammar.begin().after(0).legal().tolist() == list(range(32, 120)), "any key may begin"


def test_a_chord_ascends_from_its_last_key() -> None:
    state = Grammar.of([5, 32 + 40, 130, 160, 0])
    assert state.legal().tolist() == list(range(32 + 41, 120))
    assert Grammar.of([5, 32 + 40, 130, 160, 1]).legal().tolist() == list(range(32, 120))


def test_no_chord_goes_on_above_the_highest_key() -> None:
    assert Grammar.of([5, 119, 130, 160]).legal().tolist() == [*range(1, 32), EOS]
    assert Grammar.of([5, 118, 130, 160]).legal().tolist() == [*range(32), EOS]
    assert Grammar.of([5, 118, 130, 160, 0]).legal().tolist() == [119]


def test_eos_ends_and_comes_after_whole_events_only() -> None:
    event = [0, 72, 130, 160]
    ended = Grammar.of([BOS, *event, EOS])
    assert ended.slot is None
    assert ended.legal().tolist() == []
    for partial in ([BOS], [BOS, 0], [BOS, 0, 72], [BOS, 0, 72, 130]):
        with pytest.raises(ValueError, match=rf"token {len(partial)}: EOS \(id 170\) may not come here"):
            Grammar.of([*partial, EOS])


def test_pad_and_a_second_bos_never_come() -> None:
    for sequence in ([PAD], [BOS, BOS], [BOS, PAD], [0, 72, 130, 160, BOS], [0, 72, 130, 160, EOS, PAD]):
        with pytest.raises(ValueError, match=f"token {len(sequence) - 1}: "):
            Grammar.of(sequence)
