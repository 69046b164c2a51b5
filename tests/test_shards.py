from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from made_data import make_data
from pulse88.shards import (
    COLUMNS,
    ShardError,
    ShardWriter,
    read_grid,
    read_manifest,
    read_notes,
    read_split,
    write_manifest,
    write_npz,
)
from pulse88.vocabulary import BOS, EOS, FINE, PUBLISHED

Notes = dict[str, NDArray]


def made(seed: int, notes: int) -> tuple[NDArray[np.uint8], Notes]:
    random = np.random.default_rng(seed)
    events = np.stack(
        [random.integers(a, b, notes) for a, b in ((0, 32), (32, 120), (120, 152), (152, 168))], axis=1
    ).astype(np.uint8)
    columns: Notes = {name: random.uniform(1, 100, notes).astype(kind) for name, kind in COLUMNS.items()}
    return np.r_[BOS, events.ravel(), EOS].astype(np.uint8), columns


PIECES = [made(seed, notes) for seed, notes in enumerate((30, 1, 50, 20, 7))]


def write(data: Path, shard_tokens: int = 300) -> dict[str, Any]:
    """PIECES as training data and the first two as validation, with a manifest."""
    rows, shards = [], []
    for split, pieces in (("train", PIECES), ("validation", PIECES[:2])):
        writer = ShardWriter(data, split, shard_tokens)
        for number, (tokens, notes) in enumerate(pieces):
            place = writer.add(tokens, notes)
            row = {"name": f"s/{number}", "source": "s", "split": split, "length": len(tokens), **place._asdict()}
            rows.append(row | {"notes": len(notes["pitch"])})
        writer.close()
        shards += writer.shards
    manifest = {"time_grid": json.loads(FINE.to_json()), "empty": [], "shards": shards, "pieces": rows}
    write_manifest(data, manifest)
    return manifest


