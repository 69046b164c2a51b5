"""Tasks for the processes of test_crew.py, which import them by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def doubled(number: int) -> int:
    return 2 * number


def doubled_unless_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def refusing(number: int) -> int:
    raise ValueError(f"not {number}")


def mark_and_wait(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(120)
