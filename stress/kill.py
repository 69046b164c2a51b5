#!/usr/bin/env python3
"""Kills what writes files, at random moments and with SIGKILL, and looks at what is left.

    python stress/kill.py prepare --count 200     pulse88 prepare over made-up pieces
    python stress/kill.py train --count 200       pulse88 train, the tiny preset on a CPU
    python stress/kill.py index --count 200       pulse88 index

A run is started, killed after a random time, and started again, until `count` kills are done; whenever one comes to its
end before it is killed, the next begins anew. After each kill nothing half-written may be read as whole: the last
checkpoint loads, the index is whole or absent. Whatever ended must equal the run that nobody disturbed, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from made_corpus import corpus, write_folder
from pulse88 import checkpoint
from pulse88.engine import weights as weights_file
from pulse88.overlap_index import OverlapIndex


class Task(NamedTuple):
    """A command that writes into a folder, what its results are, and what has to hold after a kill."""

    command: Callable[[Path], list[str]]
    results: Callable[[Path], dict[str, str]]  # digest by name of what an ended run leaves
    intact: Callable[[Path], None]  # raises if something half-written reads as whole


def pulse88(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pulse88", *map(str, arguments)]


def digests(folder: Path, *patterns: str) -> dict[str, str]:
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def tasks(room: Path) -> dict[str, Task]:
    midi = write_folder(room / "midi", corpus())
    data = room / "data"
    subprocess.run(pulse88("prepare", midi, "-o", data), check=True, capture_output=True)
    settings = {
        "window": 32,
        "steps": 30,
        "validate_every": 30,
        "checkpoint_every": 3,
        "batch_windows": 2,
        "samples": 0,
    }
    changes = [x for key, value in settings.items() for x in ("--set", f"{key}={value}")]

    def checkpoints_load(out: Path) -> None:
        for folder in checkpoint.list_checkpoints(out):
            checkpoint.read_state(folder)
            weights_file.read(folder / checkpoint.WEIGHTS_NAME)

    def index_is_whole(out: Path) -> None:
        if (out / "index.npz").exists():
            OverlapIndex.read(out / "index.npz")

    def nothing_reads_as_whole(out: Path) -> None:
        if (out / "manifest.json").exists():
            from pulse88.shards import read_split

            read_split(out, "train")

    return {
        "prepare": Task(
            lambda out: pulse88("prepare", midi, "-o", out),
            lambda out: digests(out, "manifest.json", "*.npz"),
            nothing_reads_as_whole,
        ),
        "train": Task(
            lambda out: pulse88("train", "--config", "tiny", "--data", data, "--out", out, "--resume", *changes),
            lambda out: digests(out, "checkpoints/step-00000030/*"),
            checkpoints_load,
        ),
        "index": Task(
            lambda out: pulse88("index", data, "-o", out / "index.npz"),
            lambda out: digests(out, "index.npz"),
            index_is_whole,
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("prepare", "train", "index"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        task = tasks(room)[asked.task]
        undisturbed = room / "undisturbed"
        undisturbed.mkdir()
        began = time.monotonic()
        subprocess.run(task.command(undisturbed), check=True, capture_output=True)
        usual, expected = time.monotonic() - began, task.results(undisturbed)
        assert expected, "the undisturbed run left nothing"
        kills = ended = 0
        out = room / "out"
        while kills < asked.count:
            out.mkdir(exist_ok=True)
            process = subprocess.Popen(task.command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                _, problem = process.communicate(timeout=chance.uniform(0.1, 1.2) * usual)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                task.intact(out)
                continue
            if process.returncode:
                print(f"after {kills} kills it ended with {process.returncode}:\n{problem.decode()}")
                return 1
            if task.results(out) != expected:
                print(f"after {kills} kills the results differ from the undisturbed run's")
                return 1
            ended += 1
            shutil.rmtree(out)
        print(f"{asked.task}: {kills} kills, {ended} runs ended between them, each with the undisturbed run's bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
