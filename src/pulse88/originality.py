"""Whether music is new: its longest overlap with the training corpus, beside what held-out music has by chance.

Music that quotes nothing overlaps too: scales, cadences, figures. So an index carries how much excerpts of real
held-out pieces overlap with its corpus, and a finding says how many of them overlap as much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse88 import overlap_index, shards
from pulse88.batches import TokenCorpus
from pulse88.notes import Performance
from pulse88.overlap_index import Match, OverlapIndex, OverlapIndexError
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import TimeGrid

INDEX_NAME = "originality.npz"
EXCERPT_NOTES = 512  # of held-out pieces; about a minute and a half, and the model's context
CANDIDATES = 5  # pieces that are compared note by note where the corpus is at hand

Tell = Callable[[float, str], None]
NamedNotes = tuple[str, NDArray[np.float64], NDArray[np.uint8]]  # name, onsets (seconds), pitches


@dataclass(frozen=True)
class Finding:
    """The longest overlap of some music with an index's corpus; 0 notes if there is none."""

    notes: int  # at least so many, or exactly so many if `match` is there
    first: int  # places of the earliest and the latest of them in the music
    last: int
    begins: float  # seconds in the music
    ends: float
    piece: str  # source/file
    as_much: float | None  # share of held-out excerpts that overlap as much or more; None if the index has none
    match: Match | None  # note by note, where the corpus is at hand

    def lines(self, index: OverlapIndex) -> list[str]:
        """Sentences for people."""
        if not self.notes:
            missed = f"an overlap of {index.resolution} notes or more would have been found"
            return [f"no overlap with {len(index.names):,} pieces: {missed}"]
        said = f"longest overlap: {'' if self.match else 'at least '}{self.notes} notes"
        lines = [f"{said}, {self.begins:.1f} to {self.ends:.1f} s, with {self.piece}"]
        if self.match:
            where = f"there from {self.match.seconds:.1f} s on, {self.match.semitones:+d} semitones"
            tempo = f", played {self.match.tempo:.2f} times as fast" if np.isfinite(self.match.tempo) else ""
            lines.append(where + tempo)
        if self.as_much is not None:
            held_out = index.about["held_out"]
            lines.append(
                f"{self.as_much:.1%} of {held_out['excerpts']:,} excerpts of {held_out['notes']} notes of held-out "
                "pieces overlap as much"
            )
        return lines


def default_index() -> Path:
    """The index that came with pulse88, beside its weights; OverlapIndexError, naming the remedy, if none did."""
    package = Path(__file__).parent
    for folder in (package / "_weights", package / "weights", package.parents[1] / "weights"):
        if (folder / INDEX_NAME).is_file():
            return folder / INDEX_NAME
    raise OverlapIndexError(
        f"no {INDEX_NAME} came with pulse88: make an index of the training data with `pulse88 index DATA -o INDEX.npz` "
        "and name it by --index"
    )


def notes_of(corpus: TokenCorpus, grid: TimeGrid) -> Iterator[NamedNotes]:
    """Name, onsets (seconds) and pitches of every piece, as the model reads them."""
    tokenizer = Tokenizer(grid)
    for name, start, length in zip(corpus.names, corpus.starts.tolist(), corpus.lengths.tolist(), strict=True):
        piece = tokenizer.decode(corpus.tokens[start : start + length])
        yield name, piece.onset, piece.pitch


def make_index(
    data: Path, *, split: str, held_out: str, every: int, tell: Tell = lambda share, remark: None
) -> OverlapIndex:
    """The index of a split of prepared data, with the overlaps of `held_out`'s excerpts if the data have any."""
    grid = shards.read_grid(data)
    corpus = shards.read_split(data, split)
    known = {piece["split"] for piece in shards.read_manifest(data)["pieces"]}
    total = len(corpus.names)

    def told() -> Iterator[NamedNotes]:
        for done, piece in enumerate(notes_of(corpus, grid), 1):
            tell(0.8 * done / total, f"{done:,} of {total:,} pieces")
            yield piece

    index = overlap_index.build(told(), every)
    about: dict[str, Any] = {"split": split, "pieces": total, "corpus": corpus.fingerprint}
    if held_out in known:
        tell(0.8, f"measuring {held_out}")
        about["held_out"] = held_out_overlaps(index, notes_of(shards.read_split(data, held_out), grid)) | {
            "split": held_out
        }
    return replace(index, about=about)


def held_out_overlaps(index: OverlapIndex, pieces: Iterable[NamedNotes]) -> dict[str, Any]:
    """How many excerpts of EXCERPT_NOTES notes have which longest overlap, by notes as text; shorter pieces are one."""
    counts: dict[int, int] = {}
    names = set()
    for name, onset, pitch in pieces:
        names.add(name)
        for begin in range(0, max(1, len(onset) - EXCERPT_NOTES + 1), EXCERPT_NOTES):
            excerpt = slice(begin, begin + EXCERPT_NOTES)
            overlaps = index.overlaps(onset[excerpt], pitch[excerpt])
            notes = overlaps[0].notes if overlaps else 0
            counts[notes] = counts.get(notes, 0) + 1
    return {
        "pieces": len(names),
        "notes": EXCERPT_NOTES,
        "excerpts": sum(counts.values()),
        "overlaps": {str(notes): count for notes, count in sorted(counts.items())},
    }


def as_much_held_out(index: OverlapIndex, notes: int) -> float | None:
    """Share of the held-out excerpts that overlap with so many notes or more; None if the index has none."""
    held_out = index.about.get("held_out")
    if not held_out or not held_out["excerpts"]:
        return None
    return sum(count for n, count in held_out["overlaps"].items() if int(n) >= notes) / held_out["excerpts"]


def inspect(performance: Performance, index: OverlapIndex, data: Path | None = None) -> Finding:
    """The longest overlap of a performance; to the note if `data`, which the index was made of, is at hand.

    OverlapIndexError if the index was made of other data.
    """
    overlaps = index.overlaps(performance.onset, performance.pitch)
    if not overlaps:
        return Finding(0, 0, 0, 0.0, 0.0, "", None, None)
    best, match = overlaps[0], None
    notes, first, last, name = best.notes, best.first, best.last, index.names[best.piece]
    if data is not None:
        matches = _matches(performance, index, data, list(dict.fromkeys(overlap.piece for overlap in overlaps)))
        name, match = max(matches.items(), key=lambda item: item[1].notes)
        notes, first, last = match.notes, match.first, match.last
    begins, ends = float(performance.onset[first]), float(performance.onset[last] + performance.duration[last])
    return Finding(notes, first, last, begins, ends, name, as_much_held_out(index, best.notes), match)


def _matches(performance: Performance, index: OverlapIndex, data: Path, pieces: list[int]) -> dict[str, Match]:
    """The first CANDIDATES of the pieces, by name, note by note."""
    corpus = shards.read_split(data, index.about["split"])
    if corpus.fingerprint != index.about["corpus"]:
        raise OverlapIndexError(f"{data} is not what the index was made of: name that, or make an index of this")
    tokenizer = Tokenizer(shards.read_grid(data))
    found = {}
    for piece in pieces[:CANDIDATES]:
        start = int(corpus.starts[piece])
        notes = tokenizer.decode(corpus.tokens[start : start + int(corpus.lengths[piece])])
        found[index.names[piece]] = overlap_index.exact(performance.onset, performance.pitch, notes.onset, notes.pitch)
    return found
