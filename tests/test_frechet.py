"""The Frechet distance by its formula; without the package a sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

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


class Extractor:
    """Has what version 1.0.0 of the package has."""

    def extract_feature(self, filepath: Path) -> np.ndarray:
        return np.full((1, 3), len(Path(filepath).read_bytes()), np.float32)


def package(monkeypatch: pytest.MonkeyPatch, get: object) -> None:
    for name in ("frechet_music_distance", "frechet_music_distance.models", "frechet_music_distance.models.utils"):
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
    vars(module)["get_feature_extractor_by_name"] = get


def test_files_are_embedded_one_by_one_in_the_order_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(monkeypatch, lambda name, verbose: Extractor())
    for name, size in (("b.mid", 2), ("a.mid", 1), ("c.mid", 3)):
        (tmp_path / name).write_bytes(bytes(size))
    assert frechet.embeddings(tmp_path)[:, 0].tolist() == [1, 2, 3]
    (tmp_path / "a.mid").write_bytes(bytes(9))  # Nothing of a folder is kept by its name.
    assert frechet.embeddings(tmp_path).tolist()[0] == [9, 9, 9]


def test_without_its_model_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(name: str, verbose: bool) -> Extractor:
        raise OSError("We couldn't connect")

    package(monkeypatch, no_network)
    with pytest.raises(frechet.NoFrechet, match=r"CLaMP 2 could not be fetched .*where there is a network"):
        frechet.embeddings(tmp_path)
