"""How far long continuations drift from their seed: the same figures along 1,900 notes, four times the context.

    python benchmarks/drift.py FOLDER [--pieces 1] [--notes 1900]

FOLDER holds SOURCE/*.mid. Each opening of 128 notes is played on; a row is a window of 380 notes, its figures are
medians over the pieces.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pulse88 import Continuer, midi_file
from pulse88.musicality import bar_self_similarity, degenerate, density, pitch_class_cosine, pitch_range

SEED_NOTES, WINDOW_NOTES = 128, 380
COLUMNS = ("density/seed", "cosine", "range", "bars alike", "degenerate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pieces", type=int, default=1, help="pieces of each source, evenly spaced by name")
    parser.add_argument("--notes", type=int, default=1900)
    parser.add_argument("--random-seed", type=int, default=7)
    parser.add_argument("--weights", type=Path)
    asked = parser.parse_args()
    continuer = Continuer(asked.weights)
    found: list[list[tuple[float, ...]]] = [[] for _ in range(asked.notes // WINDOW_NOTES)]
    for source in sorted(path for path in asked.folder.iterdir() if path.is_dir()):
        paths = sorted(source.glob("*.mid"))
        for path in paths[:: max(1, len(paths) // asked.pieces)][: asked.pieces]:
            seed = midi_file.read(path).performance.sustained().take(slice(0, SEED_NOTES))
            (take,) = continuer.continue_(seed, notes=asked.notes, random_seed=asked.random_seed)
            for number, row in enumerate(found):
                music = take.new.take(slice(number * WINDOW_NOTES, (number + 1) * WINDOW_NOTES))
                music = music.shifted(-float(music.onset[0]))
                row.append(
                    (
                        density(music) / density(seed),
                        pitch_class_cosine(seed, music),
                        pitch_range(music),
                        bar_self_similarity(music),
                        float(bool(degenerate(music))),
                    )
                )
    print(f"{'notes':>12}" + "".join(f"{name:>14}" for name in COLUMNS))
    for number, row in enumerate(found):
        medians = (*np.median(row, axis=0)[:-1], np.mean(row, axis=0)[-1])
        label = f"{number * WINDOW_NOTES}-{(number + 1) * WINDOW_NOTES}"
        print(f"{label:>12}" + "".join(f"{value:14.2f}" for value in medians))
    print(f"{len(found[0])} pieces; degenerate is a share, the rest medians")


if __name__ == "__main__":
    main()
