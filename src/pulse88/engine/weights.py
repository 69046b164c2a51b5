"""Weights files: safetensors of fp32, fp16, bf16 or int8 with one scale per output row, read into numpy arrays.

Reads our own files and the published checkpoint's layout (see layout.py). An int8 matrix `name` [rows, cols] comes with
`name.scale` float32 [rows]: w = q * scale[:, None]. Every value of a file is checked before any engine sees it.

Shape legend: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from pulse88.config import ModelConfig
from pulse88.engine.layout import Shape, config_metadata, config_of, expected_shapes, initial_shapes
from pulse88.vocabulary import PUBLISHED, TimeGrid
from pulse88.written import write_whole

Tensors = Mapping[str, NDArray[Any]]

SCALE = ".scale"
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I8": np.dtype("i1"),
}
_HEAD, _TABLE = "lm_head.weight", "token_embedding.weight"


class WeightsError(ValueError):
    """A weights file that can't be used: the message names the file and everything that is wrong with it."""

    def __init__(self, source: Path | str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"{source} is no usable weights file:" + "".join(f"\n  {problem}" for problem in problems))


@dataclass(frozen=True)
class About:
    """What is known of weights that nobody need hold any more."""

    config: ModelConfig
    grid: TimeGrid
    path: Path | None
    quantised: bool
    sha256: str


@dataclass(frozen=True)
class Weights:
    """A model's tensors, checked: names and shapes are those of `expected_shapes(config)`, all values finite.

    A tensor is float32, or int8 with a float32 `.scale` beside it. Raises WeightsError listing all that is wrong.
    `initial`, which no weights file has, is the state before the first token, of `initial_shapes(config)`, float32.
    """

    config: ModelConfig
    tensors: Tensors = field(repr=False)
    grid: TimeGrid = PUBLISHED
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    path: Path | None = None
    file: NDArray[np.uint8] | None = field(default=None, repr=False)  # as it was read
    initial: Tensors = field(default_factory=dict, repr=False)  # nothing where it is zero

    def __post_init__(self) -> None:
        source = self.path or "this set of tensors"
        if problems := _misfits(self.config, {name: array.shape for name, array in self.tensors.items()}):
            raise WeightsError(source, problems)
        if problems := [problem for name in self.tensors for problem in _faults(name, self.tensors)]:
            raise WeightsError(source, problems)
        if self.initial and (problems := _odd_initial(self.config, self.initial)):
            raise WeightsError(source, problems)

    def matrix(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32, int8 multiplied out."""
        return matrix_of(self.tensors, name)

    @property
    def quantised(self) -> bool:
        """Whether any tensor is int8."""
        return any(tensor.dtype == np.int8 for tensor in self.tensors.values())

    def about(self) -> About:
        """All but the tensors, so that an engine that has packed them lets go of the file."""
        return About(self.config, self.grid, self.path, self.quantised, self.sha256)

    def as_int8(self) -> Weights:
        """The same model with every matrix in int8; what is int8 already stays as it is."""
        return replace(self, tensors=quantise(self.tensors))

    @cached_property
    def sha256(self) -> str:
        """64 hex digits of the file, for provenance; without a file, of the tensors' names and bytes."""
        if self.file is not None and not self.initial:
            return hashlib.sha256(self.file.data).hexdigest()
        digest = hashlib.sha256()
        for tensors in (self.tensors, self.initial):  # Their names differ.
            for name in sorted(tensors):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(tensors[name]).data)
        return digest.hexdigest()


def read(path: str | Path) -> Weights:
    """Reads and checks a weights file. WeightsError if it isn't whole, FileNotFoundError if it isn't there."""
    path = Path(path)
    if path.is_dir():
        raise WeightsError(path, ["it is a folder"])
    try:
        # Checks the header against the file: offsets, sizes, no holes, no overlap, nothing cut off.
        with safe_open(path, "numpy") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
    except SafetensorError as error:
        raise WeightsError(path, [f"not a whole safetensors file: {error}"]) from error
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        entries: dict[str, dict[str, Any]] = json.loads(file.read(start - 8))
        entries.pop("__metadata__", None)
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        try:
            config = config_of(metadata, shapes)
            grid = _grid_of(metadata)
        except ValueError as error:
            raise WeightsError(path, [str(error)]) from error
        problems = [
            f"{name}: dtype {entry['dtype']}, readable are {', '.join(_DTYPES)}"
            for name, entry in entries.items()
            if entry["dtype"] not in _DTYPES
        ]
        # Nothing is read into memory before names and sizes are known to be right.
        if problems := _misfits(config, shapes) + problems:
            raise WeightsError(path, problems)
        file.seek(0)
        whole = np.fromfile(file, np.uint8)
    tensors = {name: _tensor(whole[start:], entries[name]) for name in entries}
    if config.tie_embeddings and _HEAD in tensors:
        head = {name: tensors.pop(name) for name in (_HEAD, _HEAD + SCALE) if name in tensors}
        table = {name.replace(_TABLE, _HEAD): tensor for name, tensor in tensors.items() if name.startswith(_TABLE)}
        if head.keys() != table.keys() or not all(np.array_equal(head[name], table[name]) for name in head):
            raise WeightsError(path, [f"{_HEAD} differs from {_TABLE}, though model_config says they are tied"])
    return Weights(config, tensors, grid, metadata, path, whole)


def save(path: str | Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file; a reader sees the old file or the whole new one, never a part."""
    path = Path(path)
    data = in_order(serialise({name: np.ascontiguousarray(array) for name, array in tensors.items()}, dict(metadata)))
    write_whole(path, data)


def in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata sorted by key: the library writes them in another order every time."""
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    if "__metadata__" in header:
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # Tensors begin at a multiple of 8 bytes.
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[8 + size :]))


