"""Prepared data on disk: NPZ shards and a manifest that says what is in them. No pickle is ever opened.

DATA/manifest.json       time grid, rules, refusals, shards, and for every piece its name, split, shard and place
DATA/train-00000.npz     tokens uint8 [T], all pieces of the shard behind each other with BOS and EOS
                         token_offsets int64 [pieces + 1]
                         onsets float64, durations float32 (seconds), pitch, velocity uint8 [N], note for event
                         note_offsets int64 [pieces + 1]

The original's form (published_form.py), an NPZ a piece, is read as well.

Shape legend: T tokens, N notes.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pulse88 import published_form
from pulse88.batches import TokenCorpus
from pulse88.vocabulary import BLOCKS, BOS, EOS, EVENT_TOKENS, LOWEST_PITCH, SIZE, Slot, TimeGrid, bin_velocity
from pulse88.written import write_whole, written_whole

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest and the shards
SHARD_TOKENS = 2**24  # tokens from which on a new shard begins
_DAMAGES = (  # what numpy and zipfile raise for damaged files; RecursionError is a RuntimeError
    *(OSError, ValueError, TypeError, SyntaxError, EOFError, RuntimeError, NotImplementedError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
UNPACKED_BYTES, UNPACKED_RATIO = 2**30, 200  # that an array may have, or times its bytes in the file, if that is more
_BEGINNING_OF_ZIP = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold
COLUMNS: dict[str, Any] = {  # of a shard, one value a note
    "onsets": np.float64,
    "durations": np.float32,
    "pitch": np.uint8,
    "velocity": np.uint8,
}


class ShardError(ValueError):
    """Prepared data can't be read; the message names the file and the remedy."""


class Place(NamedTuple):
    """Where a piece was written."""

    shard: str
    offset: int  # of its first token
    note_offset: int


class ShardWriter:
    """Writes the pieces of one split, shard by shard; equal pieces in equal order give equal bytes."""

    def __init__(self, data: Path, split: str, shard_tokens: int = SHARD_TOKENS) -> None:
        self._data, self._split, self._most = data, split, shard_tokens
        self._tokens: list[NDArray[np.uint8]] = []
        self._notes: dict[str, list[NDArray]] = {name: [] for name in COLUMNS}
        self._size = self._note_count = 0
        self.shards: list[dict[str, Any]] = []  # as the manifest lists them

    def add(self, tokens: NDArray[np.uint8], notes: Mapping[str, NDArray]) -> Place:
        """Takes a piece: tokens uint8 [T] and the COLUMNS [N]."""
        place = Place(f"{self._split}-{len(self.shards):05d}.npz", self._size, self._note_count)
        self._tokens.append(tokens)
        for name, column in self._notes.items():
            column.append(notes[name])
        self._size += len(tokens)
        self._note_count += len(notes["pitch"])
        if self._size >= self._most:
            self.close()
        return place

    def close(self) -> None:
        """Writes what hasn't been written yet."""
        if not self._tokens:
            return
        arrays: dict[str, NDArray] = {"tokens": np.concatenate(self._tokens), "token_offsets": _offsets(self._tokens)}
        arrays |= {name: np.concatenate(column) for name, column in self._notes.items()}
        arrays["note_offsets"] = _offsets(self._notes["pitch"])
        name = f"{self._split}-{len(self.shards):05d}.npz"
        sha256 = write_npz(self._data / name, arrays)
        row = {"name": name, "split": self._split, "pieces": len(self._tokens), "tokens": self._size}
        self.shards.append(row | {"notes": self._note_count, "sha256": sha256})
        self._tokens, self._notes = [], {name: [] for name in COLUMNS}
        self._size = self._note_count = 0


def _offsets(pieces: Sequence[NDArray]) -> NDArray[np.int64]:
    return np.cumsum([0, *map(len, pieces)], dtype=np.int64)


