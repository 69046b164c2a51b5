"""Pretokenized data on disk: NPZ shards and a manifest that says what is in them. No pickle is ever opened.

DATA/manifest.json     time grid, and for every piece its name, split, shard, offset and length in tokens
DATA/shard-00000.npz   tokens uint8 [all tokens of the shard], pieces behind each other with BOS and EOS
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse88.batches import TokenCorpus
from pulse88.vocabulary import SIZE, TimeGrid


class ShardError(ValueError):
    """Prepared data can't be read; the message names the file and the remedy."""


def read_manifest(data: Path) -> dict[str, Any]:
    """The manifest; ShardError if it isn't there or isn't one."""
    path = data / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        manifest["time_grid"], manifest["pieces"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: {error}; make the data again with `pulse88 prepare`") from error
    return manifest


def read_grid(data: Path) -> TimeGrid:
    """The time grid that the data was tokenized with."""
    return TimeGrid.from_json(json.dumps(read_manifest(data)["time_grid"]))


def read_split(data: Path, split: str) -> TokenCorpus:
    """All pieces of a split, in the manifest's order; ShardError if there are none or a shard doesn't fit."""
    pieces = [piece for piece in read_manifest(data)["pieces"] if piece["split"] == split]
    if not pieces:
        raise ShardError(f"{data / 'manifest.json'}: no piece of split {split!r}; prepare some, or name another split")
    shards = {name: _tokens(data / name) for name in sorted({piece["shard"] for piece in pieces})}
    tokens = []
    for piece in pieces:
        shard = shards[piece["shard"]]
        if piece["offset"] + piece["length"] > len(shard):
            raise ShardError(f"{data / piece['shard']}: too short for {piece['name']}; make the data again")
        tokens.append(shard[piece["offset"] : piece["offset"] + piece["length"]])
    return TokenCorpus(
        np.concatenate(tokens),
        np.array([piece["length"] for piece in pieces], np.int64),
        tuple(piece["name"] for piece in pieces),
    )


def _tokens(path: Path) -> NDArray[np.uint8]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            tokens: NDArray[np.uint8] = arrays["tokens"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ShardError(f"{path}: {error}; make the data again with `pulse88 prepare`") from error
    if tokens.dtype != np.uint8 or tokens.ndim != 1 or (len(tokens) and tokens.max() >= SIZE):
        raise ShardError(f"{path}: tokens are not a row of ids below {SIZE}; make the data again")
    return tokens
