"""The room in which MIDI files become training data: parse in parallel, select, write shards and a manifest.

Work goes by chunks of the input, each of which leaves a file under DATA/work when it is done. So a run that was
interrupted goes on where it was, and parts of an array job are joined by looking at all their chunks together: which
pieces are copies or versions of one another is decided at the end, over everything, in the same way whoever parsed it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pulse88 import archives, crew, journal
from pulse88.archives import Limits
from pulse88.corpus import Found, Piece, examine, find
from pulse88.journal import Entry, Refused
from pulse88.labels import Labels, top_name
from pulse88.rules import Refusal, Rules
from pulse88.selection import select
from pulse88.shards import FORMAT, MANIFEST, ShardWriter, write_manifest
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import GRIDS, TimeGrid
from pulse88.written import make_folder, write_whole

WORK = "work"
CHUNK_FILES, CHUNK_BYTES = 64, 8 * 2**20
Tell = Callable[[float, str], None]  # share done, 0-1, and a remark


class PrepareError(ValueError):
    """Data can't be prepared as asked; the message says why, and the remedy."""


@dataclass(frozen=True)
class Job:
    """What is asked for: equal jobs over equal inputs give equal bytes."""

    rules: Rules = field(default_factory=Rules)
    labels: Labels = field(default_factory=Labels)

    def __post_init__(self) -> None:
        if self.rules.grid not in GRIDS:
            raise PrepareError(f"no time grid {self.rules.grid!r}, there are {', '.join(GRIDS)}")

    @property
    def grid(self) -> TimeGrid:
        return GRIDS[self.rules.grid]

    def to_dict(self) -> dict[str, Any]:
        grid = json.loads(self.grid.to_json())
        labels = {"splits": dict(self.labels.splits), "licences": dict(self.labels.licences)}
        return {"format": FORMAT, "rules": asdict(self.rules), "labels": labels, "time_grid": grid}

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        return cls(Rules(**data["rules"]), Labels(**data["labels"]))


class Summary(NamedTuple):
    """What came of a run."""

    manifest: dict[str, Any]
    sha256: str  # of the manifest's bytes


class Parsed(NamedTuple):
    """What came of parsing."""

    files: int
    chunks: int
    were_there: int  # chunks that an earlier run had left


class _Task(NamedTuple):
    rules: Rules
    job: str  # its digest
    path: Path  # of the chunk
    files: list[Found]


def parse(
    inputs: Sequence[Path],
    data: Path,
    job: Job,
    *,
    part: tuple[int, int] = (1, 1),
    processes: int = 0,
    tell: Tell = lambda share, remark: None,
    chunk_files: int = CHUNK_FILES,
) -> Parsed:
    """Reads one part (number, of how many) of the inputs, chunk by chunk, into DATA/work.

    Chunks that are there already, of the same bytes and the same job, are left alone. ValueError for inputs that don't
    exist; whatever is wrong with a file is told in the manifest.
    """
    number, of = part
    work = data / WORK
    make_folder(work)
    part_file = work / f"part-{number}-of-{of}.json"
    for old in (part_file, *work.glob("part-*-of-*.json")):
        if old == part_file or not old.stem.endswith(f"-of-{of}"):
            old.unlink(missing_ok=True)
    total = sum(archives.bytes_of(source) for source in inputs) or 1
    listing = hashlib.sha256()
    counts = Counter[str]()

    def tasks() -> Iterator[_Task]:
        found = find(inputs, job.labels, Limits(file_bytes=1024 * job.rules.largest_file))
        for index, files in enumerate(_chunks(found, chunk_files)):
            counts["chunks"] += 1
            for file in files:
                listing.update(f"{file.path}\n{file.size}\n{file.problem}\n".encode())
            if index % of == number - 1:
                yield _Task(job.rules, job.digest, work / f"chunk-{index:06d}", files)

    for done in crew.share_out(parse_chunk, tasks(), processes):
        task, was_there = done.task, done.result
        if was_there is None:
            was_there = parse_chunk(_without_killers(task))
        counts["files"] += len(task.files)
        counts["done"] += 1
        counts["were there"] += was_there
        tell(min(task.files[-1].passed / max(total, 1), 1.0), f"{counts['files']:,} files")
    if not counts["chunks"]:
        raise PrepareError(f"no MIDI files in {', '.join(map(str, inputs))}: name folders or archives that hold some")
    row = job.to_dict() | {
        "part": [number, of],
        "chunks": counts["chunks"],
        "inputs": [top_name(source) for source in inputs],
        "listing": listing.hexdigest(),
    }
    write_whole(part_file, json.dumps(row).encode())
    return Parsed(counts["files"], counts["done"], counts["were there"])


