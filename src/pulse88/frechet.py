"""Frechet Music Distance between folders of MIDI files, where the package frechet-music-distance is installed.

Only its embedding (CLaMP 2, which it downloads when it is first used) is taken: the distance is computed here, so that
pieces can be resampled for an interval. The distance is biased upwards with few files, so it is always told with their
number, and beside that of real music against real music of as many files.

Shape legend: N, M files, D dimensions of the embedding.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pulse88.intervals import LEVEL, Interval
from pulse88.notes import Floats

RESAMPLES = 200


class NoFrechet(ValueError):
    """The package isn't installed; the message says how to get it."""


def embeddings(folder: Path) -> Floats:
    """[N, D] of the MIDI files in a folder. NoFrechet without the package."""
    try:
        from frechet_music_distance import FrechetMusicDistance
    except ImportError as error:
        raise NoFrechet(
            "the Frechet Music Distance was not computed: the package frechet-music-distance is not installed "
            "(pip install frechet-music-distance)"
        ) from error
    extractor = FrechetMusicDistance("clamp2", verbose=False).feature_extractor
    return np.asarray(extractor.extract_features_from_path(folder), np.float64)


def distance(a_ND: Floats, b_MD: Floats) -> float:
    """Squared distance of the Gaussians fitted to two sets (Dowson and Landau, doi 10.1016/0047-259X(82)90077-X).

    tr sqrt(A B) is the nuclear norm of the product of the centred sets, so that no D x D root is taken.
    """
    (a_mean, a), (b_mean, b) = ((x.mean(axis=0), (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)) for x in (a_ND, b_MD))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((a_mean - b_mean) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross)


def interval(a_ND: Floats, b_MD: Floats, *, seed: int = 0) -> Interval:
    """`distance` and the percentile interval of RESAMPLES resamples of both sets; ValueError below 2 files."""
    if min(len(a_ND), len(b_MD)) < 2:
        raise ValueError("a Frechet distance takes two files or more on both sides")
    random = np.random.default_rng(seed)
    drawn = [
        distance(a_ND[random.integers(len(a_ND), size=len(a_ND))], b_MD[random.integers(len(b_MD), size=len(b_MD))])
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(distance(a_ND, b_MD), float(low), float(high))
