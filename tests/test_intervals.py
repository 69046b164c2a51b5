"""Intervals: they cover what they should, are the same again, and say nothing where there is nothing to say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pulse88.intervals import Interval, mean, ratio


def test_the_value_is_sum_over_sum() -> None:
    assert ratio([1.0, 3.0], [1, 3]).value == 1.0
    assert mean([1.0, 2.0, math.nan]).value == 1.5


def test_ninety_five_of_a_hundred_intervals_cover_the_truth() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        notes = random.integers(50, 500, 60)
        bits = notes * random.normal(8.0, 1.0, 60)
        found = ratio(bits, notes, seed=seed)
        covered += found.low <= 8.0 <= found.high
    assert 178 <= covered <= 199


def test_more_pieces_make_it_narrower() -> None:
    random = np.random.default_rng(1)
    few, many = (mean(random.normal(0, 1, n)) for n in (20, 2000))
    assert many.high - many.low < 0.2 * (few.high - few.low)


def test_it_is_the_same_again() -> None:
    values = np.random.default_rng(2).normal(0, 1, 30)
    assert mean(values) == mean(values)


def test_equal_pieces_leave_no_doubt() -> None:
    assert ratio([4.0, 8.0, 12.0], [1, 2, 3]) == pytest.approx((4.0, 4.0, 4.0))


def test_nothing_and_one_have_no_interval() -> None:
    assert all(math.isnan(x) for x in mean([]))
    one = mean([3.0])
    assert one.value == 3.0 and math.isnan(one.low) and math.isnan(one.high)
    assert math.isnan(ratio([1.0, 2.0], [0, 0]).value)


def test_texts() -> None:
    assert Interval(8.1254, 8.021, 8.249).text() == "8.125 (8.02–8.25)"
    assert Interval(0.5, 0.25, 0.75).text(2) == "0.50 (0.25–0.75)"
    assert Interval(3.0, math.nan, math.nan).text() == "3.000"
    assert Interval(math.nan, math.nan, math.nan).text() == "–"
