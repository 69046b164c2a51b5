"""Builds what is published and plays from it where nothing of the repository is near: part of scripts/check.

A source archive, a wheel from it, and a wheel from it as if there were no compiler. Each wheel must bring weights that
play in an empty folder, by the native engine or, without a compiler, by numpy, which is said once. What is built a
second time, later and by somebody whose files nobody else may read, must be the same to the byte: archives everywhere,
wheels where the compiler is known to write no times.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from environment import ROOT, has_compiler, told

SEED = ROOT / "examples" / "carol" / "seed.mid"
NO_COMPILER = "/bin/false"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with told("Building the source archive and a wheel from it"):
            _run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], folder)
        (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
        with told("Building both again"):
            again = [sys.executable, "-m", "build", "--outdir", str(folder / "again"), str(ROOT)]
            _run(again, folder, umask=0o077)
        for file in (archive, wheel) if sys.platform == "linux" else (archive,):
            if file.read_bytes() != (folder / "again" / file.name).read_bytes():
                raise SystemExit(f"Two builds of {file.name} from the same sources differ.")
        _play(folder / "first", wheel, "native" if has_compiler() else "numpy")
        if has_compiler() and os.name == "posix":
            with told("Building a wheel without a compiler"):
                command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder / "wheels")]
                _run([*command, str(archive)], folder, CC=NO_COMPILER)
            _play(folder / "second", next((folder / "wheels").glob("*.whl")), "numpy")
        sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in (archive, wheel))
    print(f"Built and played from: {sizes}.")


def _play(folder: Path, wheel: Path, engine: str) -> None:
    """Installs a wheel into an empty folder and plays on from the carol there."""
    with told(f"Playing on from {wheel.name} by {engine}"):
        folder.mkdir()
        _run([sys.executable, "-m", "pip", "install", "--no-deps", "--target", "site", str(wheel)], folder)
        pulse88 = [sys.executable, "-m", "pulse88"]
        info = _run([*pulse88, "info"], folder, PYTHONPATH="site")
        weights, chosen = str(folder / "site" / "pulse88" / "_weights"), f"\nengine      {engine}\n"
        if weights not in info or chosen not in info:
            raise SystemExit(f"{info}\nnot the weights of the wheel, or not the {engine} engine")
        played = _run([*pulse88, "continue", str(SEED), "-o", "out.mid", "--seconds", "4"], folder, PYTHONPATH="site")
        if played.count("the numpy engine runs") != (engine == "numpy"):
            raise SystemExit(f"{played}\nthat numpy plays should be said once, if it does")
        assert (folder / "out.mid").stat().st_size > SEED.stat().st_size


def _run(command: list[str], folder: Path, *, umask: int = -1, **more: str) -> str:
    """What the command printed; if it failed, the program ends with that."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
        umask=umask if os.name == "posix" else -1,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{' '.join(command)} failed, see above.")
    return done.stdout


if __name__ == "__main__":
    main()