def _chunks(found: Iterable[Found], most: int) -> Iterator[list[Found]]:
    chunk: list[Found] = []
    size = 0
    for file in found:
        chunk.append(file)
        size += 0 if file.problem else file.size
        if len(chunk) >= most or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def parse_chunk(task: _Task) -> bool:
    """Leaves the file of a chunk; whether it was there already."""
    read = [_bytes(file, 1024 * task.rules.largest_file) for file in task.files]
    digests = [content if isinstance(content, Refusal) else hashlib.sha256(content).hexdigest() for content in read]
    told = [[file.path, *file.label, digest] for file, digest in zip(task.files, digests, strict=True)]
    key = hashlib.sha256(json.dumps([task.job, told]).encode()).hexdigest()
    if journal.key_of(task.path) == key:
        return True
    tokenizer = Tokenizer(GRIDS[task.rules.grid])
    pieces: list[tuple[Entry, Piece]] = []
    refused: list[tuple[str, Refusal]] = []
    for file, content, digest in zip(task.files, read, digests, strict=True):
        seen = content if isinstance(content, Refusal) else examine(content, task.rules, tokenizer)
        if isinstance(seen, Refusal):
            refused.append((file.path, seen))
        else:
            pieces.append((journal.entry_of(file.label, file.path, str(digest), seen), seen))
    journal.write_chunk(task.path, key, pieces, refused)
    return False


def _bytes(file: Found, most: int) -> bytes | Refusal:
    if file.problem:
        return Refusal("unreadable", file.problem)
    if isinstance(file.data, bytes):
        return file.data
    try:
        with file.data.open("rb") as stream:
            return stream.read(most)
    except PermissionError as error:
        return Refusal("unreadable", error.strerror or str(error))
    except OSError as error:
        raise archives.gone(error, file.data) from error


def _without_killers(task: _Task) -> _Task:
    """The task with every file that kills the process that reads it marked as such."""
    singles = (task._replace(files=[file]) for file in task.files)
    killers = [done.task.files[0] for done in crew.share_out(_examine_only, singles, 1) if done.result is None]
    killed = "the process that read it died; it may want more memory than there is"
    return task._replace(files=[f._replace(problem=killed) if f in killers else f for f in task.files])


def _examine_only(task: _Task) -> bool:
    content = _bytes(task.files[0], 1024 * task.rules.largest_file)
    return (
        not isinstance(content, Refusal) and examine(content, task.rules, Tokenizer(GRIDS[task.rules.grid])) is not None
    )


