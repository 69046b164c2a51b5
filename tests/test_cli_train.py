"""`pulse88 train` and `pulse88 export`: settings, errors, a run from data to a weights file that plays."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from made_data import make_data
from pulse88 import Continuer, cli_train
from pulse88.cli import main
from pulse88.config import TINY, TRAIN_PRESETS, TrainConfig
from pulse88.engine import weights as weights_file
from pulse88.notes import Note, Performance
from pulse88.vocabulary import FINE

NEEDS_TORCH = "torch is not installed: pip install 'pulse88[train]'"
SMALL = ("--set", "window=32", "--set", "steps=4", "--set", "validate_every=4", "--set", "checkpoint_every=2")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def good(*arguments: str | Path) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def bad(*arguments: str | Path, code: int = 1) -> str:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)  # no other exception came out
    return " ".join(result.stderr.split())


def train(data: Path, run_folder: Path, *more: str) -> tuple[str | Path, ...]:
    return ("train", "--config", "tiny", "--data", data, "--out", run_folder, *SMALL, *more)


# ---------------------------------------------------------------- settings


def test_help_tells_every_setting_with_its_sentence() -> None:
    told = " ".join(good("train", "--help").output.split())
    for field in fields(TrainConfig):
        assert f"{field.name}={cli_train.shown(field.default)}" in told
    for name in ("steps", "checkpoint_minutes", "gradient_checkpointing"):
        (sentence,) = (field.metadata["help"] for field in fields(TrainConfig) if field.name == name)
        assert sentence in told.replace("- ", "-")
    for preset in TRAIN_PRESETS:
        assert preset in told


def test_a_row_of_a_suite_is_trained_by_the_recipe_that_was_asked_for(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason=NEEDS_TORCH)
    good(*train(data, tmp_path / "run", "--shape", "tiny/learned-alone", "--set", "seed=7"))
    good("export", tmp_path / "run", "-o", tmp_path / "w.safetensors", "--fp32")
    made = weights_file.read(tmp_path / "w.safetensors")
    assert (made.config.rope, made.config.d_model) == (False, TINY.d_model)
    assert json.loads(made.metadata["train_config"])["seed"] == 7
    told = bad(*train(data, tmp_path / "other", "--shape", "tiny/learned"), code=2)
    assert "--shape: tiny has no row 'learned'; there are base, learned-alone" in told
    assert "neither a suite" in bad(*train(data, tmp_path / "other", "--shape", "base"), code=2)


def test_settings_reach_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = pytest.importorskip("pulse88.train", reason=NEEDS_TORCH)
    asked: dict[str, Any] = {}

    def note(config: TrainConfig, data: Path, out: Path, **named: Any) -> Any:
        asked.update(named, config=config, data=data, out=out)
        return training.Outcome(training.Progress(54_000, 1), "finished", True)

    monkeypatch.setattr(training, "train", note)
    changes = {"decay_all": "false", "steps": "7", "learning_rate": "3e-4", "precision": "bf16", "dropout": "0"}
    options = [x for key, value in changes.items() for x in ("--set", f"{key}={value}")]
    good("train", "--config", "published", "--data", "d", "--out", "r", "--kernel", "chunked", "--compile", *options)
    expected = {"decay_all": False, "steps": 7, "learning_rate": 3e-4, "precision": "bf16", "dropout": 0.0}
    assert asked.pop("config") == replace(TRAIN_PRESETS["published"], **expected)
    rest = {"data": Path("d"), "out": Path("r"), "kernel": "chunked", "compiled": True}
    assert asked == {**rest, "resume": False, "initial": None, "sitting_minutes": None}
    good(
        "train",
        "--config",
        "release",
        "--data",
        "d",
        "--out",
        "r",
        "--resume",
        "--init",
        "w",
        "--sitting-minutes",
        "2.5",
    )
    assert asked["config"] == TRAIN_PRESETS["release"]
    assert (asked["resume"], asked["sitting_minutes"], asked["kernel"]) == (True, 2.5, None)
    assert asked["initial"] == Path("w")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("step=3", r"no setting 'step'; there are model, .*\bsteps\b"),
        ("steps", "'steps' is not KEY=VALUE"),
        ("steps=many", "steps: 'many' is not a whole number. Optimizer steps of the whole run."),
        ("learning_rate=big", "learning_rate: 'big' is not a number. Peak learning rate of AdamW."),
        ("decay_all=1", "decay_all: '1' is not true or false. Decay every parameter"),
        ("steps=0", "steps must be positive, not 0"),
        ("learning_rate=nan", "learning_rate must be positive, not nan"),
        ("model=huge", "model must be one of"),
        ("window=9999", "the window is longer than the model's positions"),
    ],
)
def test_bad_settings_are_one_sentence(change: str, words: str) -> None:
    assert re.search(words, bad("train", "--config", "tiny", "--data", "d", "--out", "r", "--set", change, code=2))


def test_without_torch_help_works_and_training_names_the_line_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for command in ("train", "export"):
        assert "Usage:" in good(command, "--help").output
    for arguments in (("train", "--config", "tiny", "--data", "d", "--out", "r"), ("export", "r", "-o", "w")):
        assert "pip install 'pulse88[train]'" in bad(*arguments)


def test_help_loads_no_torch() -> None:
    code = "import sys; from pulse88.cli import main; main(['train', '--help'], standalone_mode=False); "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# ---------------------------------------------------------------- a run


@pytest.fixture
def trained(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in two sittings, of 2 and 2 steps."""
    torch = pytest.importorskip("torch", reason=NEEDS_TORCH)
    from pulse88 import training_log
    from pulse88.sitting import Sitting

    torch.set_num_threads(1)
    monkeypatch.setattr(training_log, "has_tensorboard", lambda: False)
    over = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(Sitting, "over", property(lambda self: next(over)))
        first = good(*train(data, tmp_path / "run", "--sitting-minutes", "60"))
    assert "The sitting is over: saved at step 2 of 4; the same command with --resume goes on." in first.stderr
    assert not first.stdout
    return tmp_path / "run"


