"""What the documents say is true: the README's commands and Python run as printed, and links lead somewhere.

Run are the README's blocks that begin with ```sh and ```python, in their order and in one folder, which holds the
examples and a seed.mid. What takes longer, or a network, stands in blocks of another kind.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [path for place in ("*", "docs/**/*", "weights/*", "examples/**/*") for path in ROOT.glob(f"{place}.md")]
BEGINNINGS = {".mid": b"MThd", ".wav": b"RIFF", ".png": b"\x89PNG"}
COMMANDS = {"continue", "replay", "render", "show", "tokens", "info"}  # that the README has to show


def blocks(text: str) -> list[tuple[str, str]]:
    """The blocks of shell and Python, each with its kind."""
    return re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    """Where a document's links and pictures lead, but for web pages and places in the document."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(<?([^)>\"]+?)>?(?: \"[^\"]*\")?\)", prose)
    found += re.findall(r"\b(?:src|srcset|href)=\"([^\"]+)\"", prose)
    return [unquote(link.partition("#")[0]) for link in found if not re.match(r"[a-z]+:|#", link)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the blocks have been run."""
    if shutil.which("sh") is None:
        pytest.skip("there is no sh here to run the README's commands")
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copy(ROOT / "examples" / "carol" / "seed.mid", folder / "seed.mid")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for kind, block in blocks(README):
        command = ["sh", "-e", "-c", block] if kind == "sh" else [sys.executable, "-W", "error", "-c", block]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
    return folder


def test_what_the_blocks_write_is_there(folder: Path) -> None:
    names = {name for _, block in blocks(README) for name in re.findall(r"[\w./-]+\.(?:mid|wav|png)\b", block)}
    assert {Path(name).suffix for name in names} == set(BEGINNINGS)
    for name in names:
        assert (folder / name).read_bytes().startswith(BEGINNINGS[Path(name).suffix]), name


def test_the_readme_shows_every_command_and_some_python() -> None:
    shown = {
        command for kind, block in blocks(README) if kind == "sh" for command in re.findall(r"pulse88 (\w+)", block)
    }
    assert shown >= COMMANDS
    assert "python" in dict(blocks(README))


@pytest.mark.parametrize("script", ["scripts/demo", "scripts/check"])
def test_the_readme_names_the_two_scripts(script: str) -> None:
    assert f"./{script}" in README
    assert os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert [link for link in links(text) if not (document.parent / link).exists()] == []


def test_links_and_blocks_are_found() -> None:
    text = '[a](docs/a.md#b) ![c](<out/c d.png>) <img src="e.png"> [f](https://g.h) [i](#j)\n'
    text += '```sh\n[k](l)\n```\n[m](n%20o "a title") [![p](q.svg)](r/)\n```text\nx\n```\n'
    assert links(text) == ["docs/a.md", "out/c d.png", "n o", "q.svg", "r/", "e.png"]
    assert blocks(text) == [("sh", "[k](l)\n")]
