"""What SECURITY.md promises about files from others, watched from outside: Python tells a hook (PEP 578) whatever is
unpickled, started, connected to, opened or renamed, in whose code it may be.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from made_corpus import piece, write_folder
from pulse88.config import TINY
from pulse88.engine import weights as weights_file
from pulse88.midi_file import to_bytes
from pulse88.vocabulary import FINE

ROOT = Path(__file__).parents[1]
# Runs commands under a hook, and prints what the hook was told and how the commands ended.
WATCHED = """
import json, os, sys
told, ended = [], []
WATCHED = ("socket.", "pickle.", "subprocess.", "urllib.", "http.client.", "ftplib.", "os.system", "os.exec", "os.fork",
           "os.posix_spawn", "os.spawn", "os.startfile", "webbrowser.", "os.rename", "open")
def hook(event, given):
    if event.startswith(WATCHED):
        told.append([event, *(os.fsdecode(x) if isinstance(x, (bytes, os.PathLike)) else repr(x) if not isinstance(
            x, (str, int)) else x for x in given)])
from click.testing import CliRunner
from pulse88.cli import main
commands = json.loads(sys.argv[1])
sys.addaudithook(hook)
for command in commands:
    result = CliRunner().invoke(main, command)
    ended.append([result.exit_code, result.output, repr(result.exception)])
