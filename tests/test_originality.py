"""What of some music is in the training data: findings, their place among held-out excerpts, and the two commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from made_corpus import joined, piece
from pulse88 import midi_file, originality
from pulse88.cli import main
from pulse88.config import SamplingConfig
from pulse88.notes import Performance
from pulse88.overlap_index import OverlapIndex, OverlapIndexError
from pulse88.provenance import Provenance
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import FINE

NOTES = 700


def make_data(folder: Path, held_out: int = 2) -> Path:
    """Eight training pieces, and held-out ones of which the last quotes 200 notes of the first training piece."""
    pieces = {("train", f"made/{seed}"): piece(seed, NOTES) for seed in range(8)}
    pieces |= {("validation", f"made/held-out {seed}"): piece(100 + seed, 512) for seed in range(held_out)}
    if held_out:
        quoting = joined(piece(0, NOTES).take(slice(100, 300)).shifted(-piece(0, NOTES).onset[100]), piece(200, 300))
        pieces["validation", "made/quoting"] = quoting
    rows, tokens = [], []
    for (split, name), performance in pieces.items():
        tokens.append(Tokenizer(FINE).encode(performance).ids)
        place = {"shard": "shard.npz", "offset": sum(map(len, tokens[:-1])), "length": len(tokens[-1])}
        rows.append({"name": name, "split": split, **place})
    folder.mkdir(exist_ok=True)
    np.savez(folder / "shard.npz", tokens=np.concatenate(tokens))
    (folder / "manifest.json").write_text(json.dumps({"time_grid": json.loads(FINE.to_json()), "pieces": rows}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("originality") / "data")


@pytest.fixture(scope="module")
def index(data: Path) -> OverlapIndex:
    return originality.make_index(data, split="train", held_out="validation", every=16)


def a_copy() -> Performance:
    """300 notes of its own, then 150 of made/5, a fourth higher and somewhat faster."""
    source = piece(5, NOTES).take(slice(200, 350)).shifted(-piece(5, NOTES).onset[200]).transposed(5)
    faster = replace(source, onset=source.onset / 1.2, duration=source.duration / 1.2)
    return joined(piece(300, 300), faster)


def test_a_copy_is_told_with_its_piece_place_and_time(index: OverlapIndex, data: Path) -> None:
    performance = a_copy()
    found = originality.inspect(performance, index)
    assert found.piece == "made/5" and found.match is None
    assert 100 <= found.notes <= 150
    assert found.first >= 298 and found.last < 450
    assert found.begins == performance.onset[found.first]
    exactly = originality.inspect(performance, index, data)
    assert exactly.match is not None and exactly.match.semitones == 5
    assert found.notes <= exactly.notes <= 152
    assert exactly.match.tempo == pytest.approx(1.2, rel=0.05)
    assert "with made/5" in exactly.lines(index)[0] and "+5 semitones" in exactly.lines(index)[1]


def test_own_music_has_no_overlap_and_says_what_would_have_been_found(index: OverlapIndex) -> None:
    found = originality.inspect(piece(400, 500), index)
    assert found.notes == 0
    assert found.lines(index) == ["no overlap with 8 pieces: an overlap of 43 notes or more would have been found"]


def test_held_out_excerpts_say_what_is_usual(index: OverlapIndex) -> None:
    held_out = index.about["held_out"]
    assert (held_out["pieces"], held_out["excerpts"], held_out["notes"]) == (3, 3, 512)
    assert originality.as_much_held_out(index, 0) == 1.0
    assert originality.as_much_held_out(index, 100) == pytest.approx(1 / 3)  # the one that quotes
    assert originality.as_much_held_out(index, 300) == 0.0
    assert originality.inspect(a_copy(), index).as_much == pytest.approx(1 / 3)


def test_without_held_out_pieces_nothing_is_said_of_them(tmp_path: Path) -> None:
    bare = originality.make_index(make_data(tmp_path / "bare", 0), split="train", held_out="validation", every=16)
    found = originality.inspect(a_copy(), bare)
    assert found.as_much is None
    assert len(found.lines(bare)) == 1


def test_other_data_than_the_index_s_are_refused(index: OverlapIndex, tmp_path: Path) -> None:
    other = replace(index, about={**index.about, "corpus": "0" * 16})
    with pytest.raises(OverlapIndexError, match="is not what the index was made of"):
        originality.inspect(a_copy(), other, make_data(tmp_path / "data"))


def test_the_commands_make_an_index_and_ask_it(data: Path, tmp_path: Path) -> None:
    out, midi = tmp_path / "index.npz", tmp_path / "copy.mid"
    told = CliRunner().invoke(main, ["index", str(data), "-o", str(out), "--every", "16"])
    assert told.exit_code == 0, told.output
    assert "8 pieces" in told.output and "3 excerpts of validation, 33.3% share 20 notes" in told.output
    midi_file.write(a_copy(), midi)
    told = CliRunner().invoke(main, ["originality", str(midi), "--index", str(out), "--data", str(data)])
    assert told.exit_code == 0, told.output
    assert "longest overlap: 148 notes" in told.output and "with made/5" in told.output
    assert "33.3% of 3 excerpts of 512 notes of held-out pieces overlap as much" in told.output


def test_only_the_new_part_of_a_continuation_counts(data: Path, index: OverlapIndex, tmp_path: Path) -> None:
    index.write(tmp_path / "index.npz")
    seed, new = piece(6, NOTES), piece(500, 300)
    whole = joined(seed, new)
    whole = replace(whole, part=(np.arange(len(whole)) >= NOTES).astype(np.uint8))
    made_by = Provenance(
        version="0",
        weights_sha256="0",
        engine="numpy",
        sampling=SamplingConfig(),
        random_seed=0,
        take=0,
        until_end=False,
        only_new=False,
        keep=1,
        boundary=float(seed.onset[-1]),
        new_part=1,
        new_notes=300,
        seed_ids=(0,),
    )
    midi_file.write(whole, tmp_path / "made.mid", texts=[made_by.to_text()], part_names=["Seed", "Pulse88"])
    asked = ["originality", str(tmp_path / "made.mid"), "--index", str(tmp_path / "index.npz")]
    told = CliRunner().invoke(main, asked)
    assert told.exit_code == 0, told.output
    assert "no overlap with 8 pieces" in told.output
    assert "with made/6" in CliRunner().invoke(main, [*asked, "--whole"]).output


def test_a_missing_index_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(originality, "INDEX_NAME", "none.npz")
    midi_file.write(piece(1, 50), tmp_path / "a.mid")
    told = CliRunner().invoke(main, ["originality", str(tmp_path / "a.mid")])
    assert told.exit_code == 1
    assert "pulse88 index DATA -o INDEX.npz" in told.output