def write_npz(path: Path, arrays: Mapping[str, NDArray]) -> str:
    """Writes an NPZ file, whole or not at all, whose bytes depend on nothing but the arrays; their sha256.

    There is no date in it, no system and no compression. ValueError for arrays of objects.
    """
    with written_whole(path) as partial:
        with zipfile.ZipFile(partial, "w") as archive:
            for name, array in arrays.items():
                if array.dtype.hasobject:
                    raise ValueError(f"{name} holds objects, which only a pickle can")
                entry = zipfile.ZipInfo(f"{name}.npy", _BEGINNING_OF_ZIP)
                entry.create_system, entry.external_attr = 3, 0o644 << 16
                with archive.open(entry, "w", force_zip64=array.nbytes >= 2**31) as member:
                    np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(array))
                    member.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        digest = hashlib.sha256()
        with partial.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()


def write_manifest(data: Path, manifest: Mapping[str, Any]) -> bytes:
    """Writes the manifest, a piece and a refusal a line, and takes away shards of earlier data that it doesn't list."""
    lines = ["{"]
    for key, value in manifest.items():
        comma = "" if key == list(manifest)[-1] else ","
        if isinstance(value, list):
            rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
            lines.append(f"{json.dumps(key)}: [\n{rows}\n]{comma}" if value else f"{json.dumps(key)}: []{comma}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}{comma}")
    content = ("\n".join([*lines, "}"]) + "\n").encode()
    write_whole(data / MANIFEST, content)
    listed = {shard["name"] for shard in manifest["shards"]}
    for path in data.glob("*-[0-9][0-9][0-9][0-9][0-9].npz"):
        if path.name not in listed and path.name.split("-")[0] in ("train", "validation", "test"):
            path.unlink()
    return content


def read_manifest(data: Path) -> dict[str, Any]:
    """The manifest; ShardError if it isn't there or isn't one. That of the original's form is brought into ours."""
    path = data / MANIFEST
    if not path.exists() and (data / "metadata" / MANIFEST).exists():
        path = data / "metadata" / MANIFEST  # where the original's tokenizing script puts it
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(manifest, list):
            manifest = published_form.as_manifest(data, manifest)
        manifest["time_grid"]
        if not isinstance(manifest["pieces"], list) or not all(isinstance(piece, dict) for piece in manifest["pieces"]):
            raise ValueError("its pieces are no list of objects")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        problem = f"no {error}" if isinstance(error, KeyError) else error
        raise ShardError(f"{path}: {problem}; make the data again with `pulse88 prepare`") from error
    return dict(manifest)


def read_grid(data: Path) -> TimeGrid:
    """The time grid that the data was tokenized with."""
    return TimeGrid.from_json(json.dumps(read_manifest(data)["time_grid"]))


def read_split(data: Path, split: str, *, max_pieces: int = 0) -> TokenCorpus:
    """All pieces of a split, in the manifest's order; ShardError if there are none or a shard doesn't fit.

    With `max_pieces` above 0 at most so many, drawn by the hashes of their names.
    """
    manifest = read_manifest(data)
    pieces = [piece for piece in manifest["pieces"] if piece.get("split") == split]
    if not pieces:
        raise ShardError(f"{data / MANIFEST}: no piece of split {split!r}; prepare some, or name another split")
    for piece in pieces:
        if problem := _problem(piece):
            raise ShardError(f"{data / MANIFEST}: {piece.get('name', 'a piece')}: {problem}; make the data again")
    if 0 < max_pieces < len(pieces):
        drawn = sorted(range(len(pieces)), key=lambda i: hashlib.sha256(pieces[i]["name"].encode()).digest())
        pieces = [pieces[i] for i in sorted(drawn[:max_pieces])]
    name, shard, tokens = "", np.zeros(0, np.uint8), []
    for piece in pieces:
        if piece["shard"] != name:
            name, shard = piece["shard"], _tokens(data / piece["shard"])
        if piece["offset"] + piece["length"] > len(shard):
            raise ShardError(f"{data / piece['shard']}: too short for {piece['name']}; make the data again")
        tokens.append(shard[piece["offset"] : piece["offset"] + piece["length"]])
    return TokenCorpus(
        np.concatenate(tokens),
        np.array([piece["length"] for piece in pieces], np.int64),
        tuple(piece["name"] for piece in pieces),
        TimeGrid.from_json(json.dumps(manifest["time_grid"])),
    )


