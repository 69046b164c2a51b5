"""Whether music goes bad when it goes on: figures at 1, 2, 4 and 8 times the context, beside the first context.

    python benchmarks/drift.py FOLDER [--pieces 2] [--random-seeds 1]

FOLDER holds SOURCE/*.mid. Each opening of 128 notes is played on to more than 8 times the context of 512 notes; the
state is rebuilt on the way from its first and its latest notes (generate.py). A row is a window of 384 notes that
begins there, its figures medians over the takes, and the share of takes that are degenerate.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from pulse88 import Continuer, midi_file
from pulse88.musicality import (
    bar_self_similarity,
    degenerate,
    density,
    pitch_class_cosine,
    pitch_class_entropy,
    pitch_range,
)
from pulse88.notes import Performance
from pulse88.playing import in_groups, play_together
from pulse88.provenance import ContinueConfig
from pulse88.vocabulary import EVENT_TOKENS

SEED_NOTES, WINDOW_NOTES = 128, 384
TIMES = (0, 1, 2, 4, 8)  # of the context; 0 is the rest of the first
COLUMNS = ("density/seed", "range", "entropy", "bars alike", "cosine", "degenerate")


def figures(seed: Performance, music: Performance) -> tuple[float, ...]:
    """The columns for a window of music."""
    return (
        density(music) / density(seed),
        pitch_range(music),
        pitch_class_entropy(music),
        bar_self_similarity(music),
        pitch_class_cosine(seed, music),
        float(bool(degenerate(music))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pieces", type=int, default=2, help="pieces of each source, evenly spaced by name")
    parser.add_argument("--random-seeds", type=int, default=1, help="takes of each piece")
    parser.add_argument("--weights", type=Path)
    asked = parser.parse_args()
    continuer = Continuer(asked.weights)
    context = continuer.engine.config.max_positions // EVENT_TOKENS
    begins = [max(0, times * context - SEED_NOTES) for times in TIMES]
    seeds, playings = [], []
    for source in sorted(path for path in asked.folder.iterdir() if path.is_dir()):
        paths = sorted(source.glob("*.mid"))
        for path in paths[:: max(1, len(paths) // asked.pieces)][: asked.pieces]:
            seed = midi_file.read(path).performance.sustained().take(slice(0, SEED_NOTES))
            config = ContinueConfig(notes=begins[-1] + WINDOW_NOTES, takes=asked.random_seeds, random_seed=7)
            made = continuer.begin(seed, config)
            seeds += [seed] * len(made)
            playings += made
    for group in in_groups(playings):
        for number, playing in enumerate(play_together(group)):
            if number % 5000 == 0:
                print(f"{playing.notes} notes of each of {len(group)}", file=sys.stderr, flush=True)
    print("| window begins at | " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * len(COLUMNS))
    for times, begin in zip(TIMES, begins, strict=True):
        rows = []
        for seed, playing in zip(seeds, playings, strict=True):
            music = playing.continuation().new.take(slice(begin, begin + WINDOW_NOTES))
            rows.append(figures(seed, music.shifted(-float(music.onset[0]))))
        medians = (*np.median(rows, axis=0)[:-1], np.mean(rows, axis=0)[-1])
        label = f"{times} × {context} notes" if times else "the seed's end"
        print(f"| {label} | " + " | ".join(f"{value:.2f}" for value in medians) + " |")
    print(f"\n{len(playings)} takes; degenerate is a share, the rest medians")


if __name__ == "__main__":
    main()
