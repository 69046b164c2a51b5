"""Environments that the scripts make for themselves: a venv in the repository, filled by pip.

This file and the scripts run on any Python from 3.8 on, to be able to say that a newer one is needed.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 10)
NEWEST_MINOR = 15  # of those looked for on the search path
COMPILERS = ("cc", "gcc", "clang")
# What an installation is made of, but for the package's Python files, which an editable one reads where they are.
INSTALLED_FROM = ("pyproject.toml", "setup.py", "src/pulse88/engine/kernels/*")


def prepared(name: str, installs: Sequence[str]) -> Path:
    """The Python of the venv ROOT/`name`, in which `pip install` was given each line of `installs`.

    Made once; made again when the lines, the repository's place or what is compiled have changed, or if it no longer
    runs. If it can't be made, the program ends with what venv or pip said.
    """
    folder = ROOT / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    stamp = folder / "installed.txt"
    state = _state(installs)
    usable = python.exists() and not _run([*pip, "--version"]).returncode
    if usable and stamp.is_file() and stamp.read_text() == state:
        return python
    stamp.unlink(missing_ok=True)  # Stopped in the middle, the next run begins again.
    if not usable:
        with told(f"Making an environment in {name}"):
            done = _run([_interpreter(), "-m", "venv", "--clear", str(folder)])
            if done.returncode:
                raise SystemExit(f"{done.stdout}\nPython's venv is needed; where it is a package, python3-venv has it.")
    for line in installs:
        with told(f"pip install {line}"):
            done = _run([*pip, "install", *shlex.split(line)])
            if done.returncode:
                raise SystemExit(f"{done.stdout}\n`pip install {line}` failed, see above.")
    stamp.write_text(state)
    return python


def has_compiler() -> bool:
    """Whether installing can build the native engine; if not, numpy computes."""
    return any(map(shutil.which, [os.environ["CC"]] if os.environ.get("CC") else COMPILERS))


@contextmanager
def told(what: str) -> Iterator[None]:
    """Prints what is being done, and afterwards how long it took."""
    print(f"{what} ...", end=" ", flush=True)
    began = time.monotonic()
    try:
        yield
    except BaseException:
        print("failed.", flush=True)
        raise
    print(f"{time.monotonic() - began:.0f} s", flush=True)


def _interpreter() -> str:
    """A Python that can run pulse88: this one, or another of the search path."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for minor in range(NEWEST_MINOR, OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and not _run([found, "--version"]).returncode:  # A version manager has shims that lead nowhere.
            return found
    raise SystemExit(f"Pulse88 needs Python {OLDEST[0]}.{OLDEST[1]} or newer; this is {sys.version.split()[0]}.")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The finished process, with all that it printed as its stdout."""
    return subprocess.run(
        command,
        cwd=str(ROOT),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def _state(installs: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for pattern in INSTALLED_FROM:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return "\n".join((*installs, str(ROOT), digest.hexdigest(), ""))
