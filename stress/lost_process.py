#!/usr/bin/env python3
"""Kills one of two training processes: the other has to stop and say which was lost, and the run has to go on after.

    python stress/lost_process.py --count 5

After each kill it is resumed by one process and, the next time, by two.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from made_data import make_data
from pulse88 import checkpoint

TIMEOUT = 90  # s from the kill to the end of all


def command(data: Path, out: Path, processes: int, steps: int) -> list[str]:
    settings = {"window": 32, "steps": steps, "validate_every": steps, "checkpoint_every": 2, "samples": 0}
    changes = [x for key, value in settings.items() for x in ("--set", f"{key}={value}")]
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    train = ["train", "--config", "tiny", "--data", str(data), "--out", str(out), "--resume", *changes]
    return [sys.executable, *launcher, "-m", "pulse88", *train]


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def lose_one(data: Path, out: Path, chance: random.Random) -> tuple[float, str]:
    """Starts two processes, kills the second once there is a checkpoint; seconds to the end, and what was said."""
    before = len(checkpoint.list_checkpoints(out)) and checkpoint.list_checkpoints(out)[-1].name
    process = subprocess.Popen(
        command(data, out, 2, 10_000), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not checkpoint.list_checkpoints(out) or checkpoint.list_checkpoints(out)[-1].name == before:
        if process.poll() is not None:
            raise SystemExit(f"it ended by itself:\n{process.communicate()[0]}")
        time.sleep(0.2)
    time.sleep(chance.uniform(0, 2))
    ranks = [
        pid for pid in children(process.pid) if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    ]
    os.kill(ranks[0], signal.SIGKILL)
    began = time.monotonic()
    said, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode, "it ended as if nothing had happened"
    return time.monotonic() - began, said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5)
    asked = parser.parse_args()
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        data, out = make_data(Path(folder) / "data"), Path(folder) / "run"
        for number in range(asked.count):
            took, said = lose_one(data, out, chance)
            named = [line.strip() for line in said.splitlines() if "rank" in line and ": 1" in line]
            if not named or "SIGKILL" not in said:
                print(f"the lost process is not named:\n{said}")
                return 1
            step = checkpoint.read_state(checkpoint.list_checkpoints(out)[-1])["step"]
            processes = 1 + number % 2
            resumed = subprocess.run(
                [*command(data, out, processes, 10_000), "--sitting-minutes", "0.2"],
                capture_output=True,
                text=True,
                check=False,
            )
            after = checkpoint.read_state(checkpoint.list_checkpoints(out)[-1])["step"]
            if resumed.returncode or after <= step:
                print(f"it did not go on from step {step}:\n{resumed.stderr}")
                return 1
            print(f"lost after step {step}; all had ended {took:.1f} s later; {processes} went on to step {after}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
