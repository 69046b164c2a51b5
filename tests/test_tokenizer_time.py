"""How deltas become bins: the nearest, or one that holds the clock, within the promised bounds; and real music."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pulse88 import midi_file, sequential
from pulse88.notes import Performance
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import FINE, GRIDS, PUBLISHED, Slot, TimeGrid
from slow_tokenizer import deltas_up_to, slow_bin, slow_deltas, slow_limit

BOTH = pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
more = settings(max_examples=60)
STEPS_OF_A_FIFTH = replace(FINE, name="to 4 s", delta=(0.0, *np.geomspace(0.01, 4, 31).tolist()))


@pytest.mark.parametrize("grid", [*GRIDS.values(), STEPS_OF_A_FIFTH], ids=lambda grid: grid.name)
@pytest.mark.parametrize("typical", [0.005, 0.05, 0.2, 0.9, 3.0])
def test_long_pieces_as_by_the_slow_rule(grid: TimeGrid, typical: float) -> None:
    delta = np.random.default_rng(1).lognormal(math.log(typical), 0.7, 1500)
    assert Tokenizer(grid).delta_bins(delta).tolist() == slow_deltas(delta.tolist(), grid)


@pytest.mark.parametrize("typical", [0.005, 0.05, 0.2, 0.9, 3.0])
def test_compiled_or_not_the_same_bins_are_chosen(typical: float, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    pieces = [random.lognormal(math.log(typical), 1.0, size) * random.integers(0, 2, size) for size in (0, 1, 40, 5000)]
    found = [Tokenizer(FINE).delta_bins(delta).tolist() for delta in pieces]
    monkeypatch.setattr(sequential, "library", lambda: None)
    assert [Tokenizer(FINE).delta_bins(delta).tolist() for delta in pieces] == found


def test_the_loops_are_compiled() -> None:
    if find_spec("pulse88._sequential") is None:
        pytest.skip("pulse88._sequential was not built on installation: there was no C compiler")
    assert sequential.library() is not None


@more
@given(deltas=deltas_up_to(12.0))
def test_the_published_grid_rounds_every_delta_by_itself(deltas: list[float]) -> None:
    bins = Tokenizer(PUBLISHED).delta_bins(np.array(deltas, np.float64))
    assert bins.tolist() == [slow_bin(delta, PUBLISHED.delta) for delta in deltas]


def errors(deltas: Sequence[float], grid: TimeGrid) -> NDArray[np.float64]:
    """[N] seconds that the decoded clock is ahead after each delta; what clamped gaps lose left aside."""
    delta = np.array(deltas, np.float64)
    error = grid.seconds(Slot.DELTA, Tokenizer(grid).delta_bins(delta)) - delta
    return np.cumsum(np.where(delta > grid.delta[-1], 0.0, error))


@more
@given(deltas=deltas_up_to(12.0))
def test_no_delta_is_bent_beyond_its_limit(deltas: list[float]) -> None:
    for delta, index in zip(deltas, Tokenizer(FINE).delta_bins(np.array(deltas, np.float64)).tolist(), strict=True):
        if index != slow_bin(delta, FINE.delta):
            assert abs(FINE.delta[index] - delta) <= slow_limit(delta)
            assert delta <= FINE.delta[-1]


@more
@given(deltas=deltas_up_to(12.0))
def test_small_drift_bends_nothing(deltas: list[float]) -> None:
    own = [slow_bin(delta, FINE.delta) for delta in deltas]
    drifts = np.cumsum([FINE.delta[k] - d if d <= FINE.delta[-1] else 0.0 for k, d in zip(own, deltas, strict=True)])
    calm = int(np.argmax(np.abs(drifts) >= 0.04 - 1e-9)) if (np.abs(drifts) >= 0.04 - 1e-9).any() else len(own)
    assert Tokenizer(FINE).delta_bins(np.array(deltas, np.float64))[:calm].tolist() == own[:calm]


def stuck(delta: float) -> float:
    """Seconds that a delta adds to a clock's error at worst, because no bend that is allowed goes against it."""
    if delta > FINE.delta[-1]:
        return 0.0
    own = slow_bin(delta, FINE.delta)
    reached = [t - delta for k, t in enumerate(FINE.delta) if k == own or abs(t - delta) <= slow_limit(delta)]
    return max(min(reached), -max(reached), 0.0)


def widest_step(deltas: Sequence[float]) -> float:
    """Seconds of the widest step between two bins that one of the deltas may choose between."""
    reach = [
        [k for k, t in enumerate(FINE.delta) if k == slow_bin(d, FINE.delta) or abs(t - d) <= slow_limit(d)]
        for d in deltas
    ]
    return max((FINE.delta[b] - FINE.delta[a] for ks in reach for a, b in pairwise(ks)), default=0.0)


@settings(max_examples=100)
@given(deltas=deltas_up_to(0.6) | deltas_up_to(9.0) | st.lists(st.sampled_from([0.0845, 0.2425, 0.5125, 0.88, 1.1])))
def test_the_clock_is_held_where_the_deltas_can_bend(deltas: list[float]) -> None:
    """The bound of docs/tokens.md: 40 ms or half the widest step, and what the deltas that can't bend add up to."""
    allowed = np.cumsum([stuck(delta) for delta in deltas]) + max(0.04, widest_step(deltas) / 2)
    assert (np.abs(errors(deltas, FINE)) <= allowed + 1e-9).all()


