"""Checkpoints of training: folders of safetensors and readable JSON, whole or not there at all.

RUN/checkpoints/step-00001000/weights.safetensors     the model, in float32; of a run with `average_decay` the average
                              raw.safetensors         the weights that training goes on from, of such a run only
                              optimizer.safetensors   moments, under `parameter|key`
                              state.json              step, tokens, recipe, circumstances, loss scale

There are no states of random generators in it: data, augmentation and dropout of a step are functions of the seed and
the step (batches.py, train.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn
from torch.optim import Optimizer

from pulse88.config import TrainConfig
from pulse88.engine.weights import SCALE, Weights, in_order, metadata_of
from pulse88.initial_state import put_initial
from pulse88.model import Pulse88
from pulse88.optimizer import load_named_state, named_state
from pulse88.vocabulary import TimeGrid
from pulse88.written import not_written

FORMAT = "1"
_REMEDY = "delete its folder to resume from the checkpoint before it"
WEIGHTS_NAME, RAW_NAME = "weights.safetensors", "raw.safetensors"
OPTIMIZER_NAME, STATE_NAME = "optimizer.safetensors", "state.json"

_FACTS = {"step": int, "tokens": int, "config": dict, "time_grid": str}  # that every state has

# What may differ when a run goes on, and what that changes.
CHANGEABLE = {
    "micro_windows": "the order in which gradients are rounded and, with dropout, what is dropped",
    "gradient_checkpointing": "memory and time only",
    "validate_every": "when it is validated",
    "samples": "what is played at validations",
    "checkpoint_every": "when checkpoints are made",
    "checkpoint_minutes": "when checkpoints are made",
}


class CheckpointError(ValueError):
    """A checkpoint can't be written, read, or doesn't fit; the message names the file and the remedy."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int
    tokens: int


@dataclass(frozen=True)
class Circumstances:
    """What a run depends on beside its recipe."""

    grid: TimeGrid
    data: str  # fingerprint of the training pieces
    world: int  # processes


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on, the state of its loss scaling, and sentences on what is different from before."""

    progress: Progress
    scaler: dict[str, Any]
    remarks: list[str]


def save(
    run: Path,
    model: nn.Module,
    optimizers: list[Optimizer],
    progress: Progress,
    config: TrainConfig,
    circumstances: Circumstances,
    scaler: dict[str, Any],
    average: Mapping[str, Tensor] | None = None,
    keep: int = 2,
) -> Path:
    """Writes the checkpoint of this step under a temporary name, renames it, and drops all but the last `keep`.

    `average` has the tensors of a WeightAverage, under the parameters' names.
    CheckpointError if it can't be written, on a full disk for one: those before it stay.
    """
    folder = run / "checkpoints"
    final = folder / f"step-{progress.step:08d}"
    making = folder / f".making-{final.name}"
    try:
        clear(run)
        making.mkdir(parents=True)
        _write(making, model, optimizers, progress, config, circumstances, scaler, average)
        if final.exists():
            _drop(final)
        making.replace(final)
        for old in list_checkpoints(run)[:-keep]:
            _drop(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(making, ignore_errors=True)
        found = list_checkpoints(run)
        last = f"the last good one is {found[-1]}" if found else "there is none before it"
        problem = not_written(error, final) if isinstance(error, OSError) else error
        raise CheckpointError(f"{final}: {getattr(problem, 'strerror', problem)}; {last}, --resume goes on") from error
    return final


def clear(run: Path) -> None:
    """Takes away what a process that was killed has left of checkpoints that it wrote or dropped."""
    for kind in ("making", "going"):
        for left in (run / "checkpoints").glob(f".{kind}-*"):
            shutil.rmtree(left, ignore_errors=True)


def _drop(folder: Path) -> None:
    """Takes a checkpoint away; under another name first, so that half of one is none."""
    going = folder.with_name(f".going-{folder.name}")
    folder.replace(going)
    shutil.rmtree(going)


def save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file; equal tensors and metadata give equal bytes."""
    path.write_bytes(in_order(serialise(tensors, metadata)))


