from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from made_corpus import corpus, piece, write_folder, write_tar, write_zip
from pulse88 import midi_file, prepare
from pulse88.corpus import examine
from pulse88.labels import Labels
from pulse88.midi_file import to_bytes
from pulse88.prepare import Job, PrepareError, merge, parse
from pulse88.rules import Rules
from pulse88.shards import read_grid, read_manifest, read_notes, read_split
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import GRIDS

JOB = Job()


def run(inputs: list[Path], data: Path, job: Job = JOB, **changes: Any) -> dict[str, Any]:
    parse(inputs, data, job, **{"chunk_files": 4, **changes})
    return merge([data], data).manifest


def digests(data: Path) -> dict[str, str]:
    assert not [path for path in data.rglob("*") if path.suffix == ".partial"]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(data.iterdir()) if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("made") / "music", corpus())


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("whole")
    run([folder], data)
    return data


def test_planted_copies_and_versions_are_found_and_nothing_else(whole: Path) -> None:
    manifest = read_manifest(whole)
    assert manifest["counts"] == {"train": {"first": 9, "second": 7}, "validation": {"first": 4}}
    assert manifest["files"] == 27
    assert {row["path"].removeprefix("music/train/"): row["rule"] for row in manifest["refused"]} == {
        "second/byte copy.mid": "byte copy",
        "second/of held-out.mid": "byte copy",
        "second/transposed.mid": "transposed copy",
        "first/05.mid": "near-duplicate",  # the longer piece with most of it stays
        "second/version of held-out.mid": "version of held-out",
        "second/short.mid": "length",
        "second/broken.mid": "unreadable",
    }
    assert sum(manifest["refusals"].values()) == 7
    reasons = {row["rule"]: row["reason"] for row in manifest["refused"]}
    assert reasons["transposed copy"] == "of first/04.mid"
    assert reasons["version of held-out"].endswith("common with first/16.mid, which is held out")


def test_the_manifest_tells_of_every_piece_what_it_is_and_where(whole: Path) -> None:
    files = corpus()
    manifest = read_manifest(whole)
    assert [piece["name"] for piece in manifest["pieces"] if piece["split"] == "validation"] == [
        f"first/{number}.mid" for number in range(16, 20)
    ]
    tokenizer = Tokenizer(read_grid(whole))
    splits = {split: read_split(whole, split) for split in ("train", "validation")}
    for row in manifest["pieces"]:
        data = files[row["path"].removeprefix("music/")]
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert row["name"] == f"{row['source']}/{row['path'].split('/', 3)[3]}"
        performance = midi_file.read(data).performance
        encoding = tokenizer.encode(performance)
        corpus_of = splits[row["split"]]
        index = corpus_of.names.index(row["name"])
        start = corpus_of.starts[index]
        assert np.array_equal(corpus_of.tokens[start : start + row["length"]], encoding.ids)
        notes = read_notes(whole, row["shard"])
        mine = slice(row["note_offset"], row["note_offset"] + row["notes"])
        assert np.array_equal(notes["onsets"][mine], performance.onset[encoding.notes])
        assert np.array_equal(notes["velocity"][mine], performance.velocity[encoding.notes])
        assert row["seconds"] == pytest.approx(performance.end - performance.onset[0], abs=1e-3)
        assert row["licence"] == "unknown"
    assert manifest["fingerprint"] == GRIDS["fine"].fingerprint
    assert manifest["rules"]["min_notes"] == 100
    assert manifest["inputs"] == ["music"]


def test_the_same_input_gives_the_same_bytes_whoever_reads_it(folder: Path, whole: Path, tmp_path: Path) -> None:
    wanted = digests(whole)
    assert {"manifest.json", "train-00000.npz", "validation-00000.npz"} == set(wanted)
    run([folder], tmp_path / "again")
    run([folder], tmp_path / "other chunks", chunk_files=7)
    run([folder], tmp_path / "processes", processes=2)
    run([folder], whole)  # over what is there
    assert all(digests(tmp_path / name) == wanted for name in ("again", "other chunks", "processes"))
    assert digests(whole) == wanted


