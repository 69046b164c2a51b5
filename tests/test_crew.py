from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crew_tasks import doubled, doubled_unless_seven, refusing
from pulse88 import crew


@pytest.mark.parametrize("processes", [0, 2])
def test_every_task_comes_back_once_with_its_result(processes: int) -> None:
    asked: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(20):
            asked.append(number)
            yield number

    found = crew.share_out(doubled, tasks(), processes)
    first = next(found)
    assert first.result == 2 * first.task
    assert len(asked) <= 1 + crew.WAITING * processes  # no more is taken than can be worked on
    rest = list(found)
    assert sorted(done.task for done in [first, *rest]) == list(range(20))
    assert all(done.result == 2 * done.task for done in rest)


def test_a_task_that_kills_its_process_comes_back_without_a_result_and_all_others_with_theirs() -> None:
    found = list(crew.share_out(doubled_unless_seven, iter(range(12)), 2))
    assert {done.task: done.result for done in found} == {n: None if n == 7 else 2 * n for n in range(12)}


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 4, 8])
def test_a_process_that_is_killed_as_it_is_born_takes_nothing_with_it(milliseconds: int) -> None:
    script = f"""
import sys, threading, time
from multiprocessing import active_children
sys.path.insert(0, {str(Path(__file__).parent)!r})
from crew_tasks import doubled
from pulse88 import crew

def kill():
    while not (born := active_children()):
        time.sleep(0.0005)
    time.sleep({milliseconds / 1000})
    born[0].kill()

if __name__ == "__main__":
    threading.Thread(target=kill).start()
    print(sorted(done.result for done in crew.share_out(doubled, range(12), 2)))
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    assert done.stdout == f"{[2 * number for number in range(12)]}\n"


@pytest.mark.parametrize("processes", [0, 1])
def test_errors_of_the_function_are_raised_here(processes: int) -> None:
    with pytest.raises(ValueError, match="not 3"):
        list(crew.share_out(refusing, [3], processes))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_nobody_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from crew_tasks import mark_and_wait
from pulse88 import crew
list(crew.share_out(mark_and_wait, [Path({str(tmp_path / "mark")!r})], 1))
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "mark").exists() or not (tmp_path / "mark").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    child = int((tmp_path / "mark").read_text())
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_cores_are_those_that_may_be_used() -> None:
    assert 1 <= crew.cores() <= (os.cpu_count() or 1)
