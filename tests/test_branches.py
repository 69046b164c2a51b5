"""Going back in a playing: other music from there on, the same again on replay, and nothing else changed."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse88.config import TINY, SteeringConfig
from pulse88.continuation import Continuer
from pulse88.engine.weights import Weights, random_tensors
from pulse88.notes import Performance
from pulse88.playing import Playing
from pulse88.provenance import MARK, ContinueConfig, Provenance
from pulse88.vocabulary import FINE

CONFIG = replace(TINY, max_positions=128)


@pytest.fixture(scope="module")
def continuer() -> Continuer:
    return Continuer(Weights(CONFIG, random_tensors(CONFIG, 1), FINE), "numpy")


def a_seed() -> Performance:
    random = np.random.default_rng(2)
    return Performance(
        onset=np.cumsum(random.uniform(0.05, 0.4, 12)),
        duration=np.full(12, 0.3),
        pitch=random.integers(40, 80, 12),
        velocity=random.integers(30, 100, 12),
        part=np.zeros(12),
    )


def begun(continuer: Continuer, steering: SteeringConfig | None = None) -> Playing:
    return continuer.begin(a_seed(), ContinueConfig(notes=45, seed_notes=8, random_seed=3), None, steering)[0]


def play(playing: Playing, notes: int) -> None:
    for _ in islice(playing, notes):
        pass


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 20)), min_size=1, max_size=3))
def test_what_was_gone_back_in_is_replayed_to_the_byte(continuer: Continuer, steps: list[tuple[int, int]]) -> None:
    playing = begun(continuer)
    marks = [playing.mark()]
    for turn, (notes, back) in enumerate(steps, 1):
        play(playing, notes)
        marks = [mark for mark in marks if mark.notes < playing.notes] + [playing.mark()]
        chosen = marks[back % len(marks)]
        playing.go_back(chosen, turn << 32)
        marks = [mark for mark in marks if mark.notes <= chosen.notes]
    made = playing.finish()
    assert len(made.provenance.branches) >= 1
    assert continuer.replay(made.to_bytes()).finish().to_bytes() == made.to_bytes()


def test_notes_before_stay_and_notes_after_are_other_ones(continuer: Continuer) -> None:
    straight = begun(continuer).finish()
    playing = begun(continuer)
    play(playing, 20)
    mark = playing.mark()
    play(playing, 15)
    playing.go_back(mark, 1 << 32)
    assert playing.notes == 20
    bent = playing.finish()
    assert bent.ids[:80].tolist() == straight.ids[:80].tolist()
    assert bent.ids[80:].tolist() != straight.ids[80:].tolist()
    assert bent.provenance.branches == ((20, 1 << 32),)
    assert straight.provenance.branches == ()


def test_going_back_behind_a_branch_forgets_it(continuer: Continuer) -> None:
    playing = begun(continuer)
    play(playing, 5)
    early = playing.mark()
    play(playing, 5)
    playing.go_back(playing.mark(), 1 << 32)
    play(playing, 5)
    playing.go_back(early, 2 << 32)
    assert playing.provenance.branches == ((5, 2 << 32),)


def test_a_mark_on_a_way_that_was_left_is_refused(continuer: Continuer) -> None:
    playing = begun(continuer)
    start = playing.mark()
    play(playing, 10)
    left = playing.mark()
    playing.go_back(start, 1 << 32)
    play(playing, 12)
    with pytest.raises(AssertionError, match="a way that was left"):
        playing.go_back(left, 2 << 32)


def test_steering_goes_back_as_well(continuer: Continuer) -> None:
    playing = begun(continuer, SteeringConfig(density=(4.0, 8.0)))
    play(playing, 10)
    mark = playing.mark()
    play(playing, 20)
    playing.go_back(mark, 1 << 32)
    made = playing.finish()
    assert continuer.replay(made.to_bytes()).finish().to_bytes() == made.to_bytes()


def test_settings_without_branches_are_as_they_were_and_damaged_ones_are_refused(continuer: Continuer) -> None:
    text = begun(continuer).finish().provenance.to_text()
    assert "branches" not in text
    values = json.loads(text[len(MARK) :])
    for damaged in ([[1]], [[1, -1]], [["1", 2]], 7, [[1, 2.5]], [[1, 2, 3]]):
        with pytest.raises(ValueError, match="damaged pulse88 settings"):
            Provenance.from_text(MARK + json.dumps(values | {"branches": damaged}))
    read = Provenance.from_text(MARK + json.dumps(values | {"branches": [[4, 1 << 32]]}))
    assert read.branches == ((4, 1 << 32),)