def test_what_is_written_is_read(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert read_grid(tmp_path) == FINE
    corpus = read_split(tmp_path, "train")
    assert corpus.names == tuple(f"s/{n}" for n in range(5))
    for start, length, (tokens, _) in zip(corpus.starts, corpus.lengths, PIECES, strict=True):
        assert np.array_equal(corpus.tokens[start : start + length], tokens)
    for row, (_, notes) in zip(manifest["pieces"][:5], PIECES, strict=True):
        columns = read_notes(tmp_path, row["shard"])
        for name, column in notes.items():
            found = columns[name][row["note_offset"] : row["note_offset"] + row["notes"]]
            assert found.dtype == COLUMNS[name]
            assert np.array_equal(found, column)


def test_a_shard_ends_once_it_is_full_and_the_manifest_tells_what_is_in_it(tmp_path: Path) -> None:
    shards = write(tmp_path)["shards"]
    assert [(s["name"], s["pieces"], s["notes"]) for s in shards] == [
        ("train-00000.npz", 3, 81),
        ("train-00001.npz", 2, 27),
        ("validation-00000.npz", 2, 31),
    ]
    for shard in shards:
        assert hashlib.sha256((tmp_path / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]
        with np.load(tmp_path / shard["name"], allow_pickle=False) as arrays:
            assert arrays["token_offsets"][-1] == len(arrays["tokens"]) == shard["tokens"]
            assert arrays["note_offsets"][-1] == len(arrays["onsets"]) == shard["notes"]
            assert arrays["token_offsets"].tolist()[:2] == [0, 122] or shard["name"] == "train-00001.npz"


def test_equal_arrays_give_equal_bytes_with_a_date_that_is_none(tmp_path: Path) -> None:
    arrays = {"tokens": np.arange(5, dtype=np.uint8), "onsets": np.array([1.5, 2.5]), "none": np.zeros(0)}
    digests = [write_npz(tmp_path / name, arrays) for name in ("x.npz", "y.npz")]
    assert digests == [hashlib.sha256((tmp_path / "x.npz").read_bytes()).hexdigest()] * 2
    with np.load(tmp_path / "y.npz", allow_pickle=False) as found:
        assert found.files == ["tokens", "onsets", "none"]
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.testzip() is None


def test_pickles_are_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokens holds objects"):
        write_npz(tmp_path / "x.npz", {"tokens": np.array([{}])})
    assert list(tmp_path.iterdir()) == []
    write(tmp_path)
    np.savez(tmp_path / "train-00000.npz", tokens=np.array([{}]), allow_pickle=True)
    with pytest.raises(ShardError, match=r"train-00000\.npz: tokens.npy is no array of numbers"):
        read_split(tmp_path, "train")


def test_shards_of_earlier_data_go_and_other_files_stay(tmp_path: Path) -> None:
    for name in ("train-00007.npz", "test-00000.npz", "mine-00000.npz", "train-final.npz", "notes.txt"):
        (tmp_path / name).write_text("x")
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("manifest.json", "mine-00000.npz", "notes.txt", "train-00000.npz", "train-00001.npz", "train-final.npz"),
        "validation-00000.npz",
    ]


def test_a_limit_draws_the_same_pieces_every_time_in_order(tmp_path: Path) -> None:
    write(tmp_path)
    two, three = (read_split(tmp_path, "train", max_pieces=n) for n in (2, 3))
    assert len(two.names) == 2
    assert set(two.names) < set(three.names)
    assert list(three.names) == sorted(three.names)
    assert len(two.tokens) == two.lengths.sum()
    assert read_split(tmp_path, "train", max_pieces=100_000).names == read_split(tmp_path, "train").names


def test_what_can_not_be_read_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"manifest\.json: .*make the data again with `pulse88 prepare`"):
        read_split(tmp_path, "train")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ShardError, match="no 'time_grid'"):
        read_manifest(tmp_path)
    manifest = write(tmp_path)
    with pytest.raises(ShardError, match="no piece of split 'test'"):
        read_split(tmp_path, "test")
    manifest["pieces"][4]["length"] += 1
    write_manifest(tmp_path, manifest)
    with pytest.raises(ShardError, match=r"train-00001\.npz: too short for s/4"):
        read_split(tmp_path, "train")
    whole = (tmp_path / "train-00000.npz").read_bytes()
    for damaged in (whole[:100], b"", whole[: len(whole) // 2]):
        (tmp_path / "train-00000.npz").write_bytes(damaged)
        with pytest.raises(ShardError, match=r"train-00000\.npz: "):
            read_split(tmp_path, "train")
    for tokens in (np.array([171], np.uint8), np.zeros((2, 2), np.uint8), np.array([-1]), np.array([0.5])):
        write_npz(tmp_path / "train-00000.npz", {"tokens": tokens})
        with pytest.raises(ShardError, match="not a row of ids below 171"):
            read_split(tmp_path, "train")
    write_npz(tmp_path / "train-00000.npz", {"tokens": PIECES[0][0], "pitch": np.zeros(3, np.uint8)})
    with pytest.raises(ShardError, match="no columns onsets, durations, pitch, velocity of one length"):
        read_notes(tmp_path, "train-00000.npz")


def published(folder: Path, count: int, manifest: str, npz_path: str) -> list[NDArray[np.uint8]]:
    """The original's form, written as its page says: int16 tokens, and times in seconds for every token."""
    rows, ids = [], []
    for number in range(count):
        tokens, notes = made(number, 5 + number % 3)
        md5 = hashlib.md5(str(number).encode()).hexdigest()
        path = folder / "data" / "00000" / f"{number:07d}_{md5}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        times = {name: np.repeat(notes[name].astype(np.float32), 4) for name in ("onsets", "durations")}
        np.savez(path, tokens=tokens[1:-1].astype(np.int16), **times)
        rows.append(
            {
                "index": number,
                "md5": md5,
                "npz_path": npz_path.format(path=path, name=path.name),
                "length": len(tokens) - 2,
                "source_path": f"Piano\\deep\\{number}.mid" if number % 2 else f"{number}.mid",
            }
        )
        ids.append(tokens)
    (folder / manifest).parent.mkdir(exist_ok=True)
    (folder / manifest).write_text(json.dumps(rows))
    return ids


@pytest.mark.parametrize("manifest", ["manifest.json", "metadata/manifest.json"])
@pytest.mark.parametrize(
    "npz_path", ["data/00000/{name}", "{path}", "/kaggle/input/tokens/data/00000/{name}", "C:\\x\\data\\00000\\{name}"]
)
def test_the_originals_form_is_read(manifest: str, npz_path: str, tmp_path: Path) -> None:
    ids = published(tmp_path, 60, manifest, npz_path)
    assert read_grid(tmp_path) == PUBLISHED
    train, held_out = read_split(tmp_path, "train"), read_split(tmp_path, "validation")
    assert len(train.names) + len(held_out.names) == 60
    assert 1 <= len(held_out.names) <= 13
    for corpus in (train, held_out):
        for name, start, length in zip(corpus.names, corpus.starts, corpus.lengths, strict=True):
            number = int(name.rsplit("/", 1)[1].removesuffix(".mid"))
            assert name == (f"Piano/deep/{number}.mid" if number % 2 else f"published/{number}.mid")
            assert np.array_equal(corpus.tokens[start : start + length], ids[number])
    assert read_split(tmp_path, "train", max_pieces=7).names == tuple(
        name for name in train.names if name in read_split(tmp_path, "train", max_pieces=7).names
    )


def test_notes_of_the_originals_form(tmp_path: Path) -> None:
    published(tmp_path, 3, "manifest.json", "data/00000/{name}")
    for number, piece in enumerate(read_manifest(tmp_path)["pieces"]):
        tokens, notes = made(number, 5 + number % 3)
        columns = read_notes(tmp_path, piece["shard"])
        assert np.array_equal(columns["onsets"], notes["onsets"].astype(np.float32))
        assert np.array_equal(columns["pitch"], tokens[2:-1:4] - 32 + 21)
        assert np.array_equal(columns["velocity"], np.maximum(np.rint((tokens[4:-1:4] - 152.0) / 15 * 127), 1))
        assert len(columns["pitch"]) == piece["notes"]


def test_damage_in_the_originals_form_is_named(tmp_path: Path) -> None:
    published(tmp_path, 2, "manifest.json", "data/00000/{name}")
    (path,) = tmp_path.glob("data/00000/0000001_*.npz")
    np.savez(path, tokens=np.zeros(7, np.int16))
    with pytest.raises(ShardError, match="7 tokens are no whole number of events"):
        read_notes(tmp_path, path.relative_to(tmp_path).as_posix())
    path.unlink()
    with pytest.raises(ShardError, match=r"0000001_.*No such file"):
        [read_split(tmp_path, split) for split in ("train", "validation")]
    (tmp_path / "manifest.json").write_text('[{"md5": "x"}]')
    with pytest.raises(ShardError, match=r"manifest\.json: no 'source_path'"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("shard", ["../train-00000.npz", "a/../../train-00000.npz", "/tmp/train-00000.npz"])
def test_notes_outside_of_the_datas_folder_are_not_looked_for(shard: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="outside of the data's folder"):
        read_notes(tmp_path, shard)


# ---------------------------------------------------------------- found by feeding damaged files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shard": 3}, "shard is 3"),
        ({"length": None}, "length is None"),
        ({"offset": "0"}, "offset is '0'"),
        ({"offset": -4}, "tokens from -4 on"),
        ({"length": 0}, "0 tokens from"),
        ({"length": True}, "length is True"),
        ({"shard": "../data/train-00000.npz"}, "outside of the data's folder"),
        ({"shard": "/etc/train-00000.npz"}, "outside of the data's folder"),
    ],
)
def test_a_manifest_that_says_no_place_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["pieces"][0] |= change
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=rf"manifest\.json: made/0: .*{words}"):
        read_split(data, "train")


