"""What is in prepared data: pieces, hours, notes and tokens by source, and histograms of the music.

Shape legend: N notes, B bins.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pulse88.shards import read_manifest, read_notes
from pulse88.written import write_whole

PITCHES, VELOCITIES = np.arange(21, 110), np.arange(1, 129)  # edges of bins, like all below
SECONDS = np.geomspace(0.01, 20.0, 67)  # of durations and gaps
DENSITIES = np.arange(0.0, 31.0, 0.5)  # notes a second
LENGTHS = np.geomspace(100, 200_000, 67)  # tokens of a piece
CHORD = 0.012  # s; gaps below are of one chord and not drawn
INK, FILL = "#1a1a1a", "#0072b2"


@dataclass
class Amount:
    """How much there is of something."""

    pieces: int = 0
    notes: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, other: Amount) -> None:
        self.pieces += other.pieces
        self.notes += other.notes
        self.tokens += other.tokens
        self.seconds += other.seconds


@dataclass
class Statistics:
    """What is in the data; histograms are counts [B]."""

    amounts: dict[tuple[str, str], Amount] = field(default_factory=dict)  # by split and source
    licences: dict[str, str] = field(default_factory=dict)  # by source
    pitch: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(PITCHES) - 1, np.int64))
    velocity: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(VELOCITIES) - 1, np.int64))
    duration: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SECONDS) - 1, np.int64))
    gap: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SECONDS) - 1, np.int64))
    density: list[float] = field(default_factory=list)  # notes a second of each piece
    length: list[int] = field(default_factory=list)  # tokens of each piece

    @property
    def total(self) -> Amount:
        total = Amount()
        for amount in self.amounts.values():
            total.add(amount)
        return total


def measure(data: Path) -> Statistics:
    """Reads all of the data once, shard by shard; ShardError as in shards.py."""
    manifest = read_manifest(data)
    found = Statistics(licences=manifest.get("licences", {}))
    for shard, pieces in groupby(manifest["pieces"], key=lambda piece: str(piece["shard"])):
        columns = read_notes(data, shard)
        found.pitch += np.histogram(columns["pitch"], PITCHES)[0]
        found.velocity += np.histogram(columns["velocity"], VELOCITIES)[0]
        found.duration += _histogram(columns["durations"], SECONDS)
        for piece in pieces:
            _add(found, piece, columns)
    return found


def _add(found: Statistics, piece: dict[str, Any], columns: dict[str, NDArray]) -> None:
    mine = slice(piece["note_offset"], piece["note_offset"] + piece["notes"])
    onset, duration = columns["onsets"][mine].astype(np.float64), columns["durations"][mine].astype(np.float64)
    seconds = float((onset + duration).max() - onset.min()) if len(onset) else 0.0
    amount = found.amounts.setdefault((piece["split"], piece["source"]), Amount())
    amount.add(Amount(1, len(onset), piece["length"], seconds))
    found.length.append(piece["length"])
    found.density.append(len(onset) / seconds if seconds else 0.0)
    gap = np.diff(np.sort(onset))
    found.gap += _histogram(gap[gap >= CHORD], SECONDS)


def _histogram(values: Sequence[float] | NDArray, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts [B], what lies outside in the outermost bins."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]


def rows(found: Statistics) -> list[tuple[str, ...]]:
    """A table for people, its head first."""
    table: list[tuple[str, ...]] = [("split", "source", "pieces", "hours", "notes", "tokens", "licence")]
    for split in sorted({split for split, _ in found.amounts}):
        mine = {source: amount for (of, source), amount in sorted(found.amounts.items()) if of == split}
        table += [_row(split, source, amount, found.licences.get(source, "unknown")) for source, amount in mine.items()]
    return [*table, _row("all", "", found.total, "")]


def _row(split: str, source: str, amount: Amount, licence: str) -> tuple[str, ...]:
    hours = f"{amount.seconds / 3600:,.1f}"
    return (split, source, f"{amount.pieces:,}", hours, f"{amount.notes:,}", f"{amount.tokens:,}", licence)


def draw(found: Statistics, path: Path, title: str) -> None:
    """Writes a PNG of six histograms, whole or not at all."""
    figure = Figure(figsize=(15, 8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=INK, parse_math=False)
    axes: list[Axes] = list(figure.subplots(2, 3).ravel())
    _bars(axes[0], PITCHES, found.pitch, "notes by pitch (MIDI, 60 = C4)")
    _bars(axes[1], VELOCITIES, found.velocity, "notes by velocity")
    _bars(axes[2], SECONDS, found.duration, "notes by sounding duration (s)")
    _bars(axes[3], SECONDS, found.gap, f"gaps of {1000 * CHORD:.0f} ms or more between onsets (s)")
    _bars(axes[4], DENSITIES, _histogram(found.density, DENSITIES), "pieces by notes a second")
    _bars(axes[5], LENGTHS, _histogram(found.length, LENGTHS), "pieces by tokens")
    for ax in (axes[2], axes[3], axes[5]):
        ax.set_xscale("log")
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    write_whole(path, content.getvalue())


def _bars(ax: Axes, edges: NDArray, counts: NDArray[np.int64], title: str) -> None:
    ax.stairs(counts, edges, fill=True, color=FILL)
    ax.set_title(title, color=INK, fontsize=11)
    ax.set_xlim(edges[0], edges[-1])
    ax.spines[["top", "right"]].set_visible(False)
