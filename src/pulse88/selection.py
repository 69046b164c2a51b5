"""Which pieces are kept and on which side of the split: copies go, versions of one composition share a side.

Held-out pieces come first, so that of two copies the held-out one stays, then those of official training sets, then the
others; longer ones before shorter ones. Nothing depends on the order in which pieces are given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pulse88.duplicates import Likeness, Sketch, groups, likenesses
from pulse88.journal import Entry
from pulse88.labels import TEST, TRAIN, VALIDATION
from pulse88.rules import Refusal, Rules

_RANK = {TEST: 0, VALIDATION: 1, TRAIN: 2, "": 3}

ReadSketches = Callable[[Sequence[Entry], str], Sequence[Sketch]]


class Selection(NamedTuple):
    """The verdict on every piece."""

    kept: list[tuple[Entry, str]]  # with its split, by split, source and file
    refused: list[tuple[Entry, Refusal]]


def select(entries: Sequence[Entry], rules: Rules, read_sketches: ReadSketches) -> Selection:
    """Judges all pieces of a corpus together, by what `read_sketches` (as journal.read_sketches) says of them."""
    refused: list[tuple[Entry, Refusal]] = []
    pieces = sorted(entries, key=lambda e: (_RANK[e.split], -e.notes, e.source, e.file, e.sha256, e.path))
    pieces = _first_of_each(pieces, "sha256", "byte copy", refused)
    pieces = _first_of_each(pieces, "opening", "transposed copy", refused)
    pieces = _without_near_duplicates(pieces, rules, read_sketches, refused)
    likes = _likenesses(pieces, "chordal", rules.same_composition, read_sketches)
    kept = _split(pieces, likes, rules, refused)
    if 0 < rules.max_pieces < len(kept):
        drawn = sorted(kept, key=lambda row: _fraction("draw", row[0].sha256))
        kept = drawn[: rules.max_pieces]
        reason = f"not among the {rules.max_pieces:,} pieces that were drawn"
        refused += [(piece, Refusal("max pieces", reason)) for piece, _ in drawn[rules.max_pieces :]]
    kept.sort(key=lambda row: (row[1], row[0].source, row[0].file, row[0].sha256))
    return Selection(kept, refused)


def _first_of_each(pieces: Sequence[Entry], field: str, rule: str, refused: list[tuple[Entry, Refusal]]) -> list[Entry]:
    first: dict[str, Entry] = {}
    for piece in pieces:
        earlier = first.setdefault(getattr(piece, field), piece)
        if earlier is not piece:
            refused.append((piece, Refusal(rule, f"of {earlier.name}")))
    return list(first.values())


def _likenesses(pieces: Sequence[Entry], kind: str, least: float, read_sketches: ReadSketches) -> list[Likeness]:
    if least > 1:
        return []
    return likenesses(read_sketches(pieces, kind), [piece.notes for piece in pieces], least)


def _without_near_duplicates(
    pieces: list[Entry], rules: Rules, read_sketches: ReadSketches, refused: list[tuple[Entry, Refusal]]
) -> list[Entry]:
    gone: set[int] = set()
    for like in _likenesses(pieces, "struck", rules.near_duplicate, read_sketches):  # ascending by second
        if like.first not in gone and like.second not in gone:
            gone.add(like.second)
            reason = f"of {pieces[like.first].name}, {like.share:.0%} of their 12-note shingles are common"
            refused.append((pieces[like.second], Refusal("near-duplicate", reason)))
    return [piece for index, piece in enumerate(pieces) if index not in gone]


def _split(
    pieces: list[Entry], likes: list[Likeness], rules: Rules, refused: list[tuple[Entry, Refusal]]
) -> list[tuple[Entry, str]]:
    """Pieces with their splits. Those without an official one follow the other versions, or their group's hash.

    Official splits are obeyed, but a training piece that is a version of a held-out one is refused.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups(len(pieces), likes).tolist()):
        members.setdefault(group, []).append(index)
    split = [piece.split for piece in pieces]
    undecided: list[tuple[float, list[int]]] = []
    for group in members.values():
        official = min((split[i] for i in group if split[i]), key=lambda name: _RANK[name], default="")
        if official:
            for index in group:
                split[index] = split[index] or official
        else:
            undecided.append((_fraction("split", min(pieces[i].sha256 for i in group)), group))
    for fraction, group in undecided:
        for index in group:
            split[index] = _side(fraction, rules)
    if undecided and len(members) > 1 and rules.validation_share > 0 and VALIDATION not in split:
        for index in min(undecided)[1]:
            split[index] = VALIDATION  # Few compositions: one of them is held out all the same.
    leaks: dict[int, Likeness] = {}
    for like in likes:
        pair = (like.first, like.second)
        for index, other in (pair, pair[::-1]):
            if split[index] == TRAIN != split[other] and like.share > getattr(leaks.get(index), "share", 0.0):
                leaks[index] = Likeness(other, index, like.share)
    for index, like in leaks.items():
        reason = f"{like.share:.0%} of the shingles common with {pieces[like.first].name}, which is held out"
        refused.append((pieces[index], Refusal("version of held-out", reason)))
    return [(piece, split[index]) for index, piece in enumerate(pieces) if index not in leaks]


def _side(fraction: float, rules: Rules) -> str:
    if fraction < rules.validation_share:
        return VALIDATION
    return TEST if fraction < rules.validation_share + rules.test_share else TRAIN


def _fraction(purpose: str, sha256: str) -> float:
    """A number in [0, 1) that a piece's bytes decide alone, so that it stays where it is when others come."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{sha256}".encode()).digest()[:7], "big") / 2**56