def test_which_deltas_can_not_bend() -> None:
    """The table of docs/tokens.md."""
    worst = dict.fromkeys(("under 83 ms", "83 ms to 0.8 s", "0.8 s to 8 s"), 0.0)
    for delta in np.geomspace(0.001, 8.0, 20_000).tolist():
        where = "under 83 ms" if delta < 0.083 else "83 ms to 0.8 s" if delta < 0.8 else "0.8 s to 8 s"
        worst[where] = max(worst[where], stuck(delta) / delta)
        if stuck(delta):
            bin_ = FINE.delta[slow_bin(delta, FINE.delta)]
            assert (0.9596 if delta > 0.8 else 1.0) < delta / bin_ < (1.112 if delta > 0.8 else 1.011)
    assert worst["under 83 ms"] == 0.0
    assert worst["83 ms to 0.8 s"] == pytest.approx(0.0106, abs=5e-4)
    assert worst["0.8 s to 8 s"] == pytest.approx(0.100, abs=5e-4)
    assert errors([0.88] * 1000, FINE)[-1] == pytest.approx(-80.0)


def test_steady_beats_keep_their_tempo_but_for_long_ones() -> None:
    """Of one repeated delta that can't bend the tempo is off for good: by 1 % at most below 0.8 s, by 10 % above."""
    slips = {}
    for beat in np.geomspace(0.01, 4.0, 300).tolist():
        slips[beat] = abs(errors([beat] * 400, FINE)[-1]) / (400 * beat)
    assert max(slip for beat, slip in slips.items() if 0.035 < beat < 0.8) < 0.0115
    assert 0.09 < max(slip for beat, slip in slips.items() if beat >= 0.8) < 0.1015
    held = [slip for beat, slip in slips.items() if stuck(beat) == 0.0 and beat > 0.035]
    assert len(held) > 150
    assert max(held) < 0.006


def test_carrying_errors_holds_a_tempo_that_rounding_loses() -> None:
    rng = np.random.default_rng(2)
    deltas = (0.19 * rng.lognormal(0, 0.03, 3000)).tolist()
    assert abs(errors(deltas, FINE)).max() < 0.06
    assert abs(errors(deltas, replace(FINE, carries_error=False))).max() > 5


def test_what_a_gap_loses_is_not_made_up_for() -> None:
    steady = [FINE.delta[12]] * 60
    late = Tokenizer(FINE).delta_bins(np.array([0.0, 30.0, *steady]))
    assert late.tolist() == [0, 31, *[12] * 60]


def test_a_gap_that_is_cut_is_not_bent_as_well() -> None:
    grid = replace(FINE, delta=(*FINE.delta[:30], 7.9, 8.0))
    ahead = [2.12] * 10  # each decoded 26 ms too long, and the bin below is too far to bend to
    assert Tokenizer(grid).delta_bins(np.array([*ahead, 8.0, 8.05])).tolist() == [*[27] * 10, 30, 31]
    assert Tokenizer(grid).delta_bins(np.array([*ahead, 8.05])).tolist() == [*[27] * 10, 31]


# ---------------------------------------------------------------- real music


@pytest.fixture(scope="module")
def real_pieces() -> list[Performance]:
    """Every twentieth held-out piece."""
    corpus = Path(os.environ.get("PULSE88_CORPUS", Path(__file__).parents[1].parent / "shared" / "corpus"))
    files = sorted((corpus / "validation").glob("*/*.mid"))[::20]
    if not files:
        pytest.skip(f"no validation pieces under {corpus}; set PULSE88_CORPUS to the unpacked corpus")
    return [midi_file.read(file).performance for file in files]


@BOTH
def test_real_pieces_there_and_back(grid: TimeGrid, real_pieces: list[Performance]) -> None:
    tokenizer = Tokenizer(grid)
    for piece in real_pieces:
        encoding = tokenizer.encode(piece)
        report = encoding.report
        decoded = tokenizer.decode(encoding.ids)
        assert tokenizer.encode(decoded).ids.tolist() == encoding.ids.tolist()
        assert report.out_of_range + report.doubled <= 0.05 * len(piece), "pop files double their melody"
        assert len(decoded) == len(piece) - report.out_of_range - report.doubled
        assert decoded.pitch.tolist() == piece.pitch[encoding.notes].tolist()


def test_real_pieces_keep_their_times(real_pieces: list[Performance]) -> None:
    """The bounds that the grid was chosen for: 4.15 % and 12 % between onsets, 0.5 % of tempo over 100 notes."""
    between, tempo = [], []
    for piece in real_pieces:
        delta = np.diff(piece.onset)
        decoded = FINE.seconds(Slot.DELTA, Tokenizer(FINE).delta_bins(delta))
        audible = (delta >= 0.03) & (delta <= 2)
        between.append(np.abs(decoded[audible] / delta[audible] - 1))
        true, kept = (np.convolve(t, np.ones(100), "valid") for t in (delta, decoded))
        tempo.append(np.abs(kept / true - 1)[true > 1])
    assert np.median(np.concatenate(between)) < 0.0415
    assert np.percentile(np.concatenate(between), 95) < 0.12
    assert np.concatenate(tempo).mean() < 0.005
