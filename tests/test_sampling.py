from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulse88.config import SamplingConfig
from pulse88.sampling import pick, probabilities

PLAIN = SamplingConfig(temperature=1.0, top_p=1.0)
V = 12

logits = st.lists(st.floats(-30, 30, width=32), min_size=V, max_size=V).map(lambda row: np.array(row, np.float32))
legal_sets = st.sets(st.integers(0, V - 1), min_size=1).map(sorted)
settings = st.builds(
    SamplingConfig,
    temperature=st.one_of(st.just(0.0), st.floats(0.01, 10)),
    top_p=st.floats(0.01, 1.0),
    top_k=st.integers(0, V + 2),
    min_p=st.floats(0, 0.99),
)
uniforms = st.floats(0, 1, exclude_max=True)


def log_of(*probability: float) -> np.ndarray:
    return np.log(np.array(probability))


def test_plain_settings_give_the_softmax_over_the_legal_ids() -> None:
    row = np.array([1.0, 99.0, 2.0, -1.0])
    expected = np.exp([1.0, 2.0, -1.0]) / np.exp([1.0, 2.0, -1.0]).sum()
    np.testing.assert_allclose(probabilities(row, [0, 2, 3], PLAIN), expected, rtol=1e-14)


def test_temperature_divides_the_logits() -> None:
    row = log_of(0.2, 0.8)
    hot = probabilities(row, [0, 1], SamplingConfig(temperature=2.0, top_p=1.0))
    assert hot[1] / hot[0] == pytest.approx(2.0)  # the square root of 4


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.49, [True, False, False, False]),
        (0.51, [True, True, False, False]),  # the id that crosses p stays
        (0.8, [True, True, True, False]),
        (1.0, [True, True, True, True]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float, kept: list[bool]) -> None:
    result = probabilities(log_of(0.5, 0.25, 0.15, 0.1), range(4), SamplingConfig(top_p=top_p))
    assert (result > 0).tolist() == kept
    assert result.sum() == pytest.approx(1.0)


def test_top_k_keeps_the_likeliest_and_the_first_of_equals() -> None:
    result = probabilities(log_of(0.2, 0.3, 0.3, 0.2), range(4), SamplingConfig(top_k=3, top_p=1.0))
    np.testing.assert_allclose(result, [0.25, 0.375, 0.375, 0.0])


def test_min_p_is_relative_to_the_likeliest() -> None:
    result = probabilities(log_of(0.5, 0.26, 0.24), range(3), SamplingConfig(min_p=0.5, top_p=1.0))
    np.testing.assert_allclose(result, np.array([0.5, 0.26, 0]) / 0.76)


def test_top_k_comes_before_top_p() -> None:
    # Among the two that top-k keeps, 0.4 is two thirds of the probability and reaches p alone.
    result = probabilities(log_of(0.4, 0.2, 0.2, 0.2), range(4), SamplingConfig(top_k=2, top_p=0.6))
    np.testing.assert_allclose(result, [1, 0, 0, 0])


@given(logits, legal_sets, uniforms)
def test_temperature_zero_takes_the_likeliest_and_the_lowest_of_equals(
    row: np.ndarray, legal: list[int], uniform: float
) -> None:
    best = max(legal, key=lambda i: (row[i], -i))
    assert pick(row, legal, SamplingConfig(temperature=0.0), uniform) == best


@given(logits, legal_sets, settings, uniforms)
def test_what_is_picked_is_legal_and_has_a_probability(
    row: np.ndarray, legal: list[int], config: SamplingConfig, uniform: float
) -> None:
    token = pick(row, legal, config, uniform)
    result = probabilities(row, legal, config)
    assert token in legal
    assert result[legal.index(token)] > 0
    assert result.sum() == pytest.approx(1.0)


@given(logits, legal_sets, settings)
def test_the_likeliest_id_always_stays(row: np.ndarray, legal: list[int], config: SamplingConfig) -> None:
    assert probabilities(row, legal, config)[int(np.argmax(row[legal]))] > 0


@given(logits, legal_sets, settings, uniforms, uniforms)
def test_the_id_never_falls_as_the_uniform_rises(
    row: np.ndarray, legal: list[int], config: SamplingConfig, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert pick(row, legal, config, low) <= pick(row, legal, config, high)


@given(logits, legal_sets, settings, uniforms, st.floats(-1e6, 1e6))
def test_logits_of_illegal_ids_change_nothing(
    row: np.ndarray, legal: list[int], config: SamplingConfig, uniform: float, other: float
) -> None:
    changed = np.full(V, other, np.float32)
    changed[legal] = row[legal]
    assert pick(changed, legal, config, uniform) == pick(row, legal, config, uniform)


@given(logits, legal_sets, settings, uniforms)
def test_arguments_stay_as_they_were(row: np.ndarray, legal: list[int], config: SamplingConfig, uniform: float) -> None:
    before, ids = row.copy(), np.array(legal)
    pick(row, ids, config, uniform)
    np.testing.assert_array_equal(row, before)
    assert ids.tolist() == legal


def test_every_id_gets_a_stretch_as_long_as_its_probability() -> None:
    row = log_of(0.1, 0.6, 0.3)
    picked = [pick(row, range(3), PLAIN, u) for u in (np.arange(1000) + 0.5) / 1000]
    assert np.bincount(picked).tolist() == [100, 600, 300]


def test_logits_too_close_for_their_exponentials_still_have_an_order() -> None:
    assert probabilities([0.0, 1e-40], range(2), SamplingConfig(top_k=1)).tolist() == [0, 1]


def test_the_largest_uniform_never_picks_what_was_dropped() -> None:
    row = np.array([0.0, 0.1, -np.inf, -50.0])
    almost_one = np.nextafter(1.0, 0.0)
    assert pick(row, range(4), SamplingConfig(top_p=0.9), almost_one) == 1


def test_rounded_sums_leave_no_gap_at_the_top() -> None:
    almost_one = np.nextafter(1.0, 0.0)
    rng = np.random.default_rng(0)
    for _ in range(200):  # in about a third of the rows the probabilities add up to less than 1
        assert pick(rng.normal(0, 2, 171), range(171), PLAIN, almost_one) == 170


def test_minus_infinity_is_probability_zero() -> None:
    np.testing.assert_allclose(probabilities(np.array([0.0, -np.inf, 0.0]), range(3), PLAIN), [0.5, 0, 0.5])


@pytest.mark.parametrize("temperature", [1e-300, 1e-12])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    result = probabilities([1.0, 3.0, 2.0], range(3), SamplingConfig(temperature=temperature))
    assert result.tolist() == [0, 1, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_and_plus_infinity_are_refused(bad: float, temperature: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        pick(np.array([0.0, bad, 0.0]), [0, 2], SamplingConfig(temperature=temperature), 0.5)


def test_nothing_possible_is_refused() -> None:
    with pytest.raises(ValueError, match="probability 0"):
        pick(np.array([0.0, -np.inf]), [1], PLAIN, 0.5)
    with pytest.raises(ValueError, match="no id is legal"):
        pick(np.zeros(3), [], PLAIN, 0.5)


@pytest.mark.parametrize("uniform", [1.0, -0.1, np.nan])
def test_a_uniform_outside_zero_to_one_is_refused(uniform: float) -> None:
    with pytest.raises(ValueError, match="uniform"):
        pick(np.zeros(3), range(3), PLAIN, uniform)