@pytest.mark.parametrize("pieces", [{}, 3, [[]], ["a"]])
def test_pieces_that_are_no_list_of_objects_are_refused(pieces: Any, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps(manifest | {"pieces": pieces}))
    with pytest.raises(ShardError, match=r"manifest\.json: its pieces are no list of objects"):
        read_split(data, "train")


def test_members_of_an_npz_that_are_encrypted_strange_or_no_arrays_are_refused(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    shard = data / "shard-00000.npz"
    good = shard.read_bytes()
    entry = good.rindex(b"PK\x01\x02")  # of the zip's directory: version, flags and method stand 6, 8 and 10 bytes in
    for place, value in ((6, 128), (8, 1), (10, 97)):
        shard.write_bytes(good[: entry + place] + bytes([value]) + good[entry + place + 1 :])
        with pytest.raises(ShardError, match=r"shard-00000\.npz"):
            read_split(data, "train")
    magic = good.index(b"\x93NUMPY")
    with zipfile.ZipFile(shard, "w") as archive:
        archive.writestr("tokens.npy", good[magic:].replace(b"}", b"(", 1))
    with pytest.raises(ShardError, match=r"shard-00000\.npz: "):
        read_split(data, "train")
    with zipfile.ZipFile(shard, "w") as archive:
        archive.writestr("tokens.npy", b"no array" + good[magic:])
    with pytest.raises(ShardError, match="magic string is not correct"):
        read_split(data, "train")
