"""What an hour of music costs: CPU time and memory a note, ten minutes of music at a time.

    python benchmarks/long.py SEED.mid [--minutes 60] [--random-seed 1]

A minute of music may hold a hundred notes or a thousand, so beside the music's minutes stand its notes. Memory is what
the process holds at the end of each part, its highest so far beside it. Prints Markdown.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

from cpu import peak_megabytes, processor
from pulse88 import Continuer

PART = 600.0  # seconds of music


def resident_megabytes() -> float:
    status = Path("/proc/self/status")
    found = re.search(r"VmRSS:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1e3 if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--random-seed", type=int, default=1)
    parser.add_argument("--weights", type=Path)
    asked = parser.parse_args()
    stream = Continuer(asked.weights).stream(asked.seed, seconds=asked.minutes * 60, random_seed=asked.random_seed)
    print(f"{asked.seed.name}, {processor()}, one core\n")
    print("| minutes of music | notes | CPU ms a note | MB held | MB at most |\n|---|---:|---:|---:|---:|")
    part, notes, began = 1, 0, time.process_time()
    for _ in stream:
        if stream.seconds >= part * PART or stream.finished:
            made, spent = stream.notes - notes, time.process_time() - began
            row = f"| {(part - 1) * PART / 60:.0f}–{part * PART / 60:.0f} | {made} | {spent / made * 1e3:.2f} | "
            print(row + f"{resident_megabytes():.0f} | {peak_megabytes():.0f} |", flush=True)
            part, notes, began = int(stream.seconds // PART) + 1, stream.notes, time.process_time()
    made, spent = stream.notes - notes, time.process_time() - began
    if made:
        row = f"| to {stream.seconds / 60:.1f} | {made} | {spent / made * 1e3:.2f} | "
        print(row + f"{resident_megabytes():.0f} | {peak_megabytes():.0f} |")


if __name__ == "__main__":
    main()
