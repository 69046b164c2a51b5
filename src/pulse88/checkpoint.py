"""Checkpoints of training: folders of safetensors and readable JSON, whole or not there at all.

RUN/checkpoints/step-00001000/weights.safetensors     the model, in float32
                              optimizer.safetensors   moments, under `parameter|key`
                              state.json              step, tokens, configuration, fingerprints
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pulse88.config import TrainConfig
from pulse88.engine.weights import SCALE, Weights, metadata_of
from pulse88.model import Pulse88
from pulse88.optimizer import load_named_state, named_state
from pulse88.vocabulary import TimeGrid

FORMAT = "1"


class CheckpointError(ValueError):
    """A checkpoint can't be read or doesn't fit; the message names the file and the remedy."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int
    tokens: int


def save(
    run: Path,
    model: nn.Module,
    optimizers: list[Optimizer],
    progress: Progress,
    config: TrainConfig,
    grid: TimeGrid,
    keep: int = 2,
) -> Path:
    """Writes the checkpoint of this step under a temporary name, renames it, and drops all but the last `keep`."""
    folder = run / "checkpoints"
    final = folder / f"step-{progress.step:08d}"
    making = folder / f".making-{final.name}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, making / "weights.safetensors", metadata_of(config.model_config, grid))
    moments = {name: value.detach().contiguous() for name, value in named_state(model, optimizers).items()}
    save_file(moments, making / "optimizer.safetensors", {"pulse88_format": FORMAT})
    state = {"format": FORMAT, **asdict(progress), "config": asdict(config), "time_grid": grid.fingerprint}
    (making / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    for path in making.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if final.exists():
        shutil.rmtree(final)
    making.replace(final)
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return final


def load_model(weights: Weights) -> Pulse88:
    """A torch model with the values of a weights file, int8 multiplied out to float32."""
    model = Pulse88(weights.config)
    names = (name for name in weights.tensors if not name.endswith(SCALE))
    model.load_state_dict({name: torch.tensor(weights.matrix(name)) for name in names})
    return model


def list_checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(path for path in found if re.fullmatch(r"step-\d{8,}", path.name))


def load(folder: Path, model: nn.Module, optimizers: list[Optimizer], config: TrainConfig, grid: TimeGrid) -> Progress:
    """Puts weights and moments back. CheckpointError for a damaged checkpoint, another recipe or another grid."""
    state = _read_state(folder / "state.json")
    if state["time_grid"] != grid.fingerprint:
        raise CheckpointError(f"{folder}: made with another time grid than the data's; prepare the data with its grid")
    theirs, ours = state["config"], json.loads(json.dumps(asdict(config)))
    changed = [f"{key}: {theirs.get(key)!r} there, {ours[key]!r} here" for key in ours if theirs.get(key) != ours[key]]
    if changed:
        raise CheckpointError(f"{folder}: made with another recipe ({'; '.join(changed)}); resume with the same one")
    tensors = _read_tensors(folder / "weights.safetensors")
    problem = model.load_state_dict(tensors, strict=False)
    if problem.missing_keys or problem.unexpected_keys:
        raise CheckpointError(
            f"{folder}: missing {problem.missing_keys}, unexpected {problem.unexpected_keys}: not this model's weights"
        )
    load_named_state(model, optimizers, _read_tensors(folder / "optimizer.safetensors"))
    return Progress(state["step"], state["tokens"])


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(path.read_text())
        state["step"], state["tokens"], state["config"], state["time_grid"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}; delete this folder to resume from the checkpoint before it") from error
    return state


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}; delete its folder to resume from the checkpoint before it") from error
