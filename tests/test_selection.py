from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pulse88.duplicates import Sketch
from pulse88.journal import Entry
from pulse88.rules import Rules
from pulse88.selection import Selection, select

Shingles = dict[str, tuple[range, range]]  # struck and chordal, by file


def entry(file: str, split: str = "", notes: int = 1000, **changes: Any) -> Entry:
    base = Entry("s", file, split, f"in/{file}", f"sha-{file}", 4 * notes + 2, notes, 60.0, f"opening-{file}", 0, 0)
    return replace(base, **changes)


def judged(entries: Sequence[Entry], shingles: Shingles | None = None, **rules: Any) -> Selection:
    """The selection, the same in whichever order the pieces are given."""

    def read_sketches(pieces: Sequence[Entry], kind: str) -> list[Sketch]:
        at = ("struck", "chordal").index(kind)
        names = sorted(piece.name for piece in entries)
        own = {name: range(10_000 * n, 10_000 * n + 100) for n, name in enumerate(names, 1)}
        return [np.array((shingles or {}).get(p.file, (own[p.name],) * 2)[at], np.uint32) for p in pieces]

    verdicts = []
    for seed in range(3):
        mixed = list(entries)
        random.Random(seed).shuffle(mixed)
        kept, refused = select(mixed, Rules(**rules), read_sketches)
        verdicts.append(Selection(kept, sorted(refused, key=lambda row: row[0].name)))
    assert verdicts[0] == verdicts[1] == verdicts[2]
    return verdicts[0]


def splits(selection: Selection) -> dict[str, str]:
    return {piece.file: split for piece, split in selection.kept}


def reasons(selection: Selection) -> dict[str, tuple[str, str]]:
    return {piece.file: (refusal.rule, refusal.reason) for piece, refusal in selection.refused}


def test_of_byte_copies_and_transposed_copies_the_held_out_one_stays() -> None:
    found = judged(
        [
            entry("a", "train", sha256="x"),
            entry("b", "validation", sha256="x"),
            entry("c", "train", opening="o", notes=9000),
            entry("d", "test", opening="o"),
            entry("e", "", opening="p", notes=9000),
            entry("f", "train", opening="p"),
            entry("g", "train", opening="q"),
            entry("h", "train", opening="q", notes=1001),
        ]
    )
    assert splits(found) == {"b": "validation", "d": "test", "f": "train", "h": "train"}
    assert reasons(found) == {
        "a": ("byte copy", "of s/b"),
        "c": ("transposed copy", "of s/d"),
        "e": ("transposed copy", "of s/f"),
        "g": ("transposed copy", "of s/h"),
    }


def test_near_duplicates_go_but_not_what_is_like_them_alone() -> None:
    # b shares 60 of 100 with a and with c, which share 20 with each other: b goes, c stays.
    shingles = {
        "a": (range(100), range(900, 1000)),
        "b": (range(40, 140), range(1900, 2000)),
        "c": (range(80, 180), range(2900, 3000)),
    }
    pieces = [entry("a", "train", 1002), entry("b", "train", 1001), entry("c", "train", 1000)]
    found = judged(pieces, shingles)
    assert splits(found) == {"a": "train", "c": "train"}
    assert reasons(found) == {"b": ("near-duplicate", "of s/a, 60% of their 12-note shingles are common")}
    assert len(judged(pieces, shingles, near_duplicate=0.61).kept) == 3
    assert len(judged(pieces, shingles, near_duplicate=1.1).kept) == 3


def test_versions_of_held_out_pieces_are_kept_out_of_training() -> None:
    shingles = {
        "held": (range(100), range(1000, 1100)),
        "version": (range(200, 300), range(1085, 1185)),
        "other": (range(300, 400), range(1180, 1280)),
    }
    pieces = [entry("held", "validation"), entry("version", "train"), entry("other", "train")]
    found = judged(pieces, shingles)
    assert splits(found) == {"held": "validation", "other": "train"}
    assert reasons(found) == {
        "version": ("version of held-out", "15% of the shingles common with s/held, which is held out")
    }
    assert len(judged(pieces, shingles, same_composition=0.2).kept) == 3
    assert len(judged(pieces, shingles, same_composition=2.0).kept) == 3


def test_versions_without_a_split_follow_the_official_one() -> None:
    shingles = {
        "official": (range(100), range(1000, 1100)),
        "first": (range(200, 300), range(1080, 1180)),
        "second": (range(300, 400), range(1160, 1260)),
    }
    for split in ("train", "validation", "test"):
        found = judged([entry("official", split), entry("first"), entry("second")], shingles, validation_share=0.9)
        assert splits(found) == dict.fromkeys(shingles, split)


def test_versions_share_a_side_and_shares_are_as_asked_for() -> None:
    shingles = {}
    for n in range(2000):
        composition = n // 2
        shingles[f"{n}"] = (
            range(10**6 + 200 * n, 10**6 + 200 * n + 100),
            range(200 * composition, 200 * composition + 100),
        )
    entries = [entry(f"{n}") for n in range(2000)]
    found = splits(judged(entries, shingles, validation_share=0.1, test_share=0.2))
    assert all(found[f"{n}"] == found[f"{n + 1}"] for n in range(0, 2000, 2))
    counts = Counter(found.values())
    assert 160 <= counts["validation"] <= 240
    assert 330 <= counts["test"] <= 470
    # What is added changes nothing for what was there.
    fewer = splits(judged(entries[:1000], shingles, validation_share=0.1, test_share=0.2))
    assert fewer == {file: split for file, split in found.items() if int(file) < 1000}


def test_of_few_compositions_one_is_held_out_and_official_splits_are_left_alone() -> None:
    assert Counter(splits(judged([entry("a"), entry("b"), entry("c")], validation_share=0.001)).values()) == {
        "train": 2,
        "validation": 1,
    }
    assert splits(judged([entry("a")], validation_share=0.001)) == {"a": "train"}
    assert set(splits(judged([entry("a"), entry("b")], validation_share=0.0)).values()) == {"train"}
    official = [entry("a", "validation"), entry("b"), entry("c", "train")]
    assert splits(judged(official, validation_share=0.0)) == {"a": "validation", "b": "train", "c": "train"}
    assert set(splits(judged([entry("a", "train"), entry("b", "train")])).values()) == {"train"}


def test_most_pieces_are_drawn_evenly_and_the_same_ones_stay_drawn() -> None:
    entries = [entry(f"{n}", "validation" if n % 4 == 0 else "train") for n in range(400)]
    hundred, two_hundred = judged(entries, max_pieces=100), judged(entries, max_pieces=200)
    assert (len(hundred.kept), len(hundred.refused)) == (100, 300)
    assert splits(hundred).items() < splits(two_hundred).items()
    assert 15 <= Counter(splits(hundred).values())["validation"] <= 37
    assert {reasons(hundred)[file] for file in reasons(hundred)} == {
        ("max pieces", "not among the 100 pieces that were drawn")
    }
    assert len(judged(entries, max_pieces=100_000).kept) == 400


def test_kept_pieces_come_by_split_source_and_file() -> None:
    other = entry("a", "train", source="t", sha256="other", opening="other")
    entries = [entry("b", "train"), other, entry("c", "test"), entry("a", "train")]
    found = judged(entries)
    assert [(split, piece.name) for piece, split in found.kept] == [
        ("test", "s/c"),
        ("train", "s/a"),
        ("train", "s/b"),
        ("train", "t/a"),
    ]
