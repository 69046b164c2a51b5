"""Frechet Music Distance between folders of MIDI files, where the package frechet-music-distance is installed.

Only its embedding is taken (version 1.0.0: CLaMP 2, which it downloads with a text model when it is first used): the
distance is computed here, so that pieces can be resampled for an interval. Files are embedded one by one, because what
the package makes of a folder it keeps by the folder's name, whatever is in it later. The distance is biased upwards
with few files, so it is always told with their number, and beside that of real music against as much real music.

Shape legend: N, M files, D dimensions of the embedding.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np

from pulse88.intervals import LEVEL, Interval
from pulse88.notes import Floats

RESAMPLES = 200


class NoFrechet(ValueError):
    """The package isn't installed, or its model can't be had; the message says what to do."""


def embeddings(folder: Path) -> Floats:
    """[N, D] of the MIDI files in a folder, by name. NoFrechet without the package or its model."""
    try:
        from frechet_music_distance.models.utils import get_feature_extractor_by_name
    except ImportError as error:
        raise NoFrechet(
            "the Frechet Music Distance was not computed: the package frechet-music-distance is not installed "
            "(pip install frechet-music-distance)"
        ) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # It tells of downloads with print.
            extractor = get_feature_extractor_by_name("clamp2", verbose=False)
    except OSError as error:
        raise NoFrechet(
            "the Frechet Music Distance was not computed: its model CLaMP 2 could not be fetched from huggingface.co "
            f"({error.__class__.__name__}); run it once where there is a network"
        ) from error
    rows = [extractor.extract_feature(path) for path in sorted(folder.glob("*.mid"))]
    return np.concatenate(rows).astype(np.float64)


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
