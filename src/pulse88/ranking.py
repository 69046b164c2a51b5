"""Which of several takes is the best bet, and why: by likelihood, by drift from the seed, and by originality.

A take loses points by what sets it apart from its seed or from music:

    surprise      |bits a note - those of the seed| under the model: loops are too likely, noise too unlikely
    pitch classes 1 - cosine of the pitch classes with the seed's, of the whole take and of its last third
    density       |log2| of the density against the seed's
    quotes        notes of the longest overlap with the training data beyond QUOTE_NOTES
    dead ends     what `musicality.degenerate` finds

each divided by what is a plain difference in it (SCALES), so that a point is a point. benchmarks/evidence.py shows how
far this helps; docs/evaluation.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pulse88 import musicality
from pulse88.engine import Engine
from pulse88.engine_score import bits_of_events
from pulse88.originality import inspect
from pulse88.overlap_index import OverlapIndex
from pulse88.playing import Continuation
from pulse88.vocabulary import BOS, EVENT_TOKENS

SCALES = {"surprise": 1.0, "pitch classes": 0.1, "density": 0.5, "quotes": 20.0, "dead ends": 0.2}  # of one point
QUOTE_NOTES = 40  # an overlap that long isn't held against a take: 2.6 % of excerpts of real held-out music have it
SEED_READ = 8  # of the seed's events that only serve as context for the seed's own bits
SEED_LEAST = 24  # events that a seed must have to be a measure of surprise; otherwise the takes' median is one


class Ranked(NamedTuple):
    """A take and what speaks against it, in points."""

    take: int  # its place among those that were ranked
    points: dict[str, float]
    bits_per_note: float
    usual_bits: float  # of the seed
    cosine: float
    density: float  # against the seed's
    overlap: int | None  # notes; None without an index
    faults: tuple[str, ...]

    @property
    def total(self) -> float:
        """The less the better."""
        return sum(self.points.values())

    def line(self) -> str:
        """Why it stands where it stands."""
        said = [
            f"{self.bits_per_note:.2f} bits a note (seed {self.usual_bits:.2f})",
            f"pitch classes {self.cosine:.2f} like the seed's",
            f"{self.density:.2f} times its density",
        ]
        if self.overlap is not None:
            said.append(f"longest overlap {self.overlap} notes")
        said += self.faults
        worst = max(self.points, key=lambda name: self.points[name])
        return f"{self.total:.2f} points off: {', '.join(said)}; most for {worst}"


def rank(engine: Engine, takes: Sequence[Continuation], index: OverlapIndex | None = None) -> list[Ranked]:
    """Takes of one seed, the best first; equal ones in their order. ValueError if one has no notes."""
    if not all(len(take.new) for take in takes):
        raise ValueError("a take without notes can't be ranked: ask for more notes or seconds")
    seed_ids = takes[0].provenance.seed_ids
    bits = [float(bits_of_events(engine, seed_ids, take.ids.tolist()).mean()) for take in takes]
    usual = _seed_bits(engine, seed_ids)
    usual = float(np.median(bits)) if usual is None else usual
    ranked = []
    for place, (take, own) in enumerate(zip(takes, bits, strict=True)):
        seed = take.seed.sustained().take(slice(-(len(seed_ids) // EVENT_TOKENS), None))
        last = take.new.take(slice(-max(1, len(take.new) // 3), None))
        cosine = musicality.pitch_class_cosine(seed, take.new)
        density = musicality.density(take.new) / musicality.density(seed)
        overlap = None if index is None else inspect(take.new, index).notes
        faults = musicality.degenerate(take.new)
        off = {
            "surprise": abs(own - usual),
            "pitch classes": 1 - (cosine + musicality.pitch_class_cosine(seed, last)) / 2,
            "density": abs(float(np.log2(density))),
            "quotes": max(0, (overlap or 0) - QUOTE_NOTES),
            "dead ends": float(len(faults)),
        }
        points = {name: value / SCALES[name] for name, value in off.items()}
        ranked.append(Ranked(place, points, own, usual, cosine, density, overlap, faults))
    return sorted(ranked, key=lambda one: (one.total, one.take))


def _seed_bits(engine: Engine, seed_ids: Sequence[int]) -> float | None:
    """Bits a note of a seed after its first notes; None if it is short."""
    events = (len(seed_ids) - (seed_ids[0] == BOS)) // EVENT_TOKENS
    if events < SEED_LEAST:
        return None
    cut = len(seed_ids) - EVENT_TOKENS * (events - SEED_READ)
    return float(bits_of_events(engine, seed_ids[:cut], seed_ids[cut:]).mean())
