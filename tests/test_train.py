"""Training on a CPU: it learns, and whatever stops it, it goes on bit for bit."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pulse88[train]'")

from made_data import make_data  # noqa: E402
from pulse88 import checkpoint, training_log  # noqa: E402
from pulse88 import train as training  # noqa: E402
from pulse88.batches import Ahead, Batches  # noqa: E402
from pulse88.checkpoint import CheckpointError  # noqa: E402
from pulse88.config import TINY_RECIPE, TrainConfig  # noqa: E402
from pulse88.engine import weights as weights_file  # noqa: E402
from pulse88.sitting import Sitting  # noqa: E402
from pulse88.train import NonFinite, Outcome, Ranks, Trainer, train  # noqa: E402
from pulse88.vocabulary import BLOCKS, EOS, PUBLISHED  # noqa: E402

# All that a run has, as small as it goes: several micro-batches a process, dropout, a validation and a checkpoint.
CONFIG = replace(
    TINY_RECIPE,
    dropout=0.2,
    window=32,
    batch_windows=8,
    micro_windows=2,
    steps=6,
    warmup_steps=2,
    validate_every=3,
    checkpoint_every=100,
    samples=0,
)
AVERAGED = replace(CONFIG, average_decay=0.3)  # reached after the fifth step, so both ends of its rule count


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensorboard and the curve have tests of their own, and take as long as a run takes."""
    monkeypatch.setattr(training_log, "has_tensorboard", lambda: False)
    monkeypatch.setattr(training_log, "draw_curve", lambda run: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of CONFIG in one go."""
    run = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_log, "has_tensorboard", lambda: False)
        assert train(CONFIG, data, run) == Outcome(checkpoint.Progress(6, tokens_of(run)), "finished", True)
    return run


@pytest.fixture(scope="module")
def averaged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of AVERAGED in one go."""
    run = tmp_path_factory.mktemp("averaged") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_log, "has_tensorboard", lambda: False)
        patch.setattr(training_log, "draw_curve", lambda run: None)
        train(AVERAGED, data, run)
    return run


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def tokens_of(run: Path) -> int:
    return int(lines(run)[-1]["tokens"])


def exact(run: Path) -> list[str]:
    """The lines of steps in training_log.txt."""
    return [line for line in (run / "training_log.txt").read_text().splitlines() if not line.startswith("#")]


