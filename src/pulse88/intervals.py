"""How sure a mean over pieces is: bootstrap intervals. Numpy only.

Shape legend: P pieces, R resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """A figure and the interval that LEVEL of the resamples fall in; nan where there is nothing to resample."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        """Such as `8.125 (8.02–8.24)`; the interval with a digit less."""
        if np.isnan(self.value):
            return "–"
        if np.isnan(self.low):
            return f"{self.value:.{digits}f}"
        less = max(digits - 1, 0) if digits > 2 else digits
        return f"{self.value:.{digits}f} ({self.low:.{less}f}–{self.high:.{less}f})"


def ratio(numerators: ArrayLike, denominators: ArrayLike, *, seed: int = 0) -> Interval:
    """Sum over sum of P pieces' values each, and its interval when pieces are drawn with replacement.

    Percentiles of RESAMPLES resamples (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13). With fewer
    than two pieces there is no interval.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if not len(above) or below.sum() == 0:
        return Interval(np.nan, np.nan, np.nan)
    value = float(above.sum() / below.sum())
    if len(above) < 2:
        return Interval(value, np.nan, np.nan)
    counts = _counts(len(above), seed)
    sums = counts @ below
    drawn = (counts @ above)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value, float(low), float(high))


def mean(values: ArrayLike, *, seed: int = 0) -> Interval:
    """The mean of P pieces' values and its interval; nan values are left out."""
    given = np.asarray(values, np.float64)
    given = given[~np.isnan(given)]
    return ratio(given, np.ones(len(given)), seed=seed)


def _counts(pieces: int, seed: int) -> NDArray[np.float64]:
    """[R, P] how often each piece is in each resample."""
    random = np.random.default_rng(seed)
    return random.multinomial(pieces, np.full(pieces, 1 / pieces), size=RESAMPLES).astype(np.float64)
