"""Trials and the report: prompts are held-out openings, real beats made against real, and everything is written."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from made_corpus import piece
from pulse88 import report, trials
from pulse88.batches import TokenCorpus
from pulse88.cli import main
from pulse88.config import TINY
from pulse88.continuation import Continuer
from pulse88.engine.weights import Weights, metadata_of, random_tensors, save
from pulse88.intervals import Interval
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import FINE

CONFIG = replace(TINY, max_positions=640)


def a_corpus(notes: tuple[int, ...] = (500, 450, 150, 600)) -> TokenCorpus:
    tokens = [Tokenizer(FINE).encode(piece(seed, count)).ids for seed, count in enumerate(notes)]
    names = tuple(f"made/{seed}" for seed in range(len(notes)))
    return TokenCorpus(np.concatenate(tokens), np.array(list(map(len, tokens))), names)


@pytest.fixture(scope="module")
def continuer() -> Continuer:
    return Continuer(Weights(CONFIG, random_tensors(CONFIG, 1), FINE), "auto")


def test_prompts_are_openings_and_the_passages_after_them() -> None:
    corpus = a_corpus()
    found = trials.prompts(corpus, FINE, 10, notes=100)
    assert [prompt.name for prompt in found] == ["made/0", "made/1", "made/3"]  # the third is too short
    whole = Tokenizer(FINE).decode(corpus.tokens[: corpus.lengths[0]])
    first = found[0]
    assert (len(first.seed), len(first.truth), len(first.after)) == (128, 100, 100)
    assert first.seed.pitch.tolist() == whole.pitch[:128].tolist()
    assert first.truth.pitch.tolist() == whole.pitch[128:228].tolist()
    assert first.after.velocity.tolist() == whole.velocity[228:328].tolist()
    assert np.allclose(np.diff(first.truth.onset), np.diff(whole.onset[128:228]))
    longest = trials.prompts(corpus, FINE, 10, notes=1000)
    assert [len(prompt.truth) for prompt in longest] == [(int(n) - 1) // 4 // 2 - 64 for n in corpus.lengths[[0, 1, 3]]]
    assert [prompt.name for prompt in trials.prompts(corpus, FINE, 1)] == ["made/0"]
    with pytest.raises(ValueError, match="no piece has 256 notes"):
        trials.prompts(a_corpus((150,)), FINE, 3)


def test_a_copy_is_alike_and_real_music_beats_a_model_that_has_not_learnt(continuer: Continuer) -> None:
    made = list(trials.run(continuer, trials.prompts(a_corpus(), FINE, 3, notes=100), 2, random_seed=1))
    assert [len(trial.takes) for trial in made] == [2, 2, 2]
    assert all(len(take.new) == 100 for trial in made for take in trial.takes)
    model, later, truth, other = trials.rows(made)
    assert truth.areas["mean"].value == pytest.approx(1.0)
    assert truth.divergences["mean"].value == pytest.approx(0.0, abs=1e-9)
    assert later.areas["mean"].value > model.areas["mean"].high
    assert later.divergences["mean"].value < model.divergences["mean"].value
    assert later.areas["pitch class"].value > other.areas["pitch class"].value - 0.2
    short = trials.shortfall(model, later)
    assert short.value == pytest.approx(later.areas["mean"].value - model.areas["mean"].value)
    assert 0 < short.low < short.high
    assert trials.shortfall(truth, truth) == (0.0, 0.0, 0.0)
    for row in (model, later, other):
        assert 0 <= row.areas["mean"].low <= row.areas["mean"].high <= 1


def test_the_same_trials_come_again(continuer: Continuer) -> None:
    asked = trials.prompts(a_corpus(), FINE, 2, notes=64)
    first, second = (
        [take.ids.tolist() for trial in trials.run(continuer, asked, 1, random_seed=3) for take in trial.takes]
        for _ in range(2)
    )
    assert first == second


def test_takes_that_are_made_together_are_those_that_are_made_alone(continuer: Continuer) -> None:
    asked = trials.prompts(a_corpus(), FINE, 3, notes=64)
    together = [take.ids.tolist() for trial in trials.run(continuer, asked, 2, random_seed=3) for take in trial.takes]
    alone = [
        take.ids.tolist()
        for prompt in asked
        for take in continuer.continue_(prompt.seed, notes=len(prompt.truth), takes=2, random_seed=3)
    ]
    assert together == alone


def test_drift_is_told_where_there_is_music(continuer: Continuer) -> None:
    corpus = a_corpus((600, 320))
    found = trials.drift(continuer, trials.prompts(corpus, FINE, 2), corpus, at=(1, 2), random_seed=1)
    assert [(row["who"], row["contexts"], row["pieces"]) for row in found] == [
        ("composer", 1, 2),
        ("composer", 2, 1),
        ("model", 1, 2),
        ("model", 2, 2),
    ]
    assert all(set(row["figures"]) == set(trials.FIGURES) for row in found)


def test_what_json_cannot_say_is_null() -> None:
    plain = report._plain({"a": [Interval(1.0, math.nan, 2.0)], "b": math.inf, "c": ("x", 3)})
    assert plain == {"a": [{"value": 1.0, "low": None, "high": 2.0}], "b": None, "c": ["x", 3]}
    json.dumps(plain, allow_nan=False)


def test_tables_are_markdown() -> None:
    assert report.table(["", "a"], [["x", "1"]]) == ["|  | a |", "|---|---:|", "| x | 1 |"]
    assert report.share_within([0.4, 0.5, 1.0, 2.0, 2.1]) == pytest.approx(0.6)


def test_one_command_writes_the_whole_report(tmp_path: Path) -> None:
    corpus = a_corpus((300, 280, 270, 260, 300, 290))
    rows = [
        {
            "name": name,
            "split": "train" if at < 3 else "validation",
            "shard": "s.npz",
            "offset": int(o),
            "length": int(n),
        }
        for at, (name, o, n) in enumerate(zip(corpus.names, corpus.starts, corpus.lengths, strict=True))
    ]
    np.savez(tmp_path / "s.npz", tokens=corpus.tokens)
    (tmp_path / "manifest.json").write_text(json.dumps({"time_grid": json.loads(FINE.to_json()), "pieces": rows}))
    save(tmp_path / "w.safetensors", random_tensors(CONFIG, 0), metadata_of(CONFIG, FINE))
    out = tmp_path / "report"
    asked = ["evaluate", "--data", str(tmp_path), "--weights", str(tmp_path / "w.safetensors"), "-o", str(out)]
    told = CliRunner().invoke(
        main, [*asked, "--engine", "numpy", "--prompts", "2", "--takes", "1", "--long", "0", "--fmd"]
    )
    assert told.exit_code == 0, told.output
    found = json.loads((out / "report.json").read_text())
    assert re.fullmatch(r"[0-9.]+( \(commit [0-9a-f]{12}(, changed since)?\))?", found["about"]["version"])
    assert (found["about"]["pieces"], found["about"]["of_pieces"]) == (3, 3)
    bits = found["likelihood"]["bits_per_note"]
    assert bits["low"] <= bits["value"] <= bits["high"]
    assert f"{bits['value']:8.3f} bits a note" in told.output
    assert sum(slot["value"] for slot in found["likelihood"]["by_slot"].values()) == pytest.approx(bits["value"])
    names = [row["name"] for row in found["likelihood"]["baselines"]]
    assert names == ["uniform", "unigram", *(f"context model, order {n}" for n in (1, 2, 3, 4)), "xz", "gzip"]
    assert found["likelihood"]["baselines"][0]["bits_per_note"]["value"] == pytest.approx(20.5, abs=0.1)
    assert found["continuations"]["rows"][0]["who"] == "model"
    assert found["continuations"]["shortfall"]["value"] > 0
    text = (out / "report.md").read_text()
    assert "## Likelihood" in text and "## Continuations" in text and "| **these weights** |" in text
    assert "frechet-music-distance is not installed" in text or "Frechet Music Distance (CLaMP 2)" in text
    for picture in ("likelihood.png", "overlap.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG") and f"({picture})" in text
    assert len(list((out / "continuations" / "model").glob("*.mid"))) == 2
    assert sorted(p.name for p in (out / "continuations" / "real").glob("*.mid")) == ["001-3.mid", "002-5.mid"]
    assert not [path for path in out.rglob("*") if "partial" in path.name]


def test_a_report_of_drift_alone_has_its_table_and_its_curve(tmp_path: Path) -> None:
    figures = {name: Interval(0.5, math.nan, math.nan) for name in trials.FIGURES}
    rows = [
        {"who": who, "contexts": n, "pieces": 3, "figures": figures} for who in ("composer", "model") for n in (1, 8)
    ]
    about: dict[str, Any] = {
        "weights": "w",
        "weights_sha256": "0" * 64,
        "engine": "numpy",
        "version": "0",
        "command": "pulse88",
    }
    report.write(tmp_path, {"about": about, "drift": rows, "remarks": ["Said in the end."]})
    text = (tmp_path / "report.md").read_text()
    assert "## Drift" in text and "| model | 8 | 3 | 0.50 |" in text
    assert text.index("Said in the end.") < text.index("![drift](drift.png)")
    assert "## Likelihood" not in text and not (tmp_path / "likelihood.png").exists()
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
