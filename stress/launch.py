"""Commands of pulse88 started in an instant, in processes forked off this one, and killed when that is asked for.

Whoever imports this has torch and all else loaded, so that a start costs milliseconds, and no moment of a kill falls
into loading libraries. No thread may run here before a start.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import contextlib
import importlib
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pulse88.cli import main

LOADED = ("train", "prepare", "cli_train", "cli_data", "cli_originality", "cli_serve", "serve.run", "training_log")
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}  # audit events of what changes a folder
LINGER = 0.004  # s at most from such a moment to the kill

for _module in (*(f"pulse88.{name}" for name in LOADED), "matplotlib.figure", "matplotlib.backends.backend_agg"):
    importlib.import_module(_module)
with contextlib.suppress(ImportError):
    importlib.import_module("torch.utils.tensorboard")


class Ended(NamedTuple):
    """How a command ended."""

    status: int  # its exit status; less than 0 if a signal ended it
    said: str  # on its error stream, and its output unless that is read elsewhere


class Started:
    """A command under way."""

    def __init__(self, pid: int, said: Path) -> None:
        self.pid, self._said = pid, said
        self._ended: Ended | None = None

    def ended(self, within: float = 0.0) -> Ended | None:
        """How it ended, if it does within so many seconds."""
        end = time.monotonic() + within
        while self._ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended = Ended(os.waitstatus_to_exitcode(status), self._said.read_text())
                self._said.unlink()
            elif time.monotonic() >= end:
                break
            else:
                time.sleep(0.002)
        return self._ended

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        if self._ended is None:
            os.kill(self.pid, signal.SIGKILL)
            assert self.ended(60.0)


def start(
    command: Sequence[object], *, before: Callable[[], None] = lambda: None, output: int | None = None
) -> Started:
    """Starts `pulse88 COMMAND`; `before` runs in its process first. Its output goes to the descriptor `output`."""
    handle, name = tempfile.mkstemp(prefix="said-")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(handle)
        return Started(pid, Path(name))
    status = 70
    try:  # in the child, which leaves by os._exit, whatever happens
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(handle if output is None else output, 1)
        os.dup2(handle, 2)
        before()
        main(list(map(str, command)), prog_name="pulse88")
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001 - told, and told apart by its status
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def run(command: Sequence[object], *, before: Callable[[], None] = lambda: None) -> Ended:
    """A command to its end, which must come within ten minutes."""
    ended = start(command, before=before).ended(600.0)
    assert ended, f"{command} does not end"
    return ended


def good(command: Sequence[object]) -> str:
    """What a command says that must succeed."""
    ended = run(command)
    assert not ended.status, f"{command}:\n{ended.said}"
    return ended.said


def watched(folder: Path, told: Callable[[int], None]) -> Callable[[], None]:
    """For `before`: tells of each change of a file or folder below `folder`, counted from 1, before it is made."""
    inside, count = os.fspath(folder), 0

    def hear(event: str, about: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            writes = isinstance(about[2], int) and about[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes:
                return
        elif event not in CHANGES:
            return
        at_a_folder = event in ("os.remove", "os.rmdir") and about[1] != -1  # as rmtree does it, by names alone
        if at_a_folder or (not isinstance(about[0], int) and os.fsdecode(about[0]).startswith(inside)):
            count += 1
            told(count)

    return lambda: sys.addaudithook(hear)


def killed_at(folder: Path, number: int, after: float = 0.0) -> Callable[[], None]:
    """For `before`: SIGKILL at change `number` below `folder`, before it is made or `after` seconds later."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def told(count: int) -> None:
        if count == number:
            threading.Timer(after, die).start() if after else die()

    return watched(folder, told)


def changes(command: Sequence[object], folder: Path) -> int:
    """So many changes below `folder` does a command make that nobody disturbs."""
    heard, tell = os.pipe()
    started = start(command, before=watched(folder, lambda count: os.write(tell, b".") and None))
    ended = started.ended(600.0)
    os.close(tell)
    with os.fdopen(heard, "rb") as pipe:
        count = len(pipe.read())
    assert ended and not ended.status, f"{command}:\n{ended and ended.said}"
    return count


@contextlib.contextmanager
def room() -> Iterator[Path]:
    """A folder to work in, where temporary files of what is started go, too."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tmp").mkdir()
        before = tempfile.tempdir
        os.environ["TMPDIR"] = tempfile.tempdir = str(Path(folder) / "tmp")
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before
