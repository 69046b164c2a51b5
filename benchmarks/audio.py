"""How long audio takes: three dense minutes, 20 notes a second, rendered to WAV; seconds, and against real time.

python benchmarks/audio.py
"""

from __future__ import annotations

import time

import numpy as np

from pulse88 import Performance, audio

SECONDS, DENSITY, ROUNDS = 180, 20, 3


def main() -> None:
    count = SECONDS * DENSITY
    random = np.random.default_rng(0)
    piece = Performance(
        onset=np.arange(count) / DENSITY,
        duration=np.full(count, 0.5),
        pitch=random.integers(30, 100, count).astype(np.uint8),
        velocity=random.integers(40, 110, count).astype(np.uint8),
        part=np.zeros(count, np.uint8),
    )
    print(f"{'round':>6}{'wall s':>9}{'CPU s':>9}{'times real time':>17}")
    for number in range(1, ROUNDS + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        audio.to_bytes(piece)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{number:6d}{wall:9.2f}{cpu:9.2f}{SECONDS / wall:17.0f}")


if __name__ == "__main__":
    main()