def _write(
    folder: Path,
    model: nn.Module,
    optimizers: list[Optimizer],
    progress: Progress,
    config: TrainConfig,
    circumstances: Circumstances,
    scaler: dict[str, Any],
    average: Mapping[str, Tensor] | None,
) -> None:
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    metadata = metadata_of(config.model_config, circumstances.grid)
    if average is not None:
        save_file(tensors, folder / RAW_NAME, metadata)
    save_file(tensors | dict(average or {}), folder / WEIGHTS_NAME, metadata)
    moments = {name: value.detach().contiguous() for name, value in named_state(model, optimizers).items()}
    save_file(moments, folder / OPTIMIZER_NAME, {"pulse88_format": FORMAT})
    state = {
        "format": FORMAT,
        **asdict(progress),
        "config": asdict(config),
        "time_grid": circumstances.grid.fingerprint,
        "data": circumstances.data,
        "world": circumstances.world,
        "scaler": scaler,
    }
    (folder / STATE_NAME).write_text(json.dumps(state, indent=1) + "\n")
    for path in folder.iterdir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())


def load_model(weights: Weights) -> Pulse88:
    """A torch model with the values of a weights file, int8 multiplied out to float32."""
    model = Pulse88(weights.config)
    put(weights, model)
    return model


def put(weights: Weights, model: Pulse88) -> None:
    """Gives a model the values of a weights file, int8 multiplied out to float32."""
    names = (name for name in weights.tensors if not name.endswith(SCALE))
    model.load_state_dict({name: torch.tensor(weights.matrix(name)) for name in names})
    if weights.initial:
        put_initial(model, weights.initial)


def list_checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(path for path in found if re.fullmatch(r"step-\d{8,}", path.name))


def load(
    folder: Path,
    model: nn.Module,
    optimizers: list[Optimizer],
    config: TrainConfig,
    circumstances: Circumstances,
    average: Mapping[str, Tensor] | None = None,
) -> Resumed:
    """Puts weights and moments back. CheckpointError for a damaged checkpoint, another recipe, grid or corpus.

    The values of `average`, a WeightAverage's tensors, are put back too, where the run has one.
    Another number of processes, and other settings of those in CHANGEABLE, are told in the remarks.
    """
    state = read_state(folder)
    if state["time_grid"] != circumstances.grid.fingerprint:
        raise CheckpointError(f"{folder}: made with another time grid than the data's; prepare the data with its grid")
    if state.get("data", circumstances.data) != circumstances.data:
        raise CheckpointError(f"{folder}: made with other training pieces; give the data that the run began with")
    # A setting that is younger than the checkpoint was at its default.
    theirs = {field.name: field.default for field in fields(TrainConfig)} | state["config"]
    ours = json.loads(json.dumps(asdict(config)))
    changed = {key: f"{key}: {theirs.get(key)!r} there, {ours[key]!r} here" for key in ours if theirs[key] != ours[key]}
    if refused := [line for key, line in changed.items() if key not in CHANGEABLE]:
        raise CheckpointError(f"{folder}: made with another recipe ({'; '.join(refused)}); resume with the same one")
    remarks = [f"{line}; this changes {CHANGEABLE[key]}" for key, line in changed.items()]
    world = state.get("world", circumstances.world)
    if world != circumstances.world:
        remarks.append(
            f"processes: {world} there, {circumstances.world} here; the batches stay the same, this changes "
            f"{CHANGEABLE['micro_windows']}"
        )
    _put_back(folder / WEIGHTS_NAME, model)
    if average is not None:  # It came by way of the model, which knows the names and shapes.
        values = model.state_dict()
        for name, tensor in average.items():
            tensor.copy_(values[name])
        _put_back(folder / RAW_NAME, model)
    moments = _read_tensors(folder / OPTIMIZER_NAME)
    try:
        load_named_state(model, optimizers, moments)
    except ValueError as error:
        raise CheckpointError(f"{folder / OPTIMIZER_NAME}: {error}; {_REMEDY}") from error
    return Resumed(Progress(state["step"], state["tokens"]), state.get("scaler", {}), remarks)


def _put_back(path: Path, model: nn.Module) -> None:
    tensors = _read_tensors(path)
    try:
        problem = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # tensors of other shapes
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}; {_REMEDY}") from error
    if problem.missing_keys or problem.unexpected_keys:
        raise CheckpointError(
            f"{path}: missing {problem.missing_keys}, unexpected {problem.unexpected_keys}: not this model's weights"
        )


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's state.json; CheckpointError if it can't be read."""
    path = folder / STATE_NAME
    try:
        state: dict[str, Any] = json.loads(path.read_text())
        for name, kind in _FACTS.items():
            if type(state[name]) is not kind:
                raise ValueError(f"{name} is {state[name]!r}")
        if not isinstance(state.get("scaler", {}), dict) or min(state["step"], state["tokens"]) < 0:
            raise ValueError("its scaler is no object, or a number is below 0")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}; {_REMEDY}") from error
    return state


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}; {_REMEDY}") from error
