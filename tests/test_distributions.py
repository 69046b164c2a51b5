"""Likeness of music: alike is 1 and 0 bits, strange is little and many, and empty is nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from made_corpus import piece, played_again
from pulse88.distributions import FEATURES, compare, divergence, histograms, overlapping_area
from pulse88.notes import Performance


def test_a_piece_is_like_itself() -> None:
    for area, bits in compare(piece(1), piece(1)).values():
        assert area == pytest.approx(1.0) and bits == pytest.approx(0.0, abs=1e-12)


def test_known_histograms_have_known_figures() -> None:
    a, b = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.0, 3.0, 3.0, 0.0])
    assert overlapping_area(a, b) == 0.5
    p, q = np.array([1.5, 1.5, 0.5, 0.5]) / 4, np.array([0.5, 3.5, 3.5, 0.5]) / 8
    assert divergence(a, b) == pytest.approx(float((p * np.log2(p / q)).sum()))
    assert overlapping_area(a, np.zeros(4)) == 0.0


def test_features_see_what_they_are_of() -> None:
    music = piece(2, 300)
    higher, slower = music.transposed(1), replace(music, onset=music.onset * 2)
    louder = replace(music, velocity=np.minimum(music.velocity + 40, 127))
    assert compare(music, higher)["velocity"][0] == pytest.approx(1.0)
    assert compare(music, higher)["pitch class"][0] < 0.96
    assert compare(music, slower)["inter-onset"][0] < 0.3
    assert compare(music, slower)["pitch"][0] == pytest.approx(1.0)
    assert compare(music, louder)["velocity"][0] < 0.6
    assert compare(music, slower)["density"][0] < 0.3
    assert compare(music, replace(music, duration=music.duration * 4))["polyphony"][0] < 0.6


def test_another_player_of_the_same_piece_is_nearer_than_another_piece() -> None:
    for seed in range(5):
        music = piece(seed, 300)
        again, other = compare(music, played_again(music, 9)), compare(music, piece(seed + 50, 300))
        assert again["pitch"][0] > 0.99 > other["pitch"][0]
        assert again["pitch class"][1] < other["pitch class"][1]


def test_counts_are_of_all_notes_and_seconds() -> None:
    music = piece(3, 200)
    found = histograms(music)
    for name in ("pitch", "pitch class", "duration", "velocity"):
        assert found[name].sum() == len(music)
    assert found["polyphony"].sum() == pytest.approx(music.end - music.onset[0])
    assert found["density"].sum() == int((music.onset[-1] - music.onset[0]) / 2.0) + 1


def test_no_notes_are_nothing() -> None:
    found = compare(piece(1), Performance())
    assert set(found) == set(FEATURES)
    assert all(area == 0.0 and np.isfinite(bits) for area, bits in found.values())
