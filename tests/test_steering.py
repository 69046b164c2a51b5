"""Steering: walls hold, pulls pull to where they shall, and nothing changes where nothing is asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulse88 import generate
from pulse88.config import SamplingConfig, SteeringConfig
from pulse88.generate import Event
from pulse88.steering import Steering, tilted
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import BOS, FINE
from toy_engine import ToyEngine

SEED = (BOS, 0, 71, 140, 160)  # MIDI 60


def made(config: SteeringConfig, notes: int = 60, random_seed: int = 1, next_gap: float | None = None) -> list[Event]:
    ending = config.end_within is not None
    take = generate.begin(ToyEngine(max_positions=512), SEED, SamplingConfig(), random_seed=random_seed, may_end=ending)
    steering = Steering.begin(config, FINE, next_gap=next_gap)
    events: list[Event] = []
    while len(events) < notes and (step := generate.advance(take, steering)) is not None:
        event, take = step
        steering = steering.after(event)
        events.append(event)
    return events


def heard(events: list[Event]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Onsets after the join, pitches, and ends."""
    new = Tokenizer(FINE).decode([i for event in events for i in event])
    return new.onset, new.pitch, new.onset + new.duration


def test_without_a_setting_the_take_is_the_unsteered_one() -> None:
    take = generate.begin(ToyEngine(max_positions=512), SEED, SamplingConfig(), random_seed=1)
    plain = [event for (event, _), _ in zip(generate.play(take), range(60), strict=False)]
    assert made(SteeringConfig()) == plain


@given(st.integers(21, 108), st.integers(0, 87), st.integers(0, 2**32))
def test_no_note_lies_outside_the_register(low: int, width: int, random_seed: int) -> None:
    high = min(low + width, 108)
    _, pitch, _ = heard(made(SteeringConfig(register=(low, high)), 12, random_seed))
    assert len(pitch) == 12
    assert pitch.min() >= low and pitch.max() <= high


@given(st.sets(st.integers(0, 11), min_size=1), st.integers(0, 2**32))
def test_only_the_pitch_classes_are_played(classes: set[int], random_seed: int) -> None:
    _, pitch, _ = heard(made(SteeringConfig(pitch_classes=tuple(sorted(classes))), 12, random_seed))
    assert {int(p) % 12 for p in pitch} <= classes


def test_a_config_that_leaves_no_key_is_refused() -> None:
    with pytest.raises(ValueError, match="widen the register"):
        Steering.begin(SteeringConfig(register=(60, 60), pitch_classes=(1,)), FINE)


@pytest.mark.parametrize("end_within", [0.5, 3.0, 20.0])
def test_the_piece_ends_in_time_and_so_does_its_last_note(end_within: float) -> None:
    for random_seed in range(5):
        events = made(SteeringConfig(end_within=end_within), 10_000, random_seed)
        assert len(events) < 10_000
        onset, _, end = heard(events)
        # One note may begin where none can in time, and the shortest duration is longer than none.
        assert (onset <= end_within).all()
        assert end.max(initial=0.0) <= end_within + FINE.duration[0]


def test_the_piece_does_not_end_before_it_has_begun() -> None:
    eager = ToyEngine(max_positions=512, logits_of=lambda prefix: np.where(np.arange(171) == 170, 30.0, 0.0))
    take = generate.begin(eager, SEED, SamplingConfig(), random_seed=1, may_end=True)
    assert generate.advance(take) is None
    assert generate.advance(take, Steering.begin(SteeringConfig(end_within=10.0), FINE)) is not None


@pytest.mark.parametrize("band", [(0.0, 0.5), (2.0, 3.0), (4.0, 6.0)])
def test_the_density_comes_into_its_band(band: tuple[float, float]) -> None:
    onset, _, _ = heard(made(SteeringConfig(density=band), 120))
    assert band[0] / 1.3 <= len(onset) / onset[-1] <= band[1] * 1.3
    free, _, _ = heard(made(SteeringConfig(), 120))
    assert not band[0] / 1.3 <= len(free) / free[-1] <= band[1] * 1.3


@given(
    st.lists(st.floats(-8, 8), min_size=32, max_size=32),
    st.floats(0.01, 3.0),
    st.floats(1.0, 4.0),
)
def test_a_tilt_brings_the_mean_gap_into_the_band_and_no_farther(
    logits: list[float], least: float, wide: float
) -> None:
    seconds = np.array(FINE.delta)

    def mean(values: np.ndarray) -> float:
        weights = np.exp(values - values.max())
        return float(weights @ seconds / weights.sum())

    before, after = mean(np.array(logits)), mean(tilted(np.array(logits), seconds, least, least * wide))
    if least <= before <= least * wide:
        assert after == before
    else:
        edge = least if before < least else least * wide
        assert after == pytest.approx(edge, rel=1e-3)


@given(st.floats(0, 20), st.integers(0, 2**32))
def test_the_first_note_comes_when_asked(next_gap: float, random_seed: int) -> None:
    onset, _, _ = heard(made(SteeringConfig(), 2, random_seed, next_gap))
    assert onset[0] == min(FINE.delta, key=lambda gap: abs(gap - next_gap))


def test_steering_begun_later_is_what_it_had_come_to() -> None:
    config = SteeringConfig(density=(2, 4), end_within=30)
    events = made(config, 25)
    gone = Steering.begin(config, FINE)
    for event in events:
        gone = gone.after(event)
    assert Steering.begin(config, FINE, events) == gone


@pytest.mark.parametrize(
    "bad",
    [
        {"density": (4, 2)},
        {"density": (0, 0)},
        {"density": (-1, 2)},
        {"register": (80, 60)},
        {"register": (0, 128)},
        {"pitch_classes": (12,)},
        {"end_within": 0.0},
        {"end_within": float("inf")},
    ],
)
def test_settings_without_sense_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"must be|are 0 to 11"):
        SteeringConfig(**bad)
    assert replace(SteeringConfig(), density=(0, 5)).steers