kept = list(told)
print(json.dumps({"told": kept, "ended": ended}))
"""
BETWEEN_OUR_PROCESSES = ("concurrent.futures.process",)  # whose results come as pickles
ASKS_FOR_FONTS = ("fc-list", "system_profiler")  # what matplotlib starts once, to find fonts


def watched(commands: list[list[str]], folder: Path) -> tuple[list[list[Any]], list[tuple[int, str, str]]]:
    """What Python told while the commands ran in a folder, and each one's exit status, output and exception."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCHED, json.dumps(commands)],
        cwd=folder,
        env=os.environ | {"MPLCONFIGDIR": str(folder.parent / "matplotlib"), "TMPDIR": str(folder.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return found["told"], [(status, output, error) for status, output, error in found["ended"]]


class Bomb:
    """Unpickled, it makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with tiny weights, a seed, and a few pieces."""
    inside = tmp_path / "inside"
    inside.mkdir()
    config = replace(TINY, max_positions=1024)
    tensors = weights_file.random_tensors(config, 1)
    weights_file.save(inside / "tiny.safetensors", tensors, weights_file.metadata_of(config, FINE))
    write_folder(inside / "midi", {f"train/made/{n}.mid": to_bytes(piece(n)) for n in range(3)})
    (inside / "seed.mid").write_bytes(to_bytes(piece(9, 20)))
    return inside


def test_a_pickle_is_refused_wherever_a_file_is_read(folder: Path) -> None:
    for name in ("bomb", "bomb.mid", "bomb.safetensors", "bomb.npz", "bomb.sf2", "bomb.zip", "bomb.json"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    (folder / "data").mkdir()
    (folder / "data" / "manifest.json").write_bytes(pickle.dumps(Bomb()))
    play = ["continue", "seed.mid", "-o", "out.mid", "--notes", "2"]
    commands = [
        [*play, "--weights", "bomb.safetensors"],
        [*play, "--weights", "tiny.safetensors", "--adapter", "bomb.safetensors"],
        ["continue", "bomb.mid", "-o", "out.mid", "--notes", "2", "--weights", "tiny.safetensors"],
        ["render", "seed.mid", "out.wav", "--soundfont", "bomb.sf2"],
        *(["render", "bomb.mid", "out.wav"], ["show", "bomb.mid", "out.png"], ["tokens", "bomb.mid"]),
        ["replay", "bomb.mid", "-o", "out.mid"],
        ["originality", "seed.mid", "--index", "bomb.npz"],
        ["index", "data", "-o", "index.npz"],
        ["prepare", "bomb.zip", "-o", "prepared", "--workers", "1"],
        ["listen-results", "bomb.json", "bomb"],
    ]
    told, ended = watched(commands, folder)
    for command, (status, output, error) in zip(commands, ended, strict=True):
        if command[0] == "prepare":  # Bad files never stop it.
            assert (status, error) == (0, "None") and "Refused 1 of 1 files" in output, (output, error)
        else:
            assert status == 1 and error.startswith("SystemExit"), (command, output, error)
    loaded = [event for event in told if event[0].startswith("pickle.")]
    assert [event for event in loaded if event[1] not in BETWEEN_OUR_PROCESSES] == []
    assert not (folder / "exploded").exists() and not list(folder.glob("out.*"))


def test_the_hook_would_tell_of_a_pickle(folder: Path) -> None:
    (folder / "bomb").write_bytes(pickle.dumps(Bomb()))
    look = "\nimport pickle\npickle.load(open('bomb', 'rb'))\nassert ['pickle.find_class', 'posix', 'mkdir'] in told"
    look = look.replace("posix", os.name)
    subprocess.run([sys.executable, "-B", "-c", WATCHED + look, "[]"], cwd=folder, check=True, capture_output=True)
    assert (folder / "exploded").exists()


def test_commands_reach_no_network_start_nothing_and_write_their_files_under_other_names_first(folder: Path) -> None:
    play = ["continue", "seed.mid", "--weights", "tiny.safetensors", "--seconds", "2", "--random-seed", "1"]
    commands = [
        [*play, "-o", "out.mid", "--wav", "out.wav", "--png", "out.png"],
        ["replay", "out.mid", "-o", "again.mid", "--weights", "tiny.safetensors"],
        *(["render", "out.mid", "two.wav"], ["show", "out.mid", "two.png"], ["tokens", "out.mid"], ["info"]),
        ["prepare", "midi", "-o", "data", "--workers", "1"],
        ["index", "data", "-o", "index.npz"],
        ["originality", "out.mid", "--index", "index.npz"],
    ]
    before = {path for path in folder.rglob("*") if path.is_file()}
    told, ended = watched(commands, folder)
    assert [end for end in ended if end[0]] == []
    started = [event for event in told if event[0].startswith(("subprocess.", "os.exec", "os.fork", "os.posix_spawn"))]
    assert [event for event in started if not any(tool in str(event[1:]) for tool in ASKS_FOR_FONTS)] == []
    assert [event for event in told if event[0].startswith(("socket.", "urllib.", "http.", "ftplib.", "web"))] == []
    new = {path for path in folder.rglob("*") if path.is_file()} - before
    assert {path.name for path in new} >= {"out.mid", "out.wav", "out.png", "again.mid", "two.wav", "two.png"}
    named = {folder / str(event[2]) for event in told if event[0] == "os.rename"}
    assert {path.relative_to(folder) for path in new - named} == set()


@pytest.mark.parametrize(("lock", "lists"), [("core", ["dependencies"]), ("serve", ["dependencies", "serve"])])
def test_locks_pin_every_dependency_by_hashes(lock: str, lists: list[str]) -> None:
    pins = (ROOT / "requirements" / f"{lock}.txt").read_text()
    lines = [line for line in pins.splitlines() if not line.lstrip().startswith("#")]
    assert all(re.match(r"[a-z0-9.-]+==\S+( ; .*)? \\$|    --hash=sha256:[0-9a-f]{64}( \\)?$", line) for line in lines)
    project = (ROOT / "pyproject.toml").read_text()
    asked = "".join(re.findall(rf"^(?:{'|'.join(lists)}) = \[(.*?)\]$", project, re.DOTALL | re.MULTILINE))
    needed = {name.replace("_", "-") for name in re.findall(r'"([a-z0-9_-]+)[<>=]', asked)}
    assert {"numpy", "safetensors"} <= needed <= {line.split("==")[0] for line in lines}
