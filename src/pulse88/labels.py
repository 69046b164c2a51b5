"""What a file's place and the lists given along say about it: its source, its name, its official split, its licence."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pulse88.archives import ARCHIVE_SUFFIXES, is_midi

TRAIN, VALIDATION, TEST = "train", "validation", "test"
UNKNOWN = "unknown"  # licence of a source that no table names
_SPLITS = {
    **dict.fromkeys((TRAIN, "training"), TRAIN),
    **dict.fromkeys((VALIDATION, "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys((TEST, "testing"), TEST),
}
_PATH_COLUMNS = ("path", "file", "filename", "midi_filename")


class Label(NamedTuple):
    """Where a piece comes from. `source/file` is its name."""

    source: str
    file: str
    split: str  # the official one; empty if there is none


@dataclass(frozen=True)
class Labels:
    """Official splits and licences. An official split is a line of a list or, without one, a folder of its name."""

    splits: Mapping[str, str] = field(default_factory=dict)  # path of a file, or its end, to train/validation/test
    licences: Mapping[str, str] = field(default_factory=dict)  # source to licence

    @classmethod
    def read(cls, lists: Sequence[str] = (), licences: Sequence[str] = ()) -> Labels:
        """Labels from what people give: `SPLIT=LIST.txt` or `TABLE.csv`, and `SOURCE=LICENCE` or `TABLE.json`.

        A list has a path a line, a CSV a column `split` and one of path, file, filename and midi_filename, a JSON an
        object of sources. ValueError that names the file and the line.
        """
        splits: dict[str, str] = {}
        for given in lists:
            splits.update(_listed(given))
        texts: dict[str, str] = {}
        for given in licences:
            texts.update(_licences(given))
        return cls(splits, texts)

    def of(self, top: str, path: str) -> Label:
        """The label of `path` within the input called `top`.

        The source is the outermost folder that the licences name; else the folder in a folder called train, validation
        or test; else the input itself.
        """
        *folders, name = path.split("/")
        at = next((i for i, folder in enumerate(folders) if folder.lower() in _SPLITS), None)
        official = "" if at is None else _SPLITS[folders[at].lower()]
        kept = [folder for i, folder in enumerate(folders) if i != at]
        known = next((i for i, folder in enumerate(kept) if folder in self.licences), None)
        if known is None and at is not None and at < len(kept) and top not in self.licences:
            known = at
        source, inner = (top, kept) if known is None else (kept[known], kept[known + 1 :])
        listed = next((self.splits[end] for end in _ends(f"{top}/{path}") if end in self.splits), "")
        return Label(source, "/".join((*inner, name)), listed or official)

    def licence(self, source: str) -> str:
        return self.licences.get(source, UNKNOWN)

    def unused(self, paths: Iterable[str]) -> list[str]:
        """Lines of the lists that are no path's end."""
        seen = {end for path in paths for end in _ends(path)} if self.splits else set()
        return sorted(set(self.splits) - seen)


def top_name(source: Path) -> str:
    """What an input is called: its folder's name, or its archive's without the suffix; a MIDI file's folder's."""
    whole = source.resolve()
    name = (whole.parent if is_midi(whole.name) and not whole.is_dir() else whole).name or "input"
    longest = max((s for s in ARCHIVE_SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(longest)] or name


def _ends(path: str) -> Iterator[str]:
    """A path and what is left of it without its first folders, longest first."""
    yield path
    while "/" in path:
        path = path.split("/", 1)[1]
        yield path


def _listed(given: str) -> dict[str, str]:
    split, equals, file = given.partition("=")
    if equals:
        return dict.fromkeys(_lines(Path(file)), _split_of(split, given))
    path = Path(given)
    rows = csv.DictReader(_lines(path), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    columns = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
    named = next((columns[name] for name in _PATH_COLUMNS if name in columns), None)
    if "split" not in columns or named is None:
        raise ValueError(
            f"{path}: its first line names no column `split`, or none of {', '.join(_PATH_COLUMNS)}; "
            "or give a list of paths as validation=LIST.txt"
        )
    return {
        (row[named] or "").strip().replace("\\", "/"): _split_of(row[columns["split"]] or "", f"{path}: row {number}")
        for number, row in enumerate(rows, 2)
    }


def _split_of(name: str, where: str) -> str:
    if name.strip().lower() not in _SPLITS:
        raise ValueError(f"{where}: no split {name.strip()!r}, there are {TRAIN}, {VALIDATION} and {TEST}")
    return _SPLITS[name.strip().lower()]


def _licences(given: str) -> dict[str, str]:
    source, equals, licence = given.partition("=")
    if equals:
        return {source.strip(): licence.strip()}
    try:
        table = json.loads(_text(Path(given)))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{given}: no JSON ({error}): give an object of sources and licences") from error
    if not isinstance(table, dict) or not all(isinstance(text, str) for text in table.values()):
        raise ValueError(f'{given}: not an object of sources and licences, such as {{"maestro": "CC BY-NC-SA 4.0"}}')
    return table


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: can't be read ({error}): check the name, and that it is UTF-8 text") from error