def test_from_data_to_weights_that_play(trained: Path, data: Path, tmp_path: Path) -> None:
    assert "holds checkpoints already" in bad(*train(data, trained))
    second = good(*train(data, trained, "--resume"))
    assert second.stdout == f"Trained to step 4: `pulse88 export {trained} -o FILE` makes a weights file of it.\n"
    assert "step 4 of 4: loss " in second.stderr
    assert "validation at step 4: " in second.stderr
    assert (trained / "loss.png").exists()

    exact, small = tmp_path / "exact.safetensors", tmp_path / "small.safetensors"
    good("export", trained, "-o", exact, "--fp32", "--note", "licence=CC0", "--note", "name=mine=ours")
    told = good("export", trained, "-o", small).stdout
    weights, quantised = weights_file.read(exact), weights_file.read(small)
    assert weights.config == replace(TINY, embedding_init_std=0.5)
    assert weights.grid == FINE
    assert (weights.quantised, quantised.quantised) == (False, True)
    state = json.loads((trained / "checkpoints" / "step-00000004" / "state.json").read_text())
    metadata = weights.metadata
    assert json.loads(metadata["train_config"]) == state["config"]
    assert (metadata["trained_steps"], metadata["trained_tokens"]) == ("4", str(state["tokens"]))
    assert told == f"Wrote {small}: step 4, {state['tokens']:,} tokens.\n"
    assert (metadata["licence"], metadata["name"]) == ("CC0", "mine=ours")
    of_run = weights_file.read(trained / "checkpoints" / "step-00000004" / "weights.safetensors")
    assert all(np.array_equal(weights.tensors[name], of_run.tensors[name]) for name in of_run.tensors)
    expected = weights_file.quantise(of_run.tensors)
    assert all(np.array_equal(quantised.tensors[name], expected[name]) for name in expected)

    seed = Performance.from_notes([Note(0.0, 0.5, 60, 64), Note(0.5, 0.5, 64, 64)])
    (made,) = Continuer(small).continue_(seed, notes=6, seed_notes=2, random_seed=0)
    assert len(made.new) == 6


def test_exporting_nothing_and_lies(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no checkpoint in it; `pulse88 train --out" in bad("export", tmp_path / "empty", "-o", tmp_path / "w")
    for note, words in (("model_config={}", "model_config is what the file says"), ("a", "'a' is not KEY=VALUE")):
        assert words in bad("export", trained, "-o", tmp_path / "w", "--note", note, code=2)
    assert not (tmp_path / "w").exists()


def test_errors_of_a_run_are_one_sentence(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pulse88.train import NonFinite, Trainer

    assert "make the data again with `pulse88 prepare`" in bad(*train(tmp_path / "none", tmp_path / "r"))
    assert "made with another recipe (seed: 0 there, 5 here)" in bad(
        *train(data, trained, "--resume", "--set", "seed=5")
    )
    assert "the kernel `fla`" in bad(*train(data, tmp_path / "r", "--kernel", "fla"))
    monkeypatch.setattr(Trainer, "step", lambda self, step: (_ for _ in ()).throw(NonFinite("step 0: loss nan")))
    assert "step 0: loss nan" in bad(*train(data, tmp_path / "r"))


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_is_told_and_is_the_exit_status(name: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    training = pytest.importorskip("pulse88.train", reason=NEEDS_TORCH)
    for leads in (True, False):
        outcome = training.Outcome(training.Progress(7, 1), name, leads)
        monkeypatch.setattr(training, "train", lambda *a, outcome=outcome, **k: outcome)
        told = bad("train", "--config", "tiny", "--data", "d", "--out", "r", code=status)
        sentence = f"Stopped by {name}: saved at step 7 of 20; the same command with --resume goes on."
        assert told == (sentence if leads else "")


def test_torchrun_shares_a_run(data: Path, tmp_path: Path) -> None:
    """The documented command line, as processes of their own; one of them speaks."""
    pytest.importorskip("torch", reason=NEEDS_TORCH)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pulse88"]
    arguments = [str(a) for a in train(data, tmp_path / "run", "--set", "steps=1", "--set", "batch_windows=2")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Trained to step 1") == 1
    start = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert (start["world"], start["config"]["batch_windows"]) == (2, 2)