def merge(parts: Sequence[Path], data: Path, *, tell: Tell = lambda share, remark: None) -> Summary:
    """Joins the parts that `parse` left under the WORK of each folder into shards and a manifest in `data`.

    PrepareError if a part is missing, or the parts are not of one job. The WORK in `data` itself is taken away.
    """
    job, inputs, chunks = _joined([folder / WORK for folder in parts])
    entries = [entry for chunk in chunks for entry in chunk.entries]
    refused = [row for chunk in chunks for row in chunk.refused]
    tell(0.0, "looking for copies")
    kept, rejected = select(entries, job.rules, journal.read_sketches)
    refused += [Refused(entry.path, *refusal) for entry, refusal in rejected]
    make_folder(data)
    (data / MANIFEST).unlink(missing_ok=True)  # Until the end, no manifest tells of shards that are gone.
    for partial in data.glob(".*.partial"):
        partial.unlink()
    writers: dict[str, ShardWriter] = {}
    rows: list[dict[str, Any]] = []
    names: set[str] = set()
    pieces = journal.read_pieces(entry for entry, _ in kept)
    for index, ((entry, split), (ids, notes)) in enumerate(zip(kept, pieces, strict=True)):
        writer = writers.setdefault(split, ShardWriter(data, split))
        place = writer.add(ids, notes)
        name = entry.name if entry.name not in names else f"{entry.name}~{entry.sha256[:8]}"
        names.add(name)
        rows.append(_row(name, entry, split, job.labels.licence(entry.source)) | place._asdict())
        tell(index / len(kept), f"{index:,} pieces written")
    for writer in writers.values():
        writer.close()
    manifest = {
        "format": FORMAT,
        "time_grid": json.loads(job.grid.to_json()),
        "fingerprint": job.grid.fingerprint,
        "rules": asdict(job.rules),
        "inputs": inputs,
        "licences": {source: job.labels.licence(source) for source in sorted({entry.source for entry, _ in kept})},
        "files": len(entries) + len(refused) - len(rejected),
        "counts": _counts((split, entry.source) for entry, split in kept),
        "refusals": dict(sorted(Counter(row.rule for row in refused).items())),
        "unused_list_lines": job.labels.unused([*(e.path for e in entries), *(row.path for row in refused)]),
        "shards": [shard for writer in writers.values() for shard in writer.shards],
        "pieces": rows,
        "refused": [row._asdict() for row in sorted(refused)],
    }
    sha256 = hashlib.sha256(write_manifest(data, manifest)).hexdigest()
    if (data / WORK).is_dir():
        shutil.rmtree(data / WORK)
    return Summary(manifest, sha256)


def _row(name: str, entry: Entry, split: str, licence: str) -> dict[str, Any]:
    """A piece of the manifest, without its place."""
    return {
        **{"name": name, "source": entry.source, "path": entry.path, "sha256": entry.sha256, "split": split},
        **{"licence": licence, "length": entry.length, "notes": entry.notes, "seconds": entry.seconds},
    }


def _counts(kept: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for split, source in sorted(kept):
        counts.setdefault(split, {}).setdefault(source, 0)
        counts[split][source] += 1
    return counts


def _joined(works: Sequence[Path]) -> tuple[Job, list[str], list[journal.Chunk]]:
    """The one job of all parts, its inputs, and every chunk, in order."""
    found: dict[tuple[int, int], tuple[Path, dict[str, Any]]] = {}
    for work in works:
        for path in sorted(work.glob("part-*-of-*.json")):
            row = json.loads(path.read_text())
            found[tuple(row.pop("part"))] = (work, row)
    if not found:
        raise PrepareError(f"no finished part under {', '.join(map(str, works))}: run `pulse88 prepare` first")
    of = max(of for _, of in found)
    missing = [number for number in range(1, of + 1) if (number, of) not in found]
    if missing:
        raise PrepareError(
            f"part {missing[0]} of {of} is not there: run `pulse88 prepare` with --part {missing[0]}/{of}"
        )
    first = found[1, of][1]
    for number in range(1, of + 1):
        if found[number, of][1] != first:
            raise PrepareError(
                f"{found[number, of][0]}: part {number} of {of} was made with other inputs or rules than part 1: "
                "prepare all parts with the same line"
            )
    chunks = []
    for index in range(first["chunks"]):
        work = found[index % of + 1, of][0]
        chunks.append(journal.read_chunk(work / f"chunk-{index:06d}"))
    return Job.from_dict(first), first["inputs"], chunks
