"""How alike two pieces of music are as distributions: overlapping area and divergence. Pure functions, numpy only.

Seven features, each a histogram over fixed bins, so that no kernel width has to be chosen and figures of different
runs compare. Times are in octaves: what is twice as long is as far away everywhere.

Shape legend: K bins of a feature.
"""

from __future__ import annotations

import numpy as np

from pulse88.musicality import inter_onset_intervals, polyphony_shares
from pulse88.notes import Floats, Performance

DENSITY_SECONDS = 2.0  # length of the windows that notes are counted in
MOST_VOICES = 16  # sounding at once; more count as so many
_TIME_EDGES = np.geomspace(0.03, 8.0, 25)  # s; a third of an octave apart; below and above is a bin each
_DENSITY_EDGES = np.array([0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, np.inf])  # notes in a window

FEATURES = ("pitch", "pitch class", "inter-onset", "duration", "velocity", "density", "polyphony")


def histograms(p: Performance) -> dict[str, Floats]:
    """Counts (seconds for polyphony) of every feature's bins, [K] each.

    pitch 128 keys; pitch class 12; inter-onset intervals between chords, and durations with the pedal folded in, 26
    bins of a third of an octave; velocity 16 bins; density 12 bins of notes in windows of DENSITY_SECONDS from the
    first onset to the last; polyphony by seconds, 17.
    """
    heard = p.sustained()
    voices = np.zeros(MOST_VOICES + 1)
    shares = polyphony_shares(heard)
    np.add.at(voices, np.minimum(np.arange(len(shares)), MOST_VOICES), shares)
    lasts = heard.end - float(heard.onset[0]) if len(p) else 0.0
    window = ((p.onset - p.onset[:1]) / DENSITY_SECONDS).astype(np.int64)
    windows = np.bincount(window) if len(p) else np.zeros(0, np.int64)
    return {
        "pitch": np.bincount(p.pitch, minlength=128).astype(np.float64),
        "pitch class": np.bincount(p.pitch % 12, minlength=12).astype(np.float64),
        "inter-onset": _by_time(inter_onset_intervals(p)),
        "duration": _by_time(heard.duration),
        "velocity": np.bincount(p.velocity // 8, minlength=16).astype(np.float64),
        "density": np.histogram(windows, _DENSITY_EDGES)[0].astype(np.float64),
        "polyphony": voices * lasts,
    }


def overlapping_area(a: Floats, b: Floats) -> float:
    """The area under both of two histograms [K], each scaled to area 1: 0-1; 0 if either is empty."""
    if not a.sum() or not b.sum():
        return 0.0
    return float(np.minimum(a / a.sum(), b / b.sum()).sum())


def divergence(truth: Floats, other: Floats) -> float:
    """Kullback-Leibler divergence in bits of a true histogram [K] from another, half a count added to every bin.

    What is added keeps it finite where the other has none; it makes small counts look more alike than they are.
    """
    p, q = truth + 0.5, other + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float(p @ np.log2(p / q))


def compare(truth: Performance, other: Performance) -> dict[str, tuple[float, float]]:
    """Overlapping area and divergence of each feature."""
    theirs, mine = histograms(truth), histograms(other)
    return {
        name: (overlapping_area(theirs[name], mine[name]), divergence(theirs[name], mine[name])) for name in FEATURES
    }


def _by_time(seconds: Floats) -> Floats:
    return np.bincount(np.searchsorted(_TIME_EDGES, seconds), minlength=len(_TIME_EDGES) + 1).astype(np.float64)
