#!/usr/bin/env python3
"""Sets the wall clock while whatever works: `python stress/clock.py [TASK ...] [--jumps 200]`.

Many times a second the clock of everything that runs here jumps forwards or backwards, by a second or an hour, to 1970
or past 2038 (jumping_clock.c); the monotonic clock goes on, as it does where somebody sets a clock. The tasks:

    prepare, crew, index, train, checkpoint, continue, finetune     those of kill.py and disk.py, and prepare by two
                                                                     processes: each must give the bytes that it
                                                                     gives while no clock jumps
    sitting                                         train by minutes: its sitting and the checkpoints come in their time
    serve                                           a server: takes that stream and wait for their turn, duets, a
                                                    connection that says nothing and is cut off in its time

Takes Linux and a C compiler: without them it says so and ends with 2.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILE = "PULSE88_CLOCK"  # the variable that names the file of the clock
SOURCE = Path(__file__).with_name("jumping_clock.c")
JUMPS = (1, 60, 3600, 86_400, 400 * 86_400)  # s, either way
PAUSE = 0.1  # s at most between two jumps


class Clock:
    """The wall clock of this process and of all that it starts."""

    def __init__(self, chance: random.Random) -> None:
        self._chance, self.jumps, self.back = chance, 0, 0
        self._file = Path(os.environ[FILE])
        self._ahead = 0

    def set(self, ahead: int) -> None:
        """So many seconds ahead of what the machine tells."""
        with self._file.open("r+b") as file:  # in one piece, and in the place that is looked at
            file.write(struct.pack("q", ahead))
        self._ahead = ahead

    def jump(self) -> None:
        """Forwards, backwards, to the years around 1970 or past 2038, or to what the machine tells."""
        true = int(time.time()) - self._ahead
        by = self._chance.choice((1, -1)) * self._chance.choice(JUMPS)
        before, places = self._ahead, (self._ahead + by, by, 86_400 - true, 2**31 + 86_400 - true, 0)
        self.set(self._chance.choice(places))
        self.jumps, self.back = self.jumps + 1, self.back + (self._ahead < before)

    def pause(self) -> None:
        time.sleep(self._chance.uniform(0.0, PAUSE))


def again_with_it() -> int:
    """Runs this script once more, with the clock that jumps."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if sys.platform != "linux" or compiler is None:
        print("The clock that jumps takes Linux and a C compiler.")
        return 2
    with tempfile.TemporaryDirectory() as name:
        library, clock = Path(name) / "clock.so", Path(name) / "ahead"
        clock.write_bytes(bytes(8))
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
        environment = {**os.environ, FILE: str(clock), "LD_PRELOAD": str(library)}
        return subprocess.call([sys.executable, __file__, *sys.argv[1:]], env=environment)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="*")
    parser.add_argument("--jumps", type=int, default=200, help="of each task")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if FILE not in os.environ:
        return again_with_it()
    import launch  # which loads all there is, in the process that has the clock
    from clock_tasks import tasks

    chance, failed = random.Random(asked.seed), 0
    with launch.room() as room:
        known = tasks(room)
        if unknown := [name for name in asked.task if name not in known]:
            parser.error(f"no task {', '.join(unknown)}; there are {', '.join(known)}")
        for name in asked.task or known:
            clock, began = Clock(chance), time.monotonic()
            try:
                said = known[name](clock, asked.jumps)
            except AssertionError as error:
                said, failed = f"FAILED: {error}", failed + 1
            clock.set(0)
            jumps = f"{clock.jumps} jumps, {clock.back} of them back"
            print(f"{name}: {jumps}; {said} ({time.monotonic() - began:.0f} s)", flush=True)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
