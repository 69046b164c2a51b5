#!/usr/bin/env python3
"""Fills the disk under a command, and takes away the right to write: `python stress/disk.py [TASK ...]`.

Each command writes into a tmpfs that has room for a share of what it writes. It has to end by an error that says what
can't be written and what to do, with nothing half-written left and what was whole before still whole; with room again
the same line has to give the undisturbed run's bytes. Then once more in a folder that may not be written to.

Takes Linux and the right to mount: without them it says so and ends with 2.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import launch
from kill import Task, digests, tasks
from pulse88.config import TINY
from pulse88.engine import weights as weights_file
from pulse88.engine.weights import random_tensors
from pulse88.vocabulary import FINE

SEED = Path(__file__).parents[1] / "examples" / "motif" / "seed.mid"
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
ROOM = 256 * 2**20


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes."""
    folder.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={max(size, 4096)}", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def more(room: Path) -> dict[str, Task]:
    """Commands that kill.py leaves out."""
    tiny = room / "tiny.safetensors"
    weights_file.save(tiny, random_tensors(TINY, 1), weights_file.metadata_of(TINY, FINE))
    play = [
        "continue",
        SEED,
        "--weights",
        tiny,
        "--notes",
        20,
        "--seconds",
        600,
        "--random-seed",
        3,
        "--seed-notes",
        32,
    ]
    return {
        "continue": Task(
            lambda out: [*play, "-o", out / "o.mid", "--wav", out / "o.wav", "--png", out / "o.png"],
            lambda out: digests(out, "o.*"),
            lambda out: None,
        ),
        "finetune": Task(
            lambda out: [
                *("finetune", "--weights", tiny, "--data", room / "data", "-o", out / "mine.safetensors"),
                *("--steps", 2, "--window", 64),
            ],
            lambda out: digests(out, "mine.safetensors"),
            lambda out: None,
        ),
    }


def fill(task: Task, room: Path) -> str:
    """What came of a task on full disks; AssertionError if anything is not as it has to be."""
    with disk(room / "disk", ROOM) as out:
        launch.good(task.command(out))
        expected = task.results(out)
        used = sum(path.stat().st_blocks * 512 for path in out.rglob("*") if path.is_file())
    assert expected, "the undisturbed run left nothing"
    refused = fitted = 0
    for share in SHARES:
        with disk(room / "disk", int(share * used)) as out:
            end = launch.start(task.command(out)).ended(600.0)
            assert end, f"at {share:.0%} it does not end"
            if end.status:
                clear(end, "make room", f"at {share:.0%}")
                refused += 1
            else:
                fitted += 1
            left = [str(path) for path in out.rglob(".*")]
            assert not left, f"at {share:.0%} there is left: {left}"
            task.intact(out)
            mount("-o", f"remount,size={ROOM}", out)
            launch.good(task.command(out))
            assert task.results(out) == expected, f"at {share:.0%} the results differ once there is room"
    with disk(room / "disk", ROOM) as out:
        mount("-o", "remount,ro", out)
        end = launch.start(task.command(out)).ended(600.0)
        assert end and end.status, "it writes where nothing may be written"
        clear(end, "choose a folder", "read-only")
    return f"{refused} full disks refused, {fitted} large enough after all, then the same bytes; read-only refused"


def clear(end: launch.Ended, remedy: str, when: str) -> None:
    """Whether a command ended by a clear error."""
    assert end.status == 1 and "Traceback" not in end.said, f"{when} it ended with {end.status}:\\n{end.said}"
    assert "can't be written" in end.said and remedy in end.said, f"{when} it says:\\n{end.said}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="*")
    asked = parser.parse_args()
    with launch.room() as room:
        try:
            with disk(room / "disk", 4096):
                pass
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"A tmpfs can't be mounted here ({error}): this takes Linux and the right to mount.")
            return 2
        known = tasks(room) | more(room)
        failed = 0
        for name in asked.task or known:
            began = time.monotonic()
            try:
                said = fill(known[name], room)
            except AssertionError as error:
                said, failed = f"FAILED: {error}", failed + 1
            print(f"{name}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
