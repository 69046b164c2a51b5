from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from command_line import bad, good, run
from made_corpus import corpus, write_folder, write_tar
from pulse88 import crew, prepare


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with music/ in which the commands run."""
    write_folder(tmp_path / "music", corpus())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_prepare_tells_what_is_kept_and_what_is_refused(folder: Path) -> None:
    said = good("prepare", "music", "-o", "data", "--workers", "0").splitlines()
    assert said[:4] == [
        "source  train  validation",
        "first       9           4",
        "second      7           0",
        "sum        16           4",
    ]
    assert said[4] == (
        "Refused 7 of 27 files: byte copy 2, length 1, near-duplicate 1, transposed copy 1, unreadable 1, "
        "version of held-out 1."
    )
    digest = hashlib.sha256((folder / "data" / "manifest.json").read_bytes()).hexdigest()
    assert said[5] == f"Wrote data/manifest.json, sha256 {digest}."
    assert said[6].startswith("Read 27 files in ")
    assert said[6].endswith("files a second and core.")
    assert sorted(path.name for path in (folder / "data").iterdir()) == [
        *("manifest.json", "train-00000.npz", "validation-00000.npz"),
    ]


def test_verbose_names_every_refusal_on_the_error_stream(folder: Path) -> None:
    result = run("prepare", "music", "-o", "data", "--workers", "0", "-v")
    assert "music/train/second/transposed.mid: transposed copy: of first/04.mid" in result.stderr.splitlines()
    assert len(result.stderr.splitlines()) == 7


def test_a_tar_and_parts_and_processes_give_the_same_manifest(folder: Path) -> None:
    write_tar(folder / "music.tar.xz", corpus())
    good("prepare", "music.tar.xz", "-o", "one", "--workers", "1")
    for number in (1, 2, 3):
        said = good("prepare", "music", "-o", "two", "--part", f"{number}/3", "--workers", "0")
        assert said.startswith(f"Part {number} of 3: ")
        assert said.endswith("When all parts are done: pulse88 merge two -o two\n")
    joined = good("merge", "two", "-o", "two")
    assert "Refused 7 of 27 files" in joined
    assert (folder / "one/manifest.json").read_bytes() == (folder / "two/manifest.json").read_bytes()
    assert (folder / "one/train-00000.npz").read_bytes() == (folder / "two/train-00000.npz").read_bytes()


def test_every_rule_has_an_option(folder: Path) -> None:
    (folder / "held.txt").write_text("first/00.mid\nnowhere.mid\n")
    (folder / "licences.json").write_text(json.dumps({"first": "MIT"}))
    result = run(
        *("prepare", "music", "-o", "data", "--workers", "0", "--grid", "published", "--min-notes", "50"),
        *("--min-seconds", "1", "--max-density", "40", "--quantised", "never", "--near-duplicate", "1.1"),
        *("--same-composition", "1.1", "--max-pieces", "21", "--validation-share", "0", "--largest-file", "100"),
        *("--splits", "test=held.txt", "--licences", "licences.json", "--licences", "second=CC0"),
    )
    assert result.exit_code == 0
    assert "the lists name nowhere.mid, which is not in the input" in result.stderr
    manifest = json.loads((folder / "data" / "manifest.json").read_text())
    wanted = {"grid": "published", "min_notes": 50, "min_seconds": 1.0, "quantised": "never", "max_pieces": 21}
    assert manifest["rules"].items() >= wanted.items()
    assert manifest["licences"] == {"first": "MIT", "second": "CC0"}
    assert set(manifest["counts"]["test"]) == {"first"}


def test_it_goes_on_where_it_was_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_whole", interrupted)  # of the file that says that the part is done
        result = run("prepare", "music", "-o", "data", "--workers", "0")
    assert result.exit_code == 130
    assert "What is read is kept in data/work; the same line goes on from there." in result.stderr
    said = good("prepare", "music", "-o", "data", "--workers", "0")
    assert "Read 27 files, 1 of 1 chunks of them were read before in " in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["prepare", "nowhere", "-o", "d"], 1, "nowhere: there is no such file or folder"),
        (["prepare", "-o", "d"], 2, "Missing argument"),
        (["prepare", "music"], 2, "Missing option '-o'"),
        (["prepare", "music", "-o", "d", "--grid", "coarse"], 1, "no time grid 'coarse'"),
        (["prepare", "music", "-o", "d", "--min-notes", "-1"], 2, "min_notes must be 0 or more"),
        (["prepare", "music", "-o", "d", "--part", "4/3"], 2, "--part 4/3 is not N/OF"),
        (["prepare", "music", "-o", "d", "--part", "0/3"], 2, "--part 0/3 is not N/OF"),
        (["prepare", "music", "-o", "d", "--part", "x"], 2, "--part x is not N/OF"),
        (["prepare", "music", "-o", "d", "--splits", "x.csv"], 2, "x.csv: can't be read"),
        (["prepare", "music", "-o", "music/train/first/00.mid"], 1, "Not a directory"),
        (["merge", "music", "-o", "d"], 1, "no finished part under music/work"),
        (["stats", "music"], 1, "make the data again with `pulse88 prepare`"),
    ],
)
def test_mistakes_are_named_in_one_line(arguments: list[str], code: int, message: str) -> None:
    said = bad(*arguments, code=code)
    assert message in said.splitlines()[-1]


def test_stats_tells_and_draws(folder: Path) -> None:
    good("prepare", "music", "-o", "data", "--workers", "0", "--licences", "first=MIT")
    said = good("stats", "data").splitlines()
    manifest = json.loads((folder / "data" / "manifest.json").read_text())
    head, *rows = said
    assert head.split() == ["split", "source", "pieces", "hours", "notes", "tokens", "licence"]
    assert [row.split()[:3] for row in rows[:3]] == [
        ["train", "first", "9"],
        ["train", "second", "7"],
        ["validation", "first", "4"],
    ]
    assert [row.split()[-1] for row in rows[:3]] == ["MIT", "unknown", "MIT"]
    pieces = manifest["pieces"]
    notes, tokens = (f"{sum(piece[key] for piece in pieces):,}" for key in ("notes", "length"))
    assert rows[3].split()[0:2] == ["all", "20"]
    assert rows[3].split()[3:] == [notes, tokens]
    lengths = sorted(piece["length"] for piece in pieces)
    assert rows[4] == f"Tokens of a piece: {lengths[0]:,} to {lengths[-1]:,}, half have {lengths[10]:,} or more."
    assert rows[-1] == "Wrote data/stats.png."
    first = (folder / "data/stats.png").read_bytes()
    assert first[1:4] == b"PNG"
    good("stats", "data", "--png", "x.png")
    assert (folder / "x.png").read_bytes() == first


def test_workers_are_as_many_as_there_are_cores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    share_out = crew.share_out

    def counted(function: object, tasks: object, processes: int) -> object:
        asked.append(processes)
        return share_out(function, tasks, 0)  # type: ignore[arg-type]

    monkeypatch.setattr(crew, "share_out", counted)
    good("prepare", "music", "-o", "data")
    good("prepare", "music", "-o", "data", "--workers", "3")
    assert asked == [crew.cores(), 3]