@pytest.mark.parametrize("name", ["music.zip", "music.tar", "music.tar.gz", "music.tar.xz"])
def test_an_archive_gives_the_same_bytes_as_its_folder(name: str, whole: Path, tmp_path: Path) -> None:
    files = corpus()
    mixed = dict(sorted(files.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest()))
    write = write_zip if name.endswith("zip") else write_tar
    run([write(tmp_path / name, mixed)], tmp_path / "data")
    assert digests(tmp_path / "data") == digests(whole)


@pytest.mark.parametrize("of", [2, 5, 30])
def test_parts_joined_are_the_whole(of: int, folder: Path, whole: Path, tmp_path: Path) -> None:
    for number in range(1, of + 1):
        parse([folder], tmp_path / "shared", JOB, part=(number, of), chunk_files=4)
        parse([folder], tmp_path / f"{number}", JOB, part=(number, of), chunk_files=4)
    merge([tmp_path / "shared"], tmp_path / "shared")
    merge([tmp_path / f"{number}" for number in range(of, 0, -1)], tmp_path / "joined")
    assert digests(tmp_path / "shared") == digests(tmp_path / "joined") == digests(whole)


def test_parts_that_are_missing_or_do_not_fit_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="no finished part under"):
        merge([tmp_path], tmp_path)
    parse([folder], tmp_path, JOB, part=(1, 3))
    parse([folder], tmp_path, JOB, part=(3, 3))
    with pytest.raises(PrepareError, match="part 2 of 3 is not there: run `pulse88 prepare` with --part 2/3"):
        merge([tmp_path], tmp_path)
    parse([folder], tmp_path, Job(Rules(min_notes=50)), part=(2, 3))
    with pytest.raises(PrepareError, match="part 2 of 3 was made with other inputs or rules"):
        merge([tmp_path], tmp_path)
    parse([folder], tmp_path, JOB, part=(1, 2))  # another division takes the old parts away
    with pytest.raises(PrepareError, match="part 2 of 2 is not there"):
        merge([tmp_path], tmp_path)


DIE = """
import os, signal, sys
from pathlib import Path
from pulse88.prepare import Job, merge, parse

replace, count = Path.replace, 0

def replace_or_die(self, target):
    global count
    count += 1
    if {when}:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = replace_or_die
folder, data = Path(sys.argv[1]), Path(sys.argv[2])
parse([folder], data, Job(), chunk_files=4)
merge([data], data)
"""


@pytest.mark.parametrize(
    ("when", "done"),
    [
        ("count == 1", 0),
        ("count == 4", 3),
        ("target.name == 'part-1-of-1.json'", 7),
        ("target.name == 'validation-00000.npz'", 7),
        ("target.name == 'manifest.json'", 7),
    ],
)
def test_killed_anywhere_and_started_again_it_goes_on_and_ends_with_the_same_bytes(
    when: str, done: int, folder: Path, whole: Path, tmp_path: Path
) -> None:
    killed = subprocess.run([sys.executable, "-c", DIE.format(when=when), folder, tmp_path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path for path in tmp_path.rglob("*.partial") if path.is_file()]  # it died while a file was half there
    assert not (tmp_path / "manifest.json").exists()
    assert parse([folder], tmp_path, JOB, chunk_files=4) == (27, 7, done)
    merge([tmp_path], tmp_path)
    assert digests(tmp_path) == digests(whole)


def test_kill_9_from_outside_with_several_processes(folder: Path, whole: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pulse88.prepare import *;"
        "tell = lambda share, remark: __import__('time').sleep(0.2);"
        "parse([Path(sys.argv[1])], Path(sys.argv[2]), Job(), processes=2, tell=tell, chunk_files=2)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, folder, tmp_path])
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "work").glob("chunk-*"))) < 4:
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    parsed = parse([folder], tmp_path, JOB, chunk_files=2)
    assert parsed.chunks == 14
    assert 4 <= parsed.were_there < 14
    merge([tmp_path], tmp_path)
    assert digests(tmp_path) == digests(whole)


