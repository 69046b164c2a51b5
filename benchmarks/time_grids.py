"""How well time grids of 32 delta bins keep the time of real music: the tables of docs/tokens.md.

    python benchmarks/time_grids.py [FOLDER] [--every 1] [--picture docs/time_grids.png]

FOLDER holds MIDI files at any depth; by default it is the folder `validation` of the corpus that PULSE88_CORPUS names.
Every grid is tried with each delta rounded by itself and with each delta taken from the decoded clock, and `fine` also
as the tokenizer uses it. `--picture` draws the bins of both grids under the deltas of the pieces.

Shape legend: N deltas of a piece, from each onset on the 88 keys to the next.
"""

from __future__ import annotations

import argparse
import os
import sys
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pulse88 import midi_file
from pulse88.notes import Performance
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import FINE, HIGHEST_PITCH, LOWEST_PITCH, PUBLISHED, Slot, TimeGrid

Floats = NDArray[np.float64]
Rule = Callable[[TimeGrid, Floats], NDArray[np.int64]]  # [N] deltas in seconds to [N] bins

CHORD, LONG = 0.03, 2.0  # s: shorter deltas are the spread of a chord, longer ones are rests
NOTES = 100  # over which tempo is taken
SHORTEST_STRETCH = 1.0  # s that NOTES notes must last to have a tempo

LOG_4 = replace(FINE, name="log, 10 ms-4 s", delta=(0.0, *np.geomspace(0.01, 4, 31).tolist()))
UNIFORM_4 = replace(
    FINE,
    name="uniform in log(t + 20 ms), 0-4 s",
    delta=(0.0, *(np.geomspace(0.02, 4.02, 32)[1:] - 0.02).tolist()),
)


def by_itself(grid: TimeGrid, delta: Floats) -> NDArray[np.int64]:
    """Every delta takes its nearest bin."""
    return grid.nearest(Slot.DELTA, delta)


def from_decoded_clock(grid: TimeGrid, delta: Floats) -> NDArray[np.int64]:
    """Every onset is measured from where the decoder is by then."""
    middles = [(a + b) / 2 for a, b in pairwise(grid.delta)]
    bins, clock = [], 0.0
    for onset in np.cumsum(delta).tolist():
        bins.append(bisect_right(middles, onset - clock))
        clock += grid.delta[bins[-1]]
    return np.array(bins, np.int64)


def as_tokenized(grid: TimeGrid, delta: Floats) -> NDArray[np.int64]:
    """The tokenizer's own rule."""
    return Tokenizer(grid).delta_bins(delta)


ROWS: list[tuple[str, TimeGrid, Rule]] = [
    *(
        (f"{grid.name}, {words}", grid, rule)
        for grid in (PUBLISHED, LOG_4, UNIFORM_4, FINE)
        for words, rule in (("each delta by itself", by_itself), ("from the decoded clock", from_decoded_clock))
    ),
    ("**fine, errors carried**", FINE, as_tokenized),
]


def time_errors(grid: TimeGrid, rule: Rule, deltas: list[Floats]) -> dict[str, Floats]:
    """Of all pieces together: relative errors, seconds of chord spread and clock, and 0 or 1 for each delta."""
    found: dict[str, list[Floats]] = {"between": [], "chord": [], "tempo": [], "clock": [], "bent": [], "cut": []}
    for delta in deltas:
        bins = rule(grid, delta)
        error = grid.seconds(Slot.DELTA, bins) - delta
        is_cut = delta > grid.delta[-1]
        heard = (delta >= CHORD) & (delta <= LONG)
        true = np.convolve(delta, np.ones(NOTES), "valid") if len(delta) >= NOTES else np.zeros(0)
        lost = np.convolve(error, np.ones(NOTES), "valid") if len(delta) >= NOTES else np.zeros(0)
        has_tempo = true > SHORTEST_STRETCH
        found["between"].append(np.abs(error[heard] / delta[heard]))
        found["chord"].append(np.abs(error[delta < CHORD]))
        found["tempo"].append(np.abs(lost[has_tempo] / true[has_tempo]))
        found["clock"].append(np.abs(np.cumsum(np.where(is_cut, 0.0, error))))
        found["bent"].append((bins != grid.nearest(Slot.DELTA, delta)).astype(np.float64))
        found["cut"].append(is_cut.astype(np.float64))
    return {name: np.concatenate(values) for name, values in found.items()}


