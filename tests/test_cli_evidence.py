"""The best of several takes, guards, limits and findings from the command line; what is written is replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from made_corpus import piece
from pulse88 import guard, midi_file
from pulse88.cli import main
from pulse88.config import TINY
from pulse88.continuation import provenance_of
from pulse88.engine.weights import metadata_of, random_tensors, save
from pulse88.guard import Fault
from pulse88.notes import Note
from pulse88.overlap_index import build
from pulse88.vocabulary import FINE

CONFIG = replace(TINY, max_positions=640)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    midi_file.write(piece(1, 60), tmp_path / "seed.mid")
    save(tmp_path / "w.safetensors", random_tensors(CONFIG, 1), metadata_of(CONFIG, FINE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    asked = ["continue", "seed.mid", "--weights", "w.safetensors", "--random-seed", "1", "--notes", "60", *arguments]
    told = CliRunner().invoke(main, asked)
    assert told.exit_code == code, told.output
    return told.output


def replayed(name: str) -> None:
    told = CliRunner().invoke(main, ["replay", name, "--weights", "w.safetensors", "-o", "again.mid"])
    assert told.exit_code == 0, told.output


def test_the_best_of_three_is_one_of_the_three_and_says_why(folder: Path) -> None:
    said = run("--best-of", "3", "-o", "best.mid")
    lines = said.splitlines()
    assert [line[:2] for line in lines[:3]] == ["1.", "2.", "3."]
    assert all("points off: " in line and "bits a note" in line for line in lines[:3])
    run("--takes", "3", "-o", "all.mid")
    best = provenance_of(folder / "best.mid")
    assert best is not None
    assert f"1. take {best.take + 1}: " in said
    assert (folder / "best.mid").read_bytes() == (folder / f"all-take{best.take + 1}.mid").read_bytes()
    assert not (folder / "best-take1.mid").exists()
    replayed("best.mid")


def test_takes_and_the_best_of_takes_contradict() -> None:
    assert "give one of them" in run("--takes", "2", "--best-of", "2", code=2)


def test_a_guard_says_what_it_did_and_is_replayed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("-o", "straight.mid")
    assert "guard: " not in run("--guard", "-o", "guarded.mid")
    straight = (folder / "straight.mid").read_bytes()
    assert (folder / "guarded.mid").read_bytes() == straight

    def forty_are_enough_once(notes: Sequence[Note]) -> Fault | None:
        return Fault("loop", 25) if len(notes) == 48 and notes[30] == first.setdefault("note", notes[30]) else None

    first: dict[str, Note] = {}
    monkeypatch.setattr(guard, "watch_degeneration", lambda: forty_are_enough_once)
    said = run("--guard", "-o", "guarded.mid")
    assert "guard: loop at note 48: went back to note 16" in said
    made_by = provenance_of(folder / "guarded.mid")
    assert made_by is not None and made_by.branches[0][0] == 16
    assert (folder / "guarded.mid").read_bytes() != straight
    replayed("guarded.mid")


def test_quotes_are_told_and_cut_short(folder: Path) -> None:
    run("-o", "straight.mid")
    made_by = provenance_of(folder / "straight.mid")
    assert made_by is not None
    whole = midi_file.read(folder / "straight.mid").performance
    new = whole.take(whole.part == made_by.new_part)
    build([("made/own", new.onset, new.pitch)], 2).write(folder / "own.npz")
    said = run("-o", "told.mid", "--originality", "--index", "own.npz")
    assert "originality: longest overlap: at least" in said and "with made/own" in said
    said = run("-o", "short.mid", "--max-overlap", "30", "--index", "own.npz", "--originality")
    assert "notes of made/own at note" in said
    after = CliRunner().invoke(main, ["originality", "short.mid", "--index", "own.npz"]).output
    longest = 0 if "no overlap" in after else int(after.split("at least ")[1].split()[0])
    assert longest <= 30
    replayed("short.mid")


def test_what_an_index_cannot_promise_is_said(folder: Path) -> None:
    build([("made/2", piece(2, 300).onset, piece(2, 300).pitch)], 20).write(folder / "coarse.npz")
    assert "always sees overlaps of 51 notes" in run("--max-overlap", "30", "--index", "coarse.npz")
    assert "always sees" not in run("--max-overlap", "51", "--index", "coarse.npz")


def test_best_of_with_an_index_counts_quotes(folder: Path) -> None:
    build([("made/2", piece(2, 300).onset, piece(2, 300).pitch)], 8).write(folder / "i.npz")
    assert "longest overlap 0 notes" in run("--best-of", "2", "--index", "i.npz")