def test_chunks_of_other_bytes_or_another_job_or_damaged_ones_are_made_anew(folder: Path, tmp_path: Path) -> None:
    files = corpus()
    here = write_folder(tmp_path / "music", files)
    parse([here], tmp_path, JOB, chunk_files=4)
    assert parse([here], tmp_path, JOB, chunk_files=4).were_there == 7
    write_folder(tmp_path / "music", {"train/first/00.mid": to_bytes(piece(999))})
    assert parse([here], tmp_path, JOB, chunk_files=4).were_there == 6
    assert parse([here], tmp_path, Job(Rules(min_notes=99)), chunk_files=4).were_there == 0
    chunk = tmp_path / "work" / "chunk-000002"
    whole = chunk.read_bytes()
    for content in (b"", b"{}\n", whole[:-1], whole + b"x", b"\xff" + whole):
        chunk.write_bytes(content)
        assert parse([here], tmp_path, Job(Rules(min_notes=99)), chunk_files=4).were_there == 6
        assert chunk.read_bytes() == whole
    chunk.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="chunk-000002: it is not whole; delete it, and prepare again"):
        merge([tmp_path], tmp_path)


def test_rules_lists_licences_and_limits_reach_the_manifest(folder: Path, tmp_path: Path) -> None:
    labels = Labels({"first/02.mid": "validation", "nowhere.mid": "test"}, {"first": "MIT", "deep": "CC0"})
    rules = Rules(grid="published", min_notes=50, min_seconds=1.0, max_pieces=20, near_duplicate=1.1)
    manifest = run([folder], tmp_path, Job(rules, labels))
    assert manifest["licences"] == {"first": "MIT", "second": "unknown", "deep": "CC0"}
    assert all(p["licence"] == manifest["licences"][p["source"]] for p in manifest["pieces"])
    assert read_grid(tmp_path) == GRIDS["published"]
    assert len(manifest["pieces"]) == 20
    assert manifest["refusals"]["max pieces"] == 2
    assert "near-duplicate" not in manifest["refusals"]
    assert "length" not in manifest["refusals"]
    assert manifest["unused_list_lines"] == ["nowhere.mid"]
    assert {p["split"] for p in manifest["pieces"] if p["name"] == "first/02.mid"} <= {"validation"}


def test_pieces_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for number in range(3):
        write_folder(tmp_path / f"{number}" / "music", {"a.mid": to_bytes(piece(number))})
    manifest = run([tmp_path / f"{number}" / "music" for number in range(3)], tmp_path / "data")
    names = [row["name"] for row in manifest["pieces"]]
    assert len(set(names)) == 3
    assert all(name.startswith("music/a.mid") for name in names)


def test_bad_files_never_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = to_bytes(piece(0))
    random = np.random.default_rng(0)
    files = {f"{n:03d}.mid": random.bytes(n) for n in range(60)}
    for number in range(60):
        broken = bytearray(good)
        broken[random.integers(len(good))] ^= 1 << random.integers(8)
        files[f"x{number:03d}.mid"] = bytes(broken[: random.integers(20, len(good))])
    folder = write_folder(tmp_path / "music", files | {"good.mid": good})
    (folder / "gone.mid").symlink_to(folder / "nowhere")
    (folder / "broken.zip").write_bytes(b"PK and no more")
    manifest = run([folder], tmp_path / "data", chunk_files=50)
    assert manifest["files"] == 122
    assert "music/good.mid" in {row["path"] for row in manifest["pieces"]}
    assert "music/broken.zip" in {row["path"] for row in manifest["refused"]}


