"""The Frechet distance by its formula; without the package a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pulse88 import frechet


def test_the_distance_is_that_of_the_gaussians() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0, 1, (200, 5)), random.normal(0.5, 2, (300, 5))
    (ma, ca), (mb, cb) = ((x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a, b))
    root = np.sqrt(np.linalg.eigvals(ca @ cb).real).sum()
    by_hand = ((ma - mb) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * root
    assert frechet.distance(a, b) == pytest.approx(by_hand)
    assert frechet.distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_the_interval_tells_near_from_far() -> None:
    random = np.random.default_rng(1)
    real, near, far = (random.normal(mean, 1, (60, 4)) for mean in (0, 0, 3))
    close, distant = frechet.interval(real, near), frechet.interval(real, far)
    assert close.high < distant.low
    assert distant.low <= distant.value <= distant.high
    with pytest.raises(ValueError, match="two files or more"):
        frechet.interval(real[:1], near)


def test_without_the_package_it_says_so(tmp_path: Path) -> None:
    try:
        import frechet_music_distance  # noqa: F401
    except ImportError:
        with pytest.raises(frechet.NoFrechet, match="pip install frechet-music-distance"):
            frechet.embeddings(tmp_path)
    else:
        pytest.skip("the package is installed")
