"""Continuations of held-out pieces in numbers: 60 s of new music after an opening of 128 notes, by source.

    python benchmarks/continuations.py FOLDER [--pieces 6] [--seconds 60] [--whole] [--temperature 1.0] [--top-p 0.97]

FOLDER holds SOURCE/*.mid. Beside every figure of the model's music stands the same figure of what the composer wrote
after the same opening. `--whole` takes each piece whole, as `pulse88 continue` does, so the model plays on after the
ending and there is no true continuation to compare with.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from pulse88 import Continuer, Performance, SamplingConfig, midi_file, trials
from pulse88.musicality import degenerate, longest_bar_repetition

SEED_NOTES = 128
COLUMNS = ("cosine", "density", "range", "entropy", "loop", "bars alike", "8-grams again")


def figures(seed: Performance, music: Performance) -> tuple[float, ...]:
    """The columns for music that follows a seed."""
    found = trials.figures(seed, music)
    loop = float(longest_bar_repetition(music))
    return (*(found[n] for n in ("cosine", "density", "range", "entropy")), loop, found["bars"], found["again"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pieces", type=int, default=6, help="pieces of each source, evenly spaced by name")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=0.97)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--random-seed", type=int, default=0)
    parser.add_argument("--weights", type=Path)
    asked = parser.parse_args()
    continuer = Continuer(asked.weights)
    sampling = SamplingConfig(temperature=asked.temperature, top_p=asked.top_p, min_p=asked.min_p)
    made: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    true: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    faults = []
    for source in sorted(path for path in asked.folder.iterdir() if path.is_dir()):
        paths = sorted(source.glob("*.mid"))
        for path in paths[:: max(1, len(paths) // asked.pieces)][: asked.pieces]:
            piece = midi_file.read(path).performance.sustained()
            seed = piece if asked.whole else piece.take(slice(0, SEED_NOTES))
            (take,) = continuer.continue_(seed, seconds=asked.seconds, random_seed=asked.random_seed, sampling=sampling)
            heard = seed.take(slice(-SEED_NOTES, None))
            made[source.name].append(figures(heard, take.new))
            faults += [f"{source.name}/{path.name}: {reason}" for reason in degenerate(take.new, (0, asked.seconds))]
            rest = piece.take((piece.onset > take.boundary) & (piece.onset <= take.boundary + asked.seconds))
            if not asked.whole and len(rest) >= SEED_NOTES:
                true[source.name].append(figures(heard, rest))
    print(f"{'median':24}" + "".join(f"{name:>15}" for name in COLUMNS))
    for who, rows in (("model", made), ("composer", true)):
        for source, values in (*rows.items(), ("all", [row for found in rows.values() for row in found])):
            if values:
                medians = np.median(values, axis=0)
                print(f"{who + ' ' + source:18} n={len(values):3d} " + "".join(f"{value:15.2f}" for value in medians))
    rows = np.array([row for found in made.values() for row in found])
    within = np.mean((rows[:, 1] >= 0.5) & (rows[:, 1] <= 2.0))
    print(
        f"mean cosine {rows[:, 0].mean():.3f}; density within a factor of 2: {within:.0%}; "
        f"longest loop {rows[:, 4].max():.0f} rounds; degenerate {len(faults)} of {len(rows)}"
    )
    for fault in faults:
        print("  ", fault)


if __name__ == "__main__":
    main()
