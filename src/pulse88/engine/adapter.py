"""Adapters: small files that make one set of weights play like somebody's own pieces. Applied when weights are loaded.

An adapter is a safetensors file with the sha256 of the weights it belongs to. Kinds:

    low-rank   for a matrix `name.weight` [R, C]: `name.lora_A` [K, C] and `name.lora_B` [R, K]; W + B A is computed
    full       tensors that take the places of those of the same names
    initial-state  what every GDN block begins with instead of zeros, `layout.initial_shapes`; no weight changes

A changed int8 matrix is rounded to int8 again, by chance: a change is often smaller than half a step between two
numbers, so that rounding to the nearest would undo it, but it survives as the chance to go one step further. The chance
is always the same one, so that equal files give equal weights.

Shape legend: R rows (outputs), C columns (inputs), K rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pulse88.config import ADAPTER_KINDS
from pulse88.engine.weights import SCALE, Tensors, Weights, WeightsError, save

FORMAT = "1"
DOWN, UP = ".lora_A", ".lora_B"
_WEIGHT = ".weight"
_TYPES = frozenset({"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})  # of numpy


class AdapterError(ValueError):
    """An adapter can't be used, or not with these weights; the message names the file and the remedy."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter file holds."""

    kind: str
    base_sha256: str
    tensors: Tensors = field(repr=False)
    sha256: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    path: Path | None = None


def write_adapter(path: Path, kind: str, base: Weights, tensors: Tensors, notes: Mapping[str, str]) -> None:
    """Writes an adapter of the weights `base`, whole or not at all; equal tensors and notes give equal bytes."""
    assert kind in ADAPTER_KINDS
    facts = {"pulse88_adapter": FORMAT, "kind": kind, "base_sha256": base.sha256}
    save(path, tensors, {**notes, **facts})


def read_adapter(path: str | Path) -> Adapter:
    """The adapter in a file; AdapterError if there is none, FileNotFoundError if the file isn't there."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such adapter: check --adapter")
    try:
        with safe_open(path, "numpy") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
            if metadata.get("pulse88_adapter") != FORMAT or metadata.get("kind") not in ADAPTER_KINDS:
                raise AdapterError(f"{path} is no adapter of pulse88: `pulse88 finetune` makes some")
            types = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118  it is no dict
            if odd := [f"{name} is of the type {of}" for name, of in types.items() if of not in _TYPES]:
                raise AdapterError(f"{path} can't be used: {', '.join(odd)}: make or fetch it again")
            tensors = {name: opened.get_tensor(name) for name in types}
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is no whole safetensors file ({error}): make or fetch it again") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Adapter(metadata["kind"], metadata.get("base_sha256", ""), tensors, digest, metadata, path)


def adapted(weights: Weights, adapter: Adapter) -> Weights:
    """The weights with the adapter in them, without a path: their sha256 is that of their values.

    AdapterError if the adapter belongs to other weights, or its tensors don't fit.
    """
    source = adapter.path or "this adapter"
    if adapter.base_sha256 != weights.sha256:
        raise AdapterError(
            f"{source} belongs to other weights (sha256 {adapter.base_sha256[:16]}..., these have "
            f"{weights.sha256[:16]}...): name the file it was made with by --weights"
        )
    metadata = {**weights.metadata, "adapter_sha256": adapter.sha256}
    if adapter.kind == "initial-state":
        odd = sorted(name for name, of in adapter.tensors.items() if of.dtype not in (np.float16, np.float32))
        if odd or not adapter.tensors:
            problem = f"has {', '.join(odd)} of another type than float16 or float32" if odd else "holds nothing"
            raise AdapterError(f"{source} {problem}: make or fetch it again")
        initial = {name: array.astype(np.float32) for name, array in adapter.tensors.items()}
        try:
            return Weights(weights.config, weights.tensors, weights.grid, metadata, initial=initial)
        except WeightsError as error:
            raise AdapterError(f"{source} doesn't fit these weights: {'; '.join(error.problems)}") from error
    changed = _merged(weights, adapter, source) if adapter.kind == "low-rank" else dict(adapter.tensors)
    kept = {name: tensor for name, tensor in weights.tensors.items() if name.removesuffix(SCALE) not in changed}
    return Weights(weights.config, kept | changed, weights.grid, metadata)


def _merged(weights: Weights, adapter: Adapter, source: Path | str) -> dict[str, NDArray[Any]]:
    """Every matrix that the adapter changes, in the form that it had."""
    chance = np.random.default_rng(0)
    changed: dict[str, NDArray[Any]] = {}
    for module in sorted({name.removesuffix(DOWN).removesuffix(UP) for name in adapter.tensors}):
        name = module + _WEIGHT
        down_KC, up_RK = adapter.tensors.get(module + DOWN), adapter.tensors.get(module + UP)
        if down_KC is None or up_RK is None or name not in weights.tensors:
            raise AdapterError(f"{source}: {module} has no pair of {DOWN} and {UP}, or is no matrix of these weights")
        rows, columns = weights.tensors[name].shape if weights.tensors[name].ndim == 2 else (0, 0)
        rank = len(down_KC) if down_KC.ndim else 0
        if (up_RK.shape, down_KC.shape) != ((rows, rank), (rank, columns)) or not columns:
            raise AdapterError(f"{source}: {module} is of another shape than in these weights")
        with np.errstate(over="ignore", invalid="ignore"):
            w_RC = weights.matrix(name) + up_RK.astype(np.float32) @ down_KC.astype(np.float32)
        if not np.isfinite(w_RC).all():
            raise AdapterError(f"{source}: {module} makes numbers that are not finite: make or fetch it again")
        changed |= rounded(name, w_RC, weights.tensors, chance)
    return changed


def rounded(
    name: str, w_RC: NDArray[np.float32], base: Tensors, chance: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """A tensor that has changed in the form that it has in `base`: float32, or int8 by chance with its scale a row.

    Scales stay what they were where the row still fits, so that what hasn't changed stays exactly.
    """
    if base[name].dtype != np.int8:
        return {name: w_RC.astype(np.float32, copy=False)}
    scale_R = np.maximum(base[name + SCALE], np.abs(w_RC).max(axis=1) / np.float32(127))
    steps_RC = np.divide(w_RC, scale_R[:, None], out=np.zeros_like(w_RC), where=scale_R[:, None] > 0)
    nearest = np.rint(steps_RC)
    # Products of a scale and its reciprocal are off by a last bit: what is that near to a whole number is one.
    steps_RC = np.where(np.abs(steps_RC - nearest) < 1e-4, nearest, steps_RC)
    q_RC = np.floor(steps_RC + chance.random(w_RC.shape, np.float32))
    return {name: np.clip(q_RC, -127, 127).astype(np.int8), name + SCALE: scale_R.astype(np.float32)}
