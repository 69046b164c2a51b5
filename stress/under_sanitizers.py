"""Damaged files through the C of this project under GCC's sanitizers, which end the process at the first fault.

./scripts/sanitize stress/under_sanitizers.py
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from fuzz import by_chance, on_alarm, targets  # noqa: E402

RUNS, SECONDS = 3000, 150  # a target


@pytest.mark.filterwarnings("ignore")  # of numpy, about the numbers that damage makes
@pytest.mark.parametrize("name", ["weights", "int8", "snapshot", "adapter", "midi"])
def test_damage_does_nothing_behind_the_back_of_c(name: str, tmp_path: Path) -> None:
    signal.signal(signal.SIGPROF, on_alarm)
    assert by_chance(name, targets(tmp_path, None)[name](), RUNS, SECONDS, seed=7)
