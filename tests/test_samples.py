"""What a model in training plays: the same beginnings at every validation, from one random seed, with figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prepared import prepared
from pulse88 import midi_file, musicality, samples, shards
from pulse88.config import TINY
from pulse88.engine.weights import random_tensors
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import FINE


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("prepared"))


def play(data: Path, folder: Path, weights_seed: int = 1, count: int = 2) -> list[dict[str, object]]:
    held_out = shards.read_split(data, "validation")
    tensors = random_tensors(TINY, weights_seed)
    return samples.play(tensors, TINY, FINE, held_out, folder, count=count, random_seed=5)


def test_beginnings_are_those_of_held_out_pieces_and_the_rest_is_new(data: Path, tmp_path: Path) -> None:
    told = play(data, tmp_path)
    held_out = shards.read_split(data, "validation")
    assert [row["piece"] for row in told] == [held_out.names[0], held_out.names[2]]
    for row in told:
        heard = midi_file.read(tmp_path / str(row["file"])).performance
        index = held_out.names.index(str(row["piece"]))
        start = int(held_out.starts[index])
        first = Tokenizer(FINE).decode(held_out.tokens[start : start + 1 + 4 * 32])  # half of TINY's context
        old, new = heard.take(heard.part == 0), heard.take(heard.part == 1)
        assert old.pitch.tolist() == first.pitch.tolist()
        assert len(new) == 96
        assert row["range"] == musicality.pitch_range(new)
        assert row["density"] == pytest.approx(musicality.density(new), rel=0.01)
        assert row["repetition"] == musicality.longest_loop(new).repeats


def test_the_same_weights_play_the_same_and_others_otherwise(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        play(data, tmp_path / name, seed)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["1-made_00.mid", "2-made_02.mid"]
    for file in files:
        first, again, other = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert first == again != other


def test_more_samples_than_pieces_are_all_pieces() -> None:
    assert samples.spread(3, 10) == [0, 1, 2]
    assert samples.spread(342, 3) == [0, 170, 341]
    assert samples.spread(3, 0) == []


def test_a_run_plays_at_every_validation_and_goes_on_where_it_cannot(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'pulse88[train]'")
    from dataclasses import replace

    from pulse88 import training_log
    from pulse88.config import TINY_RECIPE
    from pulse88.train import train

    monkeypatch.setattr(training_log, "has_tensorboard", lambda: False)
    monkeypatch.setattr(training_log, "draw_curve", lambda run: None)
    recipe = replace(TINY_RECIPE, window=64, steps=2, batch_windows=2, validate_every=1, samples=1)
    train(recipe, data, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    told = [row for row in rows if row.get("event") == "samples"]
    assert [row["step"] for row in told] == [1, 2]
    written = [tmp_path / "run" / "samples" / f"step-{row['step']:08d}" / row["files"][0]["file"] for row in told]
    beginnings = [midi_file.read(path).performance.take(slice(0, 30)) for path in written]
    assert beginnings[0] == beginnings[1]

    def full_disk(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(samples, "play", full_disk)
    assert train(recipe, data, tmp_path / "full").ended_by == "finished"
    assert "no samples at step 1: [Errno 28] No space left" in caplog.text
    assert train(replace(recipe, samples=0), data, tmp_path / "none").ended_by == "finished"
    assert not (tmp_path / "none" / "samples").exists()