def test_a_file_that_vanishes_stops_it_and_once_it_is_back_the_data_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out as a refusal, it would be missing in data that look whole: a folder of a network that has gone, say."""
    folder = write_folder(tmp_path / "music", {f"{n}.mid": to_bytes(piece(n)) for n in range(9)})
    expected = run([folder], tmp_path / "expected")
    parse_chunk, kept = prepare.parse_chunk, (folder / "6.mid").read_bytes()

    def parse_and_lose(task: Any) -> bool:
        (folder / "6.mid").unlink(missing_ok=True)
        return parse_chunk(task)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "parse_chunk", parse_and_lose)
        with pytest.raises(FileNotFoundError, match=r"can't be read any more .*bring it back") as told:
            parse([folder], tmp_path / "data", JOB, chunk_files=4)
    assert told.value.filename == str(folder / "6.mid")
    with pytest.raises(PrepareError, match="no finished part"):
        merge([tmp_path / "data"], tmp_path / "data")
    (folder / "6.mid").write_bytes(kept)
    assert run([folder], tmp_path / "data") == expected
    assert digests(tmp_path / "data") == digests(tmp_path / "expected")


def test_a_file_that_may_not_be_read_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "music", {"a.mid": to_bytes(piece(0)), "b.mid": to_bytes(piece(1))})
    (listed, _) = list(prepare.find([folder], Labels(), prepare.Limits()))
    opened = Path.open

    def closed(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == "a.mid":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", closed)
    prepare.parse_chunk(prepare._Task(Rules(), JOB.digest, tmp_path / "chunk", [listed]))
    (refused,) = prepare.journal.read_chunk(tmp_path / "chunk").refused
    assert refused == ("music/a.mid", "unreadable", os.strerror(errno.EACCES))


def test_a_file_that_kills_its_process_is_refused_and_its_chunk_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "music", {f"{n}.mid": to_bytes(piece(n)) for n in range(5)})
    share_out = prepare.crew.share_out

    def killed_by_two(function: Any, tasks: Any, processes: int) -> Any:
        for done in share_out(function, tasks, 0):
            killed = any(file.path == "music/2.mid" and not file.problem for file in done.task.files)
            yield prepare.crew.Done(done.task, None if killed else done.result)

    monkeypatch.setattr(prepare.crew, "share_out", killed_by_two)
    manifest = run([folder], tmp_path / "data", processes=2)
    assert sorted(row["path"] for row in manifest["pieces"]) == [f"music/{n}.mid" for n in (0, 1, 3, 4)]
    (row,) = manifest["refused"]
    assert (row["path"], row["rule"]) == ("music/2.mid", "unreadable")
    assert "the process that read it died" in row["reason"]


def test_progress_rises_to_the_end(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    parse([folder], tmp_path, JOB, tell=lambda share, remark: told.append((share, remark)), chunk_files=4)
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert told[-1][1] == "27 files"


def test_jobs_and_inputs_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="no time grid 'coarse', there are fine, published"):
        Job(Rules(grid="coarse"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrepareError, match=r"no MIDI files in .*empty"):
        parse([tmp_path / "empty"], tmp_path / "data", JOB)
    with pytest.raises(ValueError, match="nowhere: there is no such file"):
        parse([tmp_path / "nowhere"], tmp_path / "data", JOB)


def test_a_job_survives_json() -> None:
    job = Job(Rules(min_notes=7, quantised="only"), Labels({"a": "test"}, {"b": "MIT"}))
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job
    assert job.digest == Job.from_dict(job.to_dict()).digest != JOB.digest


@pytest.mark.skipif(
    not (Path(os.environ.get("PULSE88_CORPUS", "../shared/corpus")) / "piano.tar.xz").exists(),
    reason="no corpus: name its folder in PULSE88_CORPUS",
)
def test_real_music_keeps_to_the_rules() -> None:
    tar = Path(os.environ.get("PULSE88_CORPUS", "../shared/corpus")) / "piano.tar.xz"
    tokenizer = Tokenizer(GRIDS["fine"])
    found = prepare.find([tar], Labels(), prepare.Limits())
    for _, file in zip(range(60), found, strict=False):
        assert isinstance(file.data, bytes)
        assert not isinstance(examine(file.data, Rules(), tokenizer), prepare.Refusal), file.path
