#!/usr/bin/env python3
"""Kills whatever works, at random moments and with SIGKILL, and looks at what is left.

    python stress/kill.py prepare --count 200       pulse88 prepare over made-up pieces
    python stress/kill.py crew --count 200          the same with two processes that parse; one of them is killed
    python stress/kill.py index --count 200         pulse88 index
    python stress/kill.py train --count 200         pulse88 train, the tiny preset on a CPU
    python stress/kill.py checkpoint --count 200    the same with a checkpoint every step, killed while one is written
    python stress/kill.py serve --count 200         pulse88 serve while three listen; then it is started again
    python stress/kill.py worker --count 200        a worker of pulse88 serve while three listen

A command is started, killed, and started again, until `count` kills are done; whenever one comes to its end before it
is killed, the next begins anew. Half of the kills come at a random time, the others at a random one of all changes
that an undisturbed run makes to files and folders: right before it or within 4 ms after. After each kill nothing
half-written may be read as whole. Whatever ended must equal the run that nobody disturbed, byte for byte.

Of a server: nothing is left in its folders, its workers end by themselves, the next one listens on the same port at
once, and the same wish gives the same notes. Of a worker: every take goes on, with no note lost, doubled or different.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import launch
from kill_serve import kill_servers, kill_workers
from launch import killed_at
from made_corpus import piece, write_folder
from made_data import make_data
from pulse88 import checkpoint
from pulse88.engine import weights as weights_file
from pulse88.midi_file import to_bytes
from pulse88.overlap_index import OverlapIndex
from pulse88.shards import MANIFEST, read_split

PIECES = 200
STEPS = 12


class Task(NamedTuple):
    """A command that writes into a folder, what its results are, and what has to hold after a kill."""

    command: Callable[[Path], list[object]]
    results: Callable[[Path], dict[str, str]]  # digest by name of what an ended run leaves
    intact: Callable[[Path], None]  # raises if something half-written reads as whole
    aimed: bool = False  # all kills at changes of files, none at a random time


def digests(folder: Path, *patterns: str) -> dict[str, str]:
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def corpus(folder: Path) -> Path:
    """Made-up pieces, one in ten held out, in several chunks of work."""
    files = {}
    for seed in range(PIECES):
        files[f"{'train' if seed % 10 else 'validation'}/made/{seed:03d}.mid"] = to_bytes(piece(seed))
    return write_folder(folder, files)


def tasks(room: Path) -> dict[str, Task]:
    midi, data, small = corpus(room / "midi"), room / "data", make_data(room / "small")
    launch.good(["prepare", midi, "-o", data, "--workers", 0])

    def prepare(out: Path) -> list[object]:
        return ["prepare", midi, "-o", out, "--workers", 0]

    def train(out: Path, checkpoint_every: int) -> list[object]:
        settings = {"window": 32, "steps": STEPS, "validate_every": STEPS, "batch_windows": 2, "samples": 0}
        settings["checkpoint_every"] = checkpoint_every
        changes = [x for key, value in settings.items() for x in ("--set", f"{key}={value}")]
        return ["train", "--config", "tiny", "--data", small, "--out", out, "--resume", *changes]

    def last_checkpoint(out: Path) -> dict[str, str]:
        return digests(out, f"checkpoints/step-{STEPS:08d}/*")

    def checkpoints_load(out: Path) -> None:
        for folder in checkpoint.list_checkpoints(out):
            checkpoint.read_state(folder)
            weights_file.read(folder / checkpoint.WEIGHTS_NAME)
            checkpoint._read_tensors(folder / checkpoint.OPTIMIZER_NAME)

    def index_is_whole(out: Path) -> None:
        if (out / "index.npz").exists():
            OverlapIndex.read(out / "index.npz")

    def data_is_whole(out: Path) -> None:
        if (out / MANIFEST).exists():
            read_split(out, "train")
            read_split(out, "validation")

    return {
        "prepare": Task(prepare, lambda out: digests(out, MANIFEST, "*.npz"), data_is_whole),
        "index": Task(
            lambda out: ["index", data, "-o", out / "index.npz"], lambda out: digests(out, "index.npz"), index_is_whole
        ),
        "train": Task(lambda out: train(out, 3), last_checkpoint, checkpoints_load),
        "checkpoint": Task(lambda out: train(out, 1), last_checkpoint, checkpoints_load, aimed=True),
    }


def kill(task: Task, room: Path, count: int, chance: random.Random) -> str:
    """Kills a command so many times; what came of it. AssertionError if anything is not as it has to be."""
    out = room / "undisturbed"
    out.mkdir()
    began = time.monotonic()
    launch.good(task.command(out))
    usual, expected = time.monotonic() - began, task.results(out)
    assert expected, "the undisturbed run left nothing"
    out = room / "out"
    out.mkdir()
    changes = launch.changes(task.command(out), out)
    assert task.results(out) == expected, "two undisturbed runs differ"
    shutil.rmtree(out)
    kills = ended = inside = 0
    while kills < count:
        out.mkdir(exist_ok=True)
        if task.aimed or chance.random() < 0.5:
            after = chance.choice((0.0, chance.uniform(0.0, launch.LINGER)))
            started = launch.start(task.command(out), before=killed_at(out, chance.randint(1, changes), after))
            end = started.ended(600.0)
            assert end, "it does not end"
        else:
            started = launch.start(task.command(out))
            end = started.ended(chance.uniform(0.0, 1.1) * usual)
        if end is None or end.status == -9:
            started.kill()
            kills += 1
            inside += any(out.rglob(".*"))
            task.intact(out)
            continue
        assert not end.status, f"after {kills} kills it ended with {end.status}:\n{end.said}"
        assert task.results(out) == expected, f"after {kills} kills the results differ from the undisturbed run's"
        left = [str(path) for path in out.rglob(".*")]
        assert not left, f"after {kills} kills there is left: {left}"
        ended += 1
        shutil.rmtree(out)
    said = f"{kills} kills, {inside} of them while something was written; {ended} runs ended between them, each with "
    return said + f"the undisturbed run's bytes; such a run takes {usual:.1f} s and {changes} changes of files"


def kill_crew(room: Path, count: int, chance: random.Random) -> str:
    """Kills one of two processes that parse, once a run; what came of it."""
    midi, out = corpus(room / "midi"), room / "out"
    command = [sys.executable, "-m", "pulse88", "prepare", str(midi), "-o", str(out), "--workers", "2"]
    expected: dict[str, str] = {}
    usual, kills = 0.0, -1
    while kills < count:
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            until = began + chance.uniform(0.2, 0.9) * usual
            while expected and process.poll() is None:
                crew = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                if crew and time.monotonic() >= until:
                    os.kill(int(chance.choice(crew)), signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.002)
            _, said = process.communicate(timeout=600)
        assert not process.returncode, f"after {kills} kills it ended with {process.returncode}:\n{said}"
        if not expected:
            expected, usual, kills = digests(out, MANIFEST, "*.npz"), time.monotonic() - began, 0
        assert digests(out, MANIFEST, "*.npz") == expected, f"after {kills} kills the results differ"
        assert not list(out.rglob(".*")), f"after {kills} kills there is left: {list(out.rglob('.*'))}"
        shutil.rmtree(out)
    return f"{kills} kills, after each of which the run ended well and with the undisturbed run's bytes"


def main() -> int:
    names = ("prepare", "crew", "index", "train", "checkpoint", "serve", "worker")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=names)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    began = time.monotonic()
    with launch.room() as room:
        if asked.task == "serve":
            said = kill_servers(room, asked.count, chance)
        elif asked.task == "worker":
            said = kill_workers(room, asked.count, chance)
        elif asked.task == "crew":
            said = kill_crew(room, asked.count, chance)
        else:
            said = kill(tasks(room)[asked.task], room, asked.count, chance)
    print(f"{asked.task}: {said} ({time.monotonic() - began:.0f} s in all)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