def metadata_of(config: ModelConfig, grid: TimeGrid) -> dict[str, str]:
    """The metadata that makes a file ours; free keys may be added."""
    return config_metadata(config) | {"time_grid": grid.to_json()}


def matrix_of(tensors: Tensors, name: str) -> NDArray[np.float32]:
    """One of some tensors as float32, int8 multiplied out."""
    tensor = tensors[name]
    return tensor * tensors[name + SCALE][:, None] if tensor.dtype == np.int8 else tensor


def quantise(tensors: Tensors) -> dict[str, NDArray[Any]]:
    """Every matrix as int8 with its `.scale`, the rest as it was.

    By output row and symmetric: scale = max|row| / 127, rounded to nearest. A row of zeros has scale 0.
    """
    result: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        result[name] = tensor
        if tensor.ndim == 2 and tensor.dtype != np.int8:
            w_RC = tensor.astype(np.float32, copy=False)
            scale_R = np.maximum(w_RC.max(axis=1), -w_RC.min(axis=1)) / np.float32(127)
            # A subnormal scale would overflow its reciprocal; such a row is nothing but zeros.
            scale_R[scale_R < np.finfo(np.float32).tiny] = 0
            divisor_R1 = np.where(scale_R == 0, np.float32(1), scale_R)[:, None]
            result[name] = np.clip(np.rint(w_RC / divisor_R1), -127, 127).astype(np.int8)
            result[name + SCALE] = scale_R
    return result


def random_tensors(config: ModelConfig, seed: int) -> dict[str, NDArray[np.float32]]:
    """Random float32 tensors of a model's shape, for tests and measurements.

    Every part has a visible effect: matrices keep the spread of what they multiply, logits spread over a few units,
    decays and steps span the range of the published initialisation.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_shapes(config).items():
        values = rng.standard_normal(shape, np.float32)
        if name.endswith("A_log"):
            values = np.log(rng.uniform(0.01, 16, shape))
        elif name.endswith("dt_bias"):
            values = np.log(np.expm1(np.exp(rng.uniform(math.log(0.001), math.log(0.1), shape))))
        elif name in (_TABLE, _HEAD):
            values *= 1.5 / (config.output_logit_scale * config.d_model**0.5)
        elif len(shape) == 1:
            values = values * 0.1 + (0.0 if name.endswith("bias") else 1.0)
        else:
            values *= shape[-1] ** -0.5
        tensors[name] = values.astype(np.float32)
    return tensors


def _grid_of(metadata: Mapping[str, str]) -> TimeGrid:
    if "time_grid" in metadata:
        return TimeGrid.from_json(metadata["time_grid"])
    if "pulse88_format" in metadata:
        raise ValueError("the metadata has no time_grid, so nobody knows what its times mean")
    return PUBLISHED


def _tensor(data: NDArray[np.uint8], entry: Mapping[str, Any]) -> NDArray[Any]:
    begin, end = entry["data_offsets"]
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    array: NDArray[Any] = np.frombuffer(data[begin:end], dtype).reshape(shape)
    if entry["dtype"] == "BF16":  # The upper half of a float32.
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array if array.dtype == np.int8 else array.astype(np.float32, copy=False)


def _misfits(config: ModelConfig, shapes: Mapping[str, Shape]) -> list[str]:
    """Tensors that are missing, of a wrong shape, or unexpected."""
    expected = expected_shapes(config)
    if config.tie_embeddings and _HEAD in shapes:
        expected[_HEAD] = expected[_TABLE]
    problems = []
    for name, shape in expected.items():
        if name not in shapes:
            problems.append(f"{name}: missing, expected {list(shape)}")
        elif shapes[name] != shape:
            problems.append(f"{name}: expected {list(shape)}, found {list(shapes[name])}")
        scale = name + SCALE
        if scale in shapes and shapes[scale] != shape[:1]:
            problems.append(f"{scale}: expected {list(shape[:1])}, found {list(shapes[scale])}")
    matrices = {name + SCALE for name, shape in expected.items() if len(shape) == 2}
    problems += [f"{name}: unexpected" for name in shapes if name not in expected and name not in matrices]
    return problems


def _odd_initial(config: ModelConfig, initial: Tensors) -> list[str]:
    """What is wrong with an initial state."""
    expected = initial_shapes(config)
    problems = [f"{name}: {'missing' if name in expected else 'unexpected'}" for name in expected.keys() ^ initial]
    for name in sorted(expected.keys() & initial):
        array, shape = initial[name], expected[name]
        if array.shape != shape or array.dtype != np.float32:
            problems.append(f"{name}: expected float32 {list(shape)}, found {array.dtype} {list(array.shape)}")
        elif not np.isfinite(array).all():
            problems.append(f"{name}: {np.count_nonzero(~np.isfinite(array))} values are not finite")
    return sorted(problems)


def _faults(name: str, tensors: Tensors) -> list[str]:
    """What is wrong with the values of a tensor whose name and shape are right."""
    tensor = tensors[name]
    has_scale = name + SCALE in tensors
    if tensor.dtype == np.int8:
        if tensor.ndim != 2:
            return [f"{name}: int8, which only matrices may be"]
        return [] if has_scale else [f"{name}{SCALE}: missing, expected {[len(tensor)]} beside an int8 matrix"]
    if tensor.dtype != np.float32:
        return [f"{name}: dtype {tensor.dtype}, expected float32 or int8"]
    if has_scale:
        return [f"{name}{SCALE}: unexpected beside a matrix that isn't int8"]
    if not np.isfinite(tensor).all():
        return [f"{name}: {np.count_nonzero(~np.isfinite(tensor))} values are not finite"]
    return [f"{name}: negative"] if name.endswith(SCALE) and (tensor < 0).any() else []