def _problem(piece: Mapping[str, Any]) -> str:
    """What keeps a piece of a manifest from being found; empty if nothing does."""
    for name, kind in (("name", str), ("shard", str), ("offset", int), ("length", int)):
        if type(piece.get(name)) is not kind:
            return f"{name} is {piece.get(name)!r}"
    if piece["offset"] < 0 or piece["length"] < 1:
        return f"{piece['length']} tokens from {piece['offset']} on"
    return f"shard {piece['shard']} is outside of the data's folder" if _is_outside(piece["shard"]) else ""


def _is_outside(shard: str) -> bool:
    path = Path(shard)
    return bool(path.anchor) or ".." in path.parts


def read_notes(data: Path, shard: str) -> dict[str, NDArray]:
    """The COLUMNS of a shard [N], of the original's form too; ShardError as `read_split`."""
    if _is_outside(shard):
        raise ShardError(f"{data / MANIFEST}: shard {shard} is outside of the data's folder; make the data again")
    path = data / shard
    columns = _arrays(path, COLUMNS)
    if "pitch" not in columns:  # The original has a time for every token, and the rest in the tokens alone.
        events = _tokens(path)[1:-1].reshape(-1, EVENT_TOKENS)
        columns = {name: column[::EVENT_TOKENS] for name, column in columns.items()}
        columns["pitch"] = events[:, Slot.PITCH] - np.uint8(BLOCKS[Slot.PITCH].start - LOWEST_PITCH)
        columns["velocity"] = bin_velocity(events[:, Slot.VELOCITY] - np.uint8(BLOCKS[Slot.VELOCITY].start))
    if sorted(columns) != sorted(COLUMNS) or len({len(column) for column in columns.values()}) != 1:
        raise ShardError(f"{path}: no columns {', '.join(COLUMNS)} of one length; make the data again")
    return columns


def _tokens(path: Path) -> NDArray[np.uint8]:
    tokens = _arrays(path, ("tokens",)).get("tokens", np.zeros((0, 0), np.uint8))
    in_range = tokens.dtype.kind in "iu" and (not tokens.size or 0 <= tokens.min() <= tokens.max() < SIZE)
    if tokens.ndim != 1 or not in_range:
        raise ShardError(f"{path}: tokens are not a row of ids below {SIZE}; make the data again")
    if tokens.dtype == np.uint8:
        return tokens
    if len(tokens) % EVENT_TOKENS:
        raise ShardError(f"{path}: {len(tokens)} tokens are no whole number of events; make the data again")
    return np.concatenate(([BOS], tokens, [EOS])).astype(np.uint8)


def _arrays(path: Path, names: Iterable[str]) -> dict[str, NDArray]:
    """Those of the named arrays that a file has."""
    try:
        return read_npz(path, names)
    except ValueError as error:
        raise ShardError(f"{error}; make the data again with `pulse88 prepare`") from error


def read_npz(path: Path, names: Iterable[str]) -> dict[str, NDArray]:
    """Those of the named arrays that a file has; ValueError, naming it, for whatever is wrong with it. No pickle.

    np.load makes room for what a header says before it looks how much there is; here the header, the archive and the
    bytes have to agree first.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            there = set(archive.namelist())
            return {name: _array(archive, f"{name}.npy") for name in names if f"{name}.npy" in there}
    except _DAMAGES as error:
        raise ValueError(f"{path}: {error or type(error).__name__}") from error


def _array(archive: zipfile.ZipFile, name: str) -> NDArray:
    """An array of numbers, read into as many bytes as its header and the archive agree on."""
    info = archive.getinfo(name)
    with archive.open(info) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own, about odd headers
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} is of the NPY format {version}, which isn't known here")
        shape, by_columns, array_type = _HEADERS[version](file)
        if array_type.kind not in "biuf":
            raise ValueError(f"{name} is no array of numbers")
        size = math.prod(shape) * array_type.itemsize
        if info.file_size != file.tell() + size:
            raise ValueError(f"{name} is not as long as its header says")
        if size > max(UNPACKED_BYTES, UNPACKED_RATIO * info.compress_size):
            raise ValueError(f"{name} unpacks to {size:,} bytes, more than such a file should hold")
        data = file.read(size + 1)
        if len(data) != size:
            raise ValueError(f"{name} is cut off")
    return np.frombuffer(data, array_type).reshape(shape, order="F" if by_columns else "C")
