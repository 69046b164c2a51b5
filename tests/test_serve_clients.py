"""The clients in examples/ do what they say, against a running server."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages aren't installed: pip install '.[serve]'")

from pulse88 import midi_file
from serving import SEED, Running, running, tiny_weights

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tiny_weights(tmp_path_factory.mktemp("weights"))) as server:
        yield server


def command(language: str, seed: Path, out: Path, address: str) -> list[str]:
    if language == "python":
        client = str(EXAMPLES / "client.py")
        options = ["--seconds", "4", "--random-seed", "3", "--server", address]
        return [sys.executable, client, str(seed), str(out), *options]
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node on the path, which runs the client in JavaScript")
    return [node, str(EXAMPLES / "client.mjs"), str(seed), str(out), "4", address, "3"]


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_a_client_prints_notes_and_writes_the_take(server: Running, tmp_path: Path, language: str) -> None:
    seed, out = tmp_path / "seed.mid", tmp_path / "out.mid"
    seed.write_bytes(SEED)
    asked = command(language, seed, out, f"http://127.0.0.1:{server.port}")
    told = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[-1] == f"Wrote {out}."
    heard = midi_file.read(out).performance
    assert (heard.part == 1).sum() == len(lines) - 1 > 0


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_a_client_says_what_the_server_says(server: Running, tmp_path: Path, language: str) -> None:
    seed = tmp_path / "seed.mid"
    seed.write_bytes(b"PK\x03\x04")
    asked = command(language, seed, tmp_path / "out.mid", f"http://127.0.0.1:{server.port}")
    told = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    assert told.returncode == 1 and "a ZIP archive" in told.stderr and "Traceback" not in told.stderr
