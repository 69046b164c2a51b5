"""Whether planted copies are found: passages of training pieces at random transposition and tempo in held-out music.

    python benchmarks/plants.py INDEX.npz TRAIN_FOLDER HELD_OUT_FOLDER [--plants 300]

The folders hold SOURCE/*.mid, and TRAIN_FOLDER what the index was made of. A plant is so many successive notes of a
random training piece, as the MIDI file has them, up to 6 semitones up or down, 0.7 to 1.4 times as fast, between 200
notes of a held-out piece and 200 more. It is found if the longest overlap is with that piece (or one that has the same
passage) and lies within the plant. `missed whole` counts plants of which nothing was found at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pulse88 import midi_file
from pulse88.notes import Performance
from pulse88.overlap_index import OverlapIndex

AROUND = 200  # notes on both sides
LENGTHS = (30, 50, 75, 100, 150, 250)


def piece_of(random: np.random.Generator, paths: list[Path], least: int) -> tuple[Path, Performance]:
    """A random file of so many notes or more."""
    while True:
        path = paths[int(random.integers(len(paths)))]
        performance = midi_file.read(path).performance.sustained()
        if len(performance) >= least:
            return path, performance


def excerpt(random: np.random.Generator, performance: Performance, notes: int) -> tuple[np.ndarray, np.ndarray]:
    begin = int(random.integers(len(performance) - notes + 1))
    cut = slice(begin, begin + notes)
    return performance.onset[cut] - performance.onset[begin], performance.pitch[cut].astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--plants", type=int, default=300)
    asked = parser.parse_args()
    index = OverlapIndex.read(asked.index)
    train, held_out = (sorted(folder.glob("*/*.mid")) for folder in (asked.train, asked.held_out))
    known = set(index.names)
    train = [path for path in train if f"{path.parent.name}/{path.name}" in known]
    random = np.random.default_rng(0)
    print(f"{len(index.names)} pieces, every {index.every}, {asked.plants} plants of each length")
    print(f"{'notes':>6}{'found':>9}{'missed whole':>14}{'reported, median':>18}")
    for notes in LENGTHS:
        found = missed = 0
        reported = []
        for _ in range(asked.plants):
            path, piece = piece_of(random, train, notes)
            _, around = piece_of(random, held_out, 2 * AROUND)
            onset, pitch = excerpt(random, piece, notes)
            onset = onset / float(np.exp(random.uniform(np.log(0.7), np.log(1.4))))
            low, high = max(-6, 21 - int(pitch.min())), min(6, 108 - int(pitch.max()))
            pitch = pitch + int(random.integers(low, high + 1))
            around_onset, around_pitch = excerpt(random, around, 2 * AROUND)
            begins = around_onset[AROUND - 1] + 0.2
            later = around_onset[AROUND:] - around_onset[AROUND - 1] + begins + onset[-1]
            overlaps = [
                overlap
                for overlap in index.overlaps(
                    np.r_[around_onset[:AROUND], begins + onset, later],
                    np.r_[around_pitch[:AROUND], pitch, around_pitch[AROUND:]],
                )
                if overlap.last >= AROUND - 4 and overlap.first < AROUND + notes + 4
            ]
            name = f"{path.parent.name}/{path.name}"
            longest = overlaps[0].notes if overlaps else 0
            hit = any(index.names[o.piece] == name for o in overlaps if o.notes == longest)
            found += hit
            missed += not overlaps
            reported.append(longest if hit else 0)
        print(f"{notes:6d}{found / asked.plants:9.1%}{missed:14d}{np.median(reported):18.0f}", flush=True)


if __name__ == "__main__":
    main()
