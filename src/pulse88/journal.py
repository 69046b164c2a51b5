"""Work done so far, on disk: a file for every chunk of the input, written whole, so that a restart skips what is there.

CHUNK = a line of JSON: key, bytes behind the line, pieces (a row of `Entry` each), refusals
        the struck sketches of all pieces, then the chordal ones, uint32
        for each piece: ids uint8 [T], onsets float64, durations float32, pitch and velocity uint8 [N]

Shape legend: N notes, T ids.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pulse88.corpus import Piece
from pulse88.duplicates import Sketch
from pulse88.labels import Label
from pulse88.rules import Refusal
from pulse88.shards import COLUMNS
from pulse88.written import written_whole


class JournalError(ValueError):
    """Work that was done can't be read; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the selection needs to know of a piece, and where the rest of it lies."""

    source: str
    file: str
    split: str  # the official one; empty if there is none
    path: str  # input/folders/file
    sha256: str  # of the MIDI file
    length: int  # ids
    notes: int
    seconds: float
    opening: str
    struck: int  # shingles of its sketches
    chordal: int
    chunk: str = ""  # file of the chunk
    struck_at: int = 0  # bytes from the beginning of that file
    chordal_at: int = 0
    notes_at: int = 0

    @property
    def name(self) -> str:
        return f"{self.source}/{self.file}"


_STORED = [field.name for field in fields(Entry) if field.name not in ("chunk", "struck_at", "chordal_at", "notes_at")]
_NOTE_BYTES = sum(np.dtype(kind).itemsize for kind in COLUMNS.values())


class Refused(NamedTuple):
    """A file that is not kept, and why."""

    path: str
    rule: str
    reason: str


class Chunk(NamedTuple):
    """What is known of a chunk without reading its notes."""

    key: str
    entries: list[Entry]
    refused: list[Refused]


def entry_of(label: Label, path: str, sha256: str, piece: Piece) -> Entry:
    print_ = piece.fingerprint
    return Entry(
        *label,
        path=path,
        sha256=sha256,
        length=len(piece.ids),
        notes=len(piece.pitch),
        seconds=round(piece.seconds, 3),
        opening=print_.opening,
        struck=len(print_.struck),
        chordal=len(print_.chordal),
    )


def write_chunk(
    path: Path, key: str, pieces: Sequence[tuple[Entry, Piece]], refused: Iterable[tuple[str, Refusal]]
) -> None:
    """Writes a chunk, whole or not at all."""
    rows = [{name: getattr(entry, name) for name in _STORED} for entry, _ in pieces]
    columns: list[NDArray] = [piece.fingerprint.struck for _, piece in pieces]
    columns += [piece.fingerprint.chordal for _, piece in pieces]
    for _, piece in pieces:
        columns += (piece.ids, piece.onset, piece.duration, piece.pitch, piece.velocity)
    header = {"key": key, "bytes": sum(column.nbytes for column in columns), "pieces": rows}
    line = json.dumps(header | {"refused": [[path, *refusal] for path, refusal in refused]}, separators=(",", ":"))
    with written_whole(path) as partial, partial.open("wb") as file:
        file.write(line.encode() + b"\n")
        file.writelines(np.ascontiguousarray(column).data for column in columns)


def read_chunk(path: Path) -> Chunk:
    """The header of a chunk; JournalError if it isn't one."""
    try:
        header, at = _header(path)
        rows: list[dict[str, Any]] = header["pieces"]
        struck_at = at
        chordal_at = struck_at + 4 * sum(row["struck"] for row in rows)
        notes_at = chordal_at + 4 * sum(row["chordal"] for row in rows)
        name, entries = str(path), []
        for row in rows:
            entries.append(Entry(**row, chunk=name, struck_at=struck_at, chordal_at=chordal_at, notes_at=notes_at))
            struck_at += 4 * row["struck"]
            chordal_at += 4 * row["chordal"]
            notes_at += row["length"] + row["notes"] * _NOTE_BYTES
        return Chunk(header["key"], entries, [Refused(*row) for row in header["refused"]])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise JournalError(f"{path}: {error}; delete it, and prepare again") from error


def key_of(path: Path) -> str:
    """The key of a chunk; empty if there is none, or none that can be read."""
    try:
        return str(_header(path)[0]["key"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The first line of a chunk, and where the bytes behind it begin; ValueError if they aren't all there."""
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.readline())
        at = file.tell()
        if file.seek(0, os.SEEK_END) != at + header["bytes"]:
            raise ValueError("it is not whole")
    return header, at


def read_sketches(entries: Sequence[Entry], kind: str) -> list[Sketch]:
    """The `struck` or `chordal` sketch of each entry."""
    places = [(entry.chunk, getattr(entry, f"{kind}_at"), 4 * getattr(entry, kind)) for entry in entries]
    sketches = [np.zeros(0, np.uint32)] * len(entries)
    by_chunk = itertools.groupby(sorted(range(len(entries)), key=places.__getitem__), key=lambda i: places[i][0])
    for chunk, group in by_chunk:
        indices = list(group)
        first, end = places[indices[0]][1], sum(places[indices[-1]][1:])
        with Path(chunk).open("rb") as file:
            block = _read(file, first, end - first)
        for index in indices:
            _, at, size = places[index]
            sketches[index] = np.frombuffer(block[at - first : at - first + size], np.uint32)
    return sketches


def read_pieces(entries: Iterable[Entry]) -> Iterator[tuple[NDArray[np.uint8], Mapping[str, NDArray]]]:
    """Ids [T] and the COLUMNS of a shard [N] of each entry, in their order."""
    for chunk, group in itertools.groupby(entries, key=lambda entry: entry.chunk):
        with Path(chunk).open("rb") as file:
            for entry in group:
                data = _read(file, entry.notes_at, entry.length + entry.notes * _NOTE_BYTES)
                columns, at = {}, entry.length
                for name, kind in COLUMNS.items():
                    columns[name] = np.frombuffer(data, kind, entry.notes, at)
                    at += columns[name].nbytes
                yield np.frombuffer(data, np.uint8, entry.length), columns


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    data = file.read(size)
    if len(data) < size:
        raise JournalError(f"{file.name}: shorter than it was; delete it, and prepare again")
    return data
