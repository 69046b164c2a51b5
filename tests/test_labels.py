from __future__ import annotations

import json
from pathlib import Path

import pytest

from pulse88.labels import Label, Labels, top_name


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("train/maestro/a.mid", Label("maestro", "a.mid", "train")),
        ("train/maestro/2004/a.mid", Label("maestro", "2004/a.mid", "train")),
        ("VALIDATION/maestro/a.mid", Label("maestro", "a.mid", "validation")),
        ("piano/val/maestro/a.mid", Label("maestro", "a.mid", "validation")),
        ("test/a.mid", Label("top", "a.mid", "test")),
        ("Chopin/train/a.mid", Label("top", "Chopin/a.mid", "train")),
        ("Chopin/etudes/a.mid", Label("top", "Chopin/etudes/a.mid", "")),
        ("a.mid", Label("top", "a.mid", "")),
        ("train.mid", Label("top", "train.mid", "")),
        ("", Label("top", "", "")),
    ],
)
def test_source_and_split_come_from_folders(path: str, label: Label) -> None:
    assert Labels().of("top", path) == label


def test_sources_that_have_a_licence_are_known_wherever_their_folder_is() -> None:
    labels = Labels(licences={"maestro": "CC BY-NC-SA 4.0", "pop909": "MIT"})
    assert labels.of("midi", "a/maestro/2004/x.mid") == Label("maestro", "2004/x.mid", "")
    assert labels.of("midi", "train/a/maestro/2004/x.mid") == Label("maestro", "2004/x.mid", "train")
    assert labels.of("midi", "maestro/test/2004/x.mid") == Label("maestro", "2004/x.mid", "test")
    assert labels.of("pop909", "train/x/1.mid") == Label("pop909", "x/1.mid", "train")
    assert labels.of("midi", "train/other/1.mid") == Label("other", "1.mid", "train")
    assert (labels.licence("pop909"), labels.licence("other")) == ("MIT", "unknown")


def test_lists_name_paths_or_their_ends_and_override_folders(tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("2004/a.mid\n\n  b.mid\nnowhere.mid\n", encoding="utf-8")
    (tmp_path / "table.csv").write_text(
        "canonical_title,split,midi_filename\n"
        '"Sonata, Op. 1",train,2004/c.mid\nx,validation,deep\\d.mid\ny,test,top/train/e.mid\n',
        encoding="utf-8-sig",
    )
    labels = Labels.read([f"test={tmp_path / 'held.txt'}", str(tmp_path / "table.csv")])
    paths = ["x/2004/a.mid", "train/b.mid", "2004/c.mid", "deep/d.mid", "train/e.mid", "train/ab.mid"]
    splits = [labels.of("top", path).split for path in paths]
    assert splits == ["test", "test", "train", "validation", "test", "train"]
    assert labels.unused(f"top/{path}" for path in paths) == ["nowhere.mid"]
    assert Labels().unused(["top/a.mid"]) == []


def test_a_table_with_tabs(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("Split\tPath\nval\ta.mid\n", encoding="utf-8")
    assert Labels.read([str(tmp_path / "t.tsv")]).splits == {"a.mid": "validation"}


def test_licences_from_a_table_and_by_themselves(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps({"a": "MIT", "b": "CC0"}))
    assert Labels.read(licences=[str(tmp_path / "l.json"), "b = CC BY 4.0"]).licences == {"a": "MIT", "b": "CC BY 4.0"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "path,fold\na.mid,1\n", "names no column `split`"),
        ("x.csv", "split,name\ntrain,a.mid\n", "none of path, file, filename, midi_filename"),
        ("x.csv", "path,split\na.mid,train\nb.mid,holdout\n", "row 3: no split 'holdout'"),
        ("x.csv", "", "names no column"),
    ],
)
def test_bad_tables_are_refused_with_the_row(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Labels.read([str(tmp_path / name)])


def test_bad_lists_and_licences_are_refused(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text('{"a": 1}')
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "latin.txt").write_bytes(b"\xff")
    for lists, licences, message in (
        ([f"validation={tmp_path / 'nowhere.txt'}"], [], "nowhere.txt: can't be read"),
        ([f"validation={tmp_path / 'latin.txt'}"], [], "UTF-8"),
        ([f"hidden={tmp_path / 'latin.txt'}"], [], "no split 'hidden'|can't be read"),
        ([], [str(tmp_path / "l.json")], "not an object of sources and licences"),
        ([], [str(tmp_path / "bad.json")], "no JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            Labels.read(lists, licences)


def test_inputs_are_called_by_their_names_without_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus.v1").mkdir()
    monkeypatch.chdir(tmp_path / "corpus.v1")
    assert top_name(Path()) == "corpus.v1"
    assert [top_name(Path(name)) for name in ("piano.tar.xz", "a.b.zip", "x.TGZ", "z.mid")] == [
        *("piano", "a.b", "x", "corpus.v1"),
    ]