def print_times(deltas: list[Floats]) -> None:
    """The table of errors in time, and a line about the clock."""
    print(
        "| delta grid of 32 bins | between onsets, median / p95 | chord spread | tempo over 100 notes, mean / p95 "
        "| deltas bent | gaps cut |"
    )
    print("|---|---|---|---|---|---|")
    for name, grid, rule in ROWS:
        found = time_errors(grid, rule, deltas)
        between, tempo = 100 * found["between"], 100 * found["tempo"]
        print(
            f"| {name} | {np.median(between):.2f} % / {np.percentile(between, 95):.1f} % "
            f"| {1000 * found['chord'].mean():.2f} ms | {tempo.mean():.2f} % / {np.percentile(tempo, 95):.2f} % "
            f"| {100 * found['bent'].mean():.1f} % | {100 * found['cut'].mean():.3f} % |"
        )
    print("\nHow far the decoded clock of `fine` is off, cut gaps aside:")
    for rule, words in ((as_tokenized, "errors carried"), (by_itself, "each delta by itself")):
        clock = time_errors(FINE, rule, deltas)["clock"]
        numbers = f"median {np.median(clock):.3f} s, p99 {np.percentile(clock, 99):.2f} s, worst {clock.max():.2f} s"
        print(f"{words}: {numbers}")


def print_reports(pieces: list[Performance]) -> None:
    """The table of what encoding leaves out and cuts."""
    notes = sum(map(len, pieces))
    sounding = np.concatenate([piece.sounding_durations() for piece in pieces])
    print("| grid | outside the 88 keys | key struck twice at once | gaps cut | notes cut | notes lengthened |")
    print("|---|---|---|---|---|---|")
    for grid in (PUBLISHED, FINE):
        reports = [Tokenizer(grid).encode(piece).report for piece in pieces]
        names = ("out_of_range", "doubled", "clamped_gaps", "clamped_durations")
        counts = [sum(getattr(report, name) for report in reports) for name in names]
        counts.append(int((sounding < grid.duration[0]).sum()))
        shares = (f"{count:,} ({100 * count / notes:.3g} %)" for count in counts)
        print(f"| {grid.name} | {' | '.join(shares)} |")


def draw(deltas: list[Floats], path: Path) -> None:
    """Writes a picture of the bins of both grids under the deltas of the pieces."""
    figure = Figure(figsize=(8, 2.6), dpi=100, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    every = np.concatenate(deltas)
    above.hist(every[every > 0], np.geomspace(1e-4, 10, 120), color="0.75")
    above.set(xscale="log", yticks=[], ylabel="deltas")
    above.axvline(0.01, color="0.4", linestyle=":", linewidth=1)
    above.text(0.0095, above.get_ylim()[1] * 0.85, "below 10 ms nobody hears a difference", ha="right", color="0.4")
    for height, (grid, color) in enumerate(((FINE, "tab:blue"), (PUBLISHED, "tab:red"))):
        below.vlines(grid.delta[1:], height - 0.35, height + 0.35, color=color, linewidth=1.5)
    below.set_yticks([0, 1], ["fine", "published"])
    below.set(xlim=(8e-5, 11), ylim=(-0.6, 1.6), xlabel="seconds since the previous onset (bin 0 is 0 s)")
    below.set_xticks([1e-4, 1e-3, 1e-2, 0.1, 1, 10], ["0.1 ms", "1 ms", "10 ms", "0.1 s", "1 s", "10 s"])
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpus = os.environ.get("PULSE88_CORPUS")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(corpus) / "validation" if corpus else None)
    parser.add_argument("--every", type=int, default=1, help="take every n-th file")
    parser.add_argument("--picture", type=Path, help="write a picture of the grids to this PNG file")
    asked = parser.parse_args()
    if asked.folder is None:
        sys.exit("name a folder of MIDI files, or set PULSE88_CORPUS to the unpacked corpus")
    files = sorted(asked.folder.rglob("*.mid"))[:: asked.every]
    if not files:
        sys.exit(f"{asked.folder} has no .mid files: name another folder")
    pieces = [midi_file.read(file).performance for file in files]
    on_keys = [piece.take((piece.pitch >= LOWEST_PITCH) & (piece.pitch <= HIGHEST_PITCH)) for piece in pieces]
    print(f"{len(pieces)} pieces, {sum(map(len, pieces)):,} notes\n")
    deltas = [np.diff(piece.onset) for piece in on_keys]
    print_times(deltas)
    print()
    print_reports(pieces)
    if asked.picture:
        draw(deltas, asked.picture)


if __name__ == "__main__":
    main()