def files(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_end(run: Path, other: Path) -> bool:
    """Weights, moments, exact losses and what validation found, bit for bit."""
    a, b = files(run, 6), files(other, 6)
    averaged = {"raw.safetensors"} if json.loads(a["state.json"])["config"]["average_decay"] else set()
    assert set(a) == {"weights.safetensors", "optimizer.safetensors", "state.json"} | averaged
    found = [
        [line["bits_per_note"] for line in lines(folder) if line.get("event") == "validation" and line["step"] == 6]
        for folder in (run, other)
    ]
    assert len(found[0]) == 1
    return a == b and exact(run) == exact(other) and found[0] == found[1]


def at_step(step: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Acts when a step takes its batch, in the middle of training."""
    take = Ahead.batch

    def batch(self: Ahead, number: int) -> Any:
        if number == step:
            act()
        return take(self, number)

    monkeypatch.setattr(Ahead, "batch", batch)


# ---------------------------------------------------------------- learning


def test_the_loss_falls(data: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=40, dropout=0.0, micro_windows=8, validate_every=40)
    train(replace(config, learning_rate=3e-2, muon_learning_rate=5e-2), data, tmp_path / "run")
    losses = [float(line.split()[5]) for line in exact(tmp_path / "run")]
    assert len(losses) == 40
    assert losses[0] > 4  # near log 171 = 5.1
    assert np.mean(losses[-5:]) < 3.0  # who knows nothing but the slots stays at 3.55, the mean log of their sizes


def test_what_a_run_writes_down(straight: Path) -> None:
    start, step, end = lines(straight)[0], lines(straight)[2], lines(straight)[-1]
    assert start["event"] == "start"
    assert start["config"] == json.loads(json.dumps(asdict(CONFIG)))
    assert [line.get("event", "step") for line in lines(straight)] == [
        "start",
        "validation",
        "step",
        "validation",
        "end",
    ]
    assert step["step"] == 6
    assert step["rate"] == CONFIG.learning_rate_at(5)
    assert step["tokens_per_second"] > 0
    assert step["seconds_left"] == 0
    assert set(step["slots"]) >= {"delta", "pitch", "duration", "velocity"}
    assert end["ended_by"] == "finished"
    validation = lines(straight)[3]
    assert validation["bits_per_note"] == pytest.approx(sum(validation["slots"].values()))
    # The exact loss of every step: repr, so that float gives the very number back.
    assert [line.split()[:2] for line in exact(straight)] == [["step", str(n)] for n in range(1, 7)]
    assert float(exact(straight)[-1].split()[5]) == step["loss"]
    assert (straight / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not list(straight.rglob("*.part"))


def test_losses_of_slots_add_up_to_the_loss(data: Path) -> None:
    config = replace(CONFIG, steps=1, dropout=0.0)
    trainer = make_trainer(config, data)
    ids = trainer.batches.batch(0)
    figures = trainer.step(0)
    assert figures.slots is not None
    targets = ids[:, 1:]
    counts = {s: int(((targets >= b.start) & (targets < b.stop)).sum()) for s, b in BLOCKS.items()}
    weights = [*counts.values(), int((targets == EOS).sum())]
    assert sum(weights) == figures.tokens
    assert np.dot(weights, list(figures.slots.values())) / figures.tokens == pytest.approx(figures.loss, rel=1e-6)


def make_trainer(config: TrainConfig, data: Path) -> Trainer:
    corpus = training.shards.read_split(data, "train")
    trainer = Trainer(config, corpus, Ranks(0, 1, torch.device("cpu")))
    trainer.start(compiled=False)
    return trainer


def test_micro_batches_are_one_batch(data: Path) -> None:
    """Divided once by the whole batch's count: its windows differ in length, so a mean of means would differ."""
    ends = []
    for micro in (8, 2, 3):
        trainer = make_trainer(replace(CONFIG, dropout=0.0, micro_windows=micro), data)
        figures = [trainer.step(step) for step in range(2)]
        assert len({(row != 168).sum() for row in trainer.batches.batch(0)}) > 1
        ends.append((figures[1].loss, figures[1].norm, figures[1].tokens))
    assert ends[1] == pytest.approx(ends[0], rel=1e-5)
    assert ends[2] == pytest.approx(ends[0], rel=1e-5)


def test_gradient_checkpointing_trains_the_same(straight: Path, data: Path, tmp_path: Path) -> None:
    train(replace(CONFIG, gradient_checkpointing=True), data, tmp_path / "run")
    assert exact(tmp_path / "run") == exact(straight)
    assert files(tmp_path / "run", 6)["weights.safetensors"] == files(straight, 6)["weights.safetensors"]


def test_the_context_alone_is_no_batch(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no piece is longer than the 200 tokens of context"):
        train(replace(CONFIG, window=220, context_tokens=200), data, tmp_path / "run")


def test_a_run_without_ends_neither_trains_nor_validates_on_them(data: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, ends=False, steps=1, validate_every=1)
    train(config, data, tmp_path / "run")
    step, validation = lines(tmp_path / "run")[1:3]
    assert set(step["slots"]) == {"delta", "pitch", "duration", "velocity"}
    assert validation["slots"]["ends"] == 0
    weights = weights_file.read(tmp_path / "run" / "checkpoints" / "step-00000001" / "weights.safetensors")
    held_out = training.shards.read_split(data, "validation")
    found = [training.likelihood(checkpoint.load_model(weights), held_out, window=32, ends=e) for e in (False, True)]
    assert validation["bits_per_note"] == pytest.approx(found[0].bits_per_note, rel=1e-6)
    assert found[1].by_slot()["ends"] > 0.1


# ---------------------------------------------------------------- the average of the weights


def test_the_average_by_hand(data: Path) -> None:
    trainer = make_trainer(AVERAGED, data)
    expected: dict[str, Any] = {}
    for step in range(6):
        trainer.step(step)
        decay = min(0.3, step / (step + 9))
        weights = {name: p.detach().double().clone() for name, p in trainer.model.named_parameters()}
        expected = {name: decay * expected.get(name, 0) + (1 - decay) * w for name, w in weights.items()}
    assert trainer.average is not None
    assert decay == 0.3
    assert trainer.average.tensors.keys() == trainer.model.state_dict().keys()
    for name, tensor in trainer.average.tensors.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(t.double(), weights[name]) for name, t in trainer.average.tensors.items())


def test_the_average_is_what_is_validated_and_saved_and_not_what_trains(
    averaged: Path, straight: Path, data: Path
) -> None:
    assert exact(averaged) == exact(straight)
    assert files(averaged, 6)["raw.safetensors"] == files(straight, 6)["weights.safetensors"]
    found, plain = (lines(run)[-2]["bits_per_note"] for run in (averaged, straight))
    trainer = make_trainer(CONFIG, data)
    folder = averaged / "checkpoints" / "step-00000006"
    held_out = training.shards.read_split(data, "validation")
    for name, bits in (("weights.safetensors", found), ("raw.safetensors", plain)):
        checkpoint.put(weights_file.read(folder / name), trainer.model)
        assert trainer.validate(held_out).bits_per_note == bits
    assert found != plain


def test_samples_are_of_the_average(
    averaged: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[Any] = []

    def play(tensors: dict[str, Any], *arguments: Any, **named: Any) -> list[Any]:
        played.append({name: value.copy() for name, value in tensors.items()})
        return []

    monkeypatch.setattr(training.samples, "play", play)
    train(replace(AVERAGED, samples=1), data, tmp_path / "run")
    weights = weights_file.read(averaged / "checkpoints" / "step-00000006" / "weights.safetensors")
    assert len(played) == 2
    assert all(np.array_equal(value, weights.tensors[name]) for name, value in played[-1].items())


def test_an_average_begins_with_given_weights(straight: Path, data: Path, tmp_path: Path) -> None:
    """Not with the random ones that they take the place of."""
    given = checkpoint.list_checkpoints(straight)[-1] / checkpoint.WEIGHTS_NAME
    still = replace(AVERAGED, steps=2, warmup_steps=0, learning_rate=1e-30, muon_learning_rate=1e-30, weight_decay=0.0)
    train(still, data, tmp_path / "run", initial=given)
    assert files(tmp_path / "run", 2)["weights.safetensors"] == given.read_bytes()


# ---------------------------------------------------------------- stopping and going on


def test_the_end_of_a_sitting_resumes_bit_for_bit(straight: Path, data: Path, tmp_path: Path) -> None:
    """3 + 3 steps are 6, with dropout too."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(2, lambda: patch.setattr(Sitting, "over", True), patch)
        outcome = train(CONFIG, data, run, sitting_minutes=60)
    assert (outcome.progress.step, outcome.ended_by) == (3, "time")
    assert [p.name for p in checkpoint.list_checkpoints(run)] == ["step-00000003"]
    assert train(CONFIG, data, run, resume=True).ended_by == "finished"
    assert same_end(run, straight)
    before = files(run, 6)
    assert train(CONFIG, data, run, resume=True).progress.step == 6  # nothing left to do
    assert files(run, 6) == before


def test_dropout_is_what_resuming_is_about(straight: Path, data: Path, tmp_path: Path) -> None:
    """The comparison above can fail: other masks give other weights."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_seed_dropout", lambda self, number: None)
        train(CONFIG, data, run)
    assert not same_end(run, straight)


def test_an_average_resumes_bit_for_bit(averaged: Path, data: Path, tmp_path: Path) -> None:
    run = half_way(data, tmp_path / "run", AVERAGED)
    assert train(AVERAGED, data, run, resume=True).ended_by == "finished"
    assert same_end(run, averaged)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(
    number: signal.Signals, straight: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before = tmp_path / "run", signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(3, lambda: os.kill(os.getpid(), number), patch)
        outcome = train(CONFIG, data, run)
    assert (outcome.progress.step, outcome.ended_by) == (4, number.name)  # the step under way is finished
    assert lines(run)[-1]["ended_by"] == number.name
    assert signal.getsignal(number) is before
    assert train(CONFIG, data, run, resume=True).progress.step == 6
    assert same_end(run, straight)


def test_a_sitting_in_another_thread_hears_no_signals_and_trains(data: Path, tmp_path: Path) -> None:
    found: list[Outcome] = []
    thread = threading.Thread(target=lambda: found.append(train(replace(CONFIG, steps=1), data, tmp_path / "run")))
    thread.start()
    thread.join()
    assert found[0].ended_by == "finished"


def test_a_sitting_tells_when_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    sitting = Sitting(minutes=2, checkpoint_minutes=0.5)
    told = []
    for now[0] in (100.0, 129.0, 131.0, 221.0):
        told.append((sitting.over, sitting.checkpoint_due))
        if sitting.checkpoint_due:
            sitting.note_checkpoint()
    assert told == [(False, False), (False, False), (False, True), (True, True)]
    endless = Sitting()
    now[0] = 1e9
    assert not endless.over
    assert not endless.checkpoint_due


def test_checkpoints_come_by_minutes_too(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *a: (seen.append(a[3].step), save(*a))[1])
    train(replace(CONFIG, checkpoint_minutes=1e-9), data, tmp_path / "often")
    assert seen == [1, 2, 3, 4, 5, 6]
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path / "often")] == ["step-00000005", "step-00000006"]
    seen.clear()
    train(replace(CONFIG, checkpoint_minutes=0, checkpoint_every=4), data, tmp_path / "seldom")
    assert seen == [4, 6]


def test_a_loss_that_is_no_number_changes_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    trainers: list[Trainer] = []
    start, compute = Trainer.start, training.nats
    monkeypatch.setattr(Trainer, "start", lambda self, compiled: (trainers.append(self), start(self, compiled))[1])
    bad: list[bool] = []
    at_step(4, lambda: bad.append(True), monkeypatch)
    kept: dict[str, Any] = {}

    def nats(*arguments: Any) -> Any:
        if bad and not kept:
            kept.update({name: t.clone() for name, t in trainers[0].model.state_dict().items()})
        return compute(*arguments) * (float("nan") if bad else 1)

    monkeypatch.setattr(training, "nats", nats)
    config = replace(CONFIG, checkpoint_every=3)
    with pytest.raises(NonFinite, match=r"step 4: loss nan.*nothing was changed"):
        train(config, data, run)
    assert all(torch.equal(kept[name], t) for name, t in trainers[0].model.state_dict().items())
    where = json.loads((run / "nonfinite.json").read_text())
    assert (where["step"], where["seed"]) == (4, 0)
    assert "loss nan" in where["problem"]
    batches = Batches(training.shards.read_split(data, "train"), config)
    names = {name: index for index, name in enumerate(batches.corpus.names)}
    for window in where["windows"]:
        assert batches.place(window["number"]) == (names[window["piece"]], window["token"])
    assert [window["number"] for window in where["windows"]] == list(range(32, 40))
    assert [p.name for p in checkpoint.list_checkpoints(run)] == ["step-00000003"]
    assert len(exact(run)) == 4


def test_a_gradient_that_is_no_number_changes_nothing(data: Path) -> None:
    trainer = make_trainer(CONFIG, data)
    trainer.step(0)
    parameter = trainer.model.final_norm.bias
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    with pytest.raises(NonFinite, match=r"step 1: .* gradient norm (inf|nan)"):
        trainer.step(1)
    assert all(torch.equal(before[name], t) for name, t in trainer.model.state_dict().items())


@pytest.mark.parametrize("failing", ["save_file", "fsync", "replace"])
def test_a_full_disk_keeps_the_last_good_checkpoint(
    failing: str, straight: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    config = replace(CONFIG, checkpoint_every=3)
    with monkeypatch.context() as patch:
        place: Any = {"save_file": checkpoint, "fsync": checkpoint.os, "replace": Path}[failing]
        at_step(4, lambda: patch.setattr(place, failing, disk_is_full), patch)
        with pytest.raises(
            CheckpointError, match=r"step-00000006: can't.*No space left.*make room.*step-00000003.*resume"
        ):
            train(replace(config, validate_every=100), data, run)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000003"]  # and nothing half-written
    train(config, data, run, resume=True)
    assert files(run, 6)["weights.safetensors"] == files(straight, 6)["weights.safetensors"]


class Killed(BaseException):
    pass


def test_half_of_a_dropped_checkpoint_is_none(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kill in the middle of dropping one leaves it."""
    run = tmp_path / "run"

    def killed(folder: Path) -> None:
        (folder / checkpoint.STATE_NAME).unlink()
        raise Killed

    config = replace(CONFIG, checkpoint_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            train(config, data, run)
    assert [checkpoint.read_state(folder)["step"] for folder in checkpoint.list_checkpoints(run)] == [4, 6]
    assert len(list((run / "checkpoints").iterdir())) == 3
    train(config, data, run, resume=True)
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-00000004", "step-00000006"]


def test_a_log_whose_last_line_was_cut_goes_on(data: Path, tmp_path: Path) -> None:
    run = half_way(data, tmp_path / "run")
    for name in ("log.jsonl", "training_log.txt"):
        with (run / name).open("a") as file:
            file.write('{"step": 4, "lo')
    train(CONFIG, data, run, resume=True)
    assert [line.get("event") for line in lines(run)].count("start") == 2
    assert "{" not in (run / "training_log.txt").read_text()


def disk_is_full(*arguments: Any, **named: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# ---------------------------------------------------------------- refusing


def half_way(data: Path, run: Path, config: TrainConfig = CONFIG) -> Path:
    """A run with a checkpoint after 3 steps."""
    with pytest.MonkeyPatch.context() as patch:
        at_step(2, lambda: patch.setattr(Sitting, "over", True), patch)
        train(config, data, run)
    return run


def test_a_run_is_not_begun_over_another(data: Path, tmp_path: Path) -> None:
    run = half_way(data, tmp_path / "run")
    with pytest.raises(ValueError, match="holds checkpoints already: resume it, or choose another folder"):
        train(CONFIG, data, run)
    assert [p.name for p in checkpoint.list_checkpoints(run)] == ["step-00000003"]


def test_nothing_to_resume_begins_and_says_so(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(replace(CONFIG, steps=1), data, tmp_path / "run", resume=True)
    assert "nothing to resume" in caplog.text
    assert lines(tmp_path / "run")[0]["remarks"] == ["nothing to resume, so it begins"]


def test_another_recipe_is_refused_with_what_changed(data: Path, tmp_path: Path) -> None:
    run = half_way(data, tmp_path / "run")
    other = replace(CONFIG, learning_rate=5e-4, seed=3, checkpoint_every=2)
    with pytest.raises(CheckpointError) as caught:
        train(other, data, run, resume=True)
    assert "learning_rate: 0.001 there, 0.0005 here" in str(caught.value)
    assert "seed: 0 there, 3 here" in str(caught.value)
    assert "checkpoint_every" not in str(caught.value)  # which may change


def test_settings_that_may_change_say_what_they_change(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = half_way(data, tmp_path / "run")
    config = replace(CONFIG, micro_windows=4, checkpoint_minutes=3.0)
    train(config, data, run, resume=True)
    assert "micro_windows: 2 there, 4 here; this changes the order in which gradients are rounded" in caplog.text
    assert "checkpoint_minutes: 15.0 there, 3.0 here; this changes when checkpoints are made" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    assert [len(line["remarks"]) for line in lines(run) if line.get("event") == "start"] == [0, 2]


def test_a_checkpoint_from_before_a_setting_was_there_resumes(straight: Path, data: Path, tmp_path: Path) -> None:
    run = half_way(data, tmp_path / "run")
    path = run / "checkpoints" / "step-00000003" / "state.json"
    state = json.loads(path.read_text())
    for key in ("checkpoint_minutes", "gradient_checkpointing", "average_decay"):
        del state["config"][key]
    for key in ("world", "data", "scaler"):
        del state[key]
    path.write_text(json.dumps(state))
    train(CONFIG, data, run, resume=True)
    assert same_end(run, straight)


def test_other_data_are_refused(data: Path, tmp_path: Path) -> None:
    run = half_way(data, tmp_path / "run")
    with pytest.raises(CheckpointError, match="other training pieces"):
        train(CONFIG, make_data(tmp_path / "other", seed=1), run, resume=True)
    with pytest.raises(CheckpointError, match="another time grid"):
        train(CONFIG, make_data(tmp_path / "grid", PUBLISHED), run, resume=True)


def test_half_written_checkpoints_are_ignored(straight: Path, data: Path, tmp_path: Path) -> None:
    run = half_way(data, tmp_path / "run")
    for name in (".making-step-00000005", "step-5", "step-00000004.tmp"):
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "weights.safetensors").write_bytes(b"half")
    assert [p.name for p in checkpoint.list_checkpoints(run)] == ["step-00000003"]
    train(CONFIG, data, run, resume=True)
    assert same_end(run, straight)
    assert not list((run / "checkpoints").glob(".making-*"))


@pytest.mark.parametrize("damaged", ["weights.safetensors", "raw.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_names_its_file_and_the_remedy(damaged: str, data: Path, tmp_path: Path) -> None:
    config = AVERAGED if damaged == "raw.safetensors" else CONFIG
    run = half_way(data, tmp_path / "run", config)
    path = run / "checkpoints" / "step-00000003" / damaged
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{damaged}: .*delete its folder to resume from the checkpoint before"):
        train(config, data, run, resume=True)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{damaged}: .*delete its folder"):
        train(config, data, run, resume=True)


# ---------------------------------------------------------------- several processes


def free_port() -> int:
    """One below those that systems hand out by themselves, so that none of this run's own sockets takes it first."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def process(rank: int, ports: list[int], data: Path, folder: Path) -> None:
    """One of two processes: 6 steps; 3 and 3; what one process began; a full disk; a loss that is no number."""
    torch.set_num_threads(1)
    logging.basicConfig(filename=folder / f"rank{rank}.log")
    training_log.has_tensorboard, training_log.draw_curve = lambda: False, lambda run: None
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    port = iter(ports)

    def run(name: str, config: TrainConfig = CONFIG, **named: Any) -> Outcome:
        os.environ["MASTER_PORT"] = str(next(port))
        return train(config, data, folder / name, **named)

    assert run("six").leads == (rank == 0)
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:  # One process alone is told to stop, and both do, after the same step.
            at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        outcome = run("three")
    assert (outcome.progress.step, outcome.ended_by) == (3, "SIGTERM")
    run("three", resume=True)
    run("begun", resume=True)
    run("averaged", AVERAGED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", disk_is_full)
        problem = "the leading process could not" if rank else "can't be written"
        with pytest.raises(CheckpointError, match=problem):  # in both of them, so that neither waits for the other
            run("full", replace(CONFIG, steps=1))
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(training, "nats", lambda *arguments: training.nats_of_each(*arguments[:2]).sum() * math.nan)
        with pytest.raises(NonFinite, match="step 0: loss nan"):
            run("nonfinite", replace(CONFIG, steps=1))
    assert (folder / "nonfinite" / "nonfinite.json").exists() or rank == 1


def test_two_processes(straight: Path, averaged: Path, data: Path, tmp_path: Path) -> None:
    half_way(data, tmp_path / "begun")
    ports = [free_port() for _ in range(7)]
    spawned = torch.multiprocessing.spawn(process, (ports, data, tmp_path), nprocs=2, join=False)
    deadline = time.monotonic() + 300
    while not spawned.join(timeout=5):
        if time.monotonic() > deadline:
            for stuck in spawned.processes:
                stuck.kill()
            pytest.fail("the two processes wait for each other")
    assert same_end(tmp_path / "three", tmp_path / "six")  # 3 + kill + 3 = 6, bit for bit

    from safetensors.torch import load

    one = load(files(straight, 6)["weights.safetensors"])
    for name in ("six", "begun"):  # the same global batches, dropout included, whoever computes them
        two = load(files(tmp_path / name, 6)["weights.safetensors"])
        assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-6
        for a, b in zip(exact(straight), exact(tmp_path / name), strict=True):
            assert a.split()[:4] == b.split()[:4]  # step and tokens
            assert float(a.split()[5]) == pytest.approx(float(b.split()[5]), abs=1e-6)
    one, two = (load(files(run, 6)["weights.safetensors"]) for run in (averaged, tmp_path / "averaged"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-6
    assert "processes: 1 there, 2 here; the batches stay the same" in (tmp_path / "rank0.log").read_text()
    assert (tmp_path / "rank1.log").read_text() == ""  # one speaks for all
    assert [line["world"] for line in lines(tmp_path / "begun") if line.get("event") == "start"] == [1, 2]


def test_processes_that_cannot_share_a_batch(data: Path) -> None:
    corpus = training.shards.read_split(data, "train")
    with pytest.raises(ValueError, match="8 windows can't be shared by 3 processes"):
        Trainer(CONFIG, corpus, Ranks(0, 3, torch.device("cpu")))


# ---------------------------------------------------------------- precision


def test_precision_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    kinds = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    for precision, dtype in kinds.items():
        config = replace(CONFIG, precision=precision)
        assert training.precision_on(cpu, config) is None
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
        assert training.precision_on(cuda, config) is dtype
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(ValueError, match="no bf16: set precision=fp16"):
        training.precision_on(cuda, replace(CONFIG, precision="bf16"))


def test_a_loss_scale_too_large_skips_the_step_and_shrinks(data: Path) -> None:
    """What fp16 does on a GPU, with the scaler on a CPU: no optimizer moves, not even the one whose gradients fit."""
    trainer = make_trainer(CONFIG, data)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    overflow = trainer.model.layers[0].gdn1.in_proj.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    figures = trainer.step(0)
    assert not figures.taken
    assert all(torch.equal(before[name], t) for name, t in trainer.model.state_dict().items())
    assert trainer.scaler.get_scale() == 2.0**19
    overflow.remove()
    assert trainer.step(1).taken
    assert all(
        not torch.equal(before[name], t) for name, t in trainer.model.state_dict().items() if "embedding" not in name
    )
    assert all(torch.isfinite(t).all() for t in trainer.model.state_dict().values())


def test_a_loss_scale_that_cannot_shrink_is_no_number(data: Path) -> None:
    trainer = make_trainer(CONFIG, data)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    trainer.model.final_norm.bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFinite, match="gradient norm"):
        trainer.step(0)


# ---------------------------------------------------------------- tensorboard


def test_tensorboard_gets_the_same_figures(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard, of the extra `train`, is not installed")
    monkeypatch.undo()
    train(replace(CONFIG, steps=11), data, tmp_path / "run")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    told = {line["step"]: line for line in lines(tmp_path / "run") if "loss" in line}
    assert [scalar.step for scalar in found.Scalars("loss")] == list(told) == [10, 11]
    for name in ("loss", "norm", "rate", "tokens_per_second", "memory_bytes", "seconds_left"):
        assert [s.value for s in found.Scalars(name)] == pytest.approx([line[name] for line in told.values()])
    for slot in ("delta", "pitch", "duration", "velocity"):
        assert found.Scalars(f"loss of {slot}")[0].value == pytest.approx(told[10]["slots"][slot])
    assert {"bits a note", "bits a note, made"} <= set(found.Tags()["scalars"])
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_hours_are_told_as_hours() -> None:
    table = {
        0: "0 min 0 s",
        59: "0 min 59 s",
        61: "1 min 1 s",
        3541: "59 min 1 s",
        3600: "1 h 0 min",
        9000: "2 h 30 min",
    }
    assert {seconds: training_log.duration(seconds) for seconds in table} == table


# ---------------------------------------------------------------- beginning with weights that exist


def test_a_run_begins_with_given_weights(straight: Path, data: Path, tmp_path: Path) -> None:
    given = checkpoint.list_checkpoints(straight)[-1] / checkpoint.WEIGHTS_NAME
    still = replace(CONFIG, steps=1, warmup_steps=0, learning_rate=1e-30, muon_learning_rate=1e-30, weight_decay=0.0)
    train(still, data, tmp_path / "run", initial=given)
    found = checkpoint.list_checkpoints(tmp_path / "run")[-1] / checkpoint.WEIGHTS_NAME
    assert found.read_bytes() == given.read_bytes()
    assert f"sha256 {weights_file.read(given).sha256}" in lines(tmp_path / "run")[0]["remarks"][0]


def test_resuming_goes_on_from_the_checkpoint_not_from_the_given_weights(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    half_way(data, first)
    given = checkpoint.list_checkpoints(first)[-1] / checkpoint.WEIGHTS_NAME
    half_way(data, second)
    train(CONFIG, data, second, resume=True, initial=given)
    train(CONFIG, data, first, resume=True)
    assert same_end(first, second)


def test_weights_of_another_model_or_grid_are_refused(straight: Path, data: Path, tmp_path: Path) -> None:
    given = checkpoint.list_checkpoints(straight)[-1] / checkpoint.WEIGHTS_NAME
    weights = weights_file.read(given)
    other = {**weights.metadata, "time_grid": PUBLISHED.to_json()}
    weights_file.save(tmp_path / "published.safetensors", weights.tensors, other)
    with pytest.raises(ValueError, match=r"published\.safetensors: of another time grid"):
        train(CONFIG, data, tmp_path / "run", initial=tmp_path / "published.safetensors")
    config = json.loads(weights.metadata["model_config"]) | {"rope_base": 500.0}
    weights_file.save(
        tmp_path / "other.safetensors", weights.tensors, {**weights.metadata, "model_config": json.dumps(config)}
    )
    with pytest.raises(ValueError, match=r"other\.safetensors: of another model than tiny"):
        train(CONFIG, data, tmp_path / "run", initial=tmp_path / "other.safetensors")
