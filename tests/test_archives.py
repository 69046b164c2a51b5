from __future__ import annotations

import io
import os
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from made_corpus import write_folder, write_tar, write_zip
from pulse88 import archives
from pulse88.archives import Limits, Member, members

FILES = {"b/two.mid": b"2" * 50, "a.MIDI": b"1", "b/c/three.kar": b"333", "b/x.txt": b"no", "b/._two.mid": b"no"}
MIDI = {"a.MIDI": b"1", "b/c/three.kar": b"333", "b/two.mid": b"2" * 50}


def read(source: Path, limits: Limits | None = None) -> list[Member]:
    return list(members(source, limits or Limits()))


def contents(source: Path) -> dict[str, bytes]:
    found = read(source)
    assert not any(member.problem for member in found)
    return {m.path: m.data if isinstance(m.data, bytes) else m.data.read_bytes() for m in found}


def only_problem(source: Path, limits: Limits | None = None) -> str:
    (problem,) = [member.problem for member in read(source, limits) if member.problem]
    return problem


def test_a_folder_comes_in_the_order_of_names_without_what_is_no_midi(tmp_path: Path) -> None:
    write_folder(tmp_path, FILES)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.mid").symlink_to(tmp_path / "nowhere.mid")
    assert contents(tmp_path) == MIDI
    assert [member.path for member in read(tmp_path)] == ["a.MIDI", "b/c/three.kar", "b/two.mid"]
    assert [member.size for member in read(tmp_path)] == [1, 3, 50]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.bz2", "x.tar.xz", "X.TAR.GZ"])
def test_archives_hold_what_the_folder_holds_and_unpack_nothing(name: str, tmp_path: Path) -> None:
    write = write_zip if name.endswith("zip") else write_tar
    path = write(tmp_path / name.lower(), FILES).rename(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    assert contents(path) == MIDI
    assert sorted(tmp_path.rglob("*")) == before
    assert read(path)[-1].passed <= archives.bytes_of(path) == path.stat().st_size


def test_a_tar_keeps_its_own_order_and_a_zip_that_of_names(tmp_path: Path) -> None:
    files = {"z.mid": b"1", "a.mid": b"2"}
    assert [m.path for m in read(write_tar(tmp_path / "x.tar", files))] == ["z.mid", "a.mid"]
    assert [m.path for m in read(write_zip(tmp_path / "x.zip", files))] == ["a.mid", "z.mid"]


def test_archives_within_a_folder_are_read_and_told_apart(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.mid": b"1"})
    write_zip(tmp_path / "more.zip", {"b.mid": b"2", "inner.zip": b"PK not followed"})
    write_tar(tmp_path / "z.tar.gz", {"c.mid": b"3"})
    assert contents(tmp_path) == {"a.mid": b"1", "more.zip/b.mid": b"2", "z.tar.gz/c.mid": b"3"}
    assert [m.passed for m in read(tmp_path)] == sorted(m.passed for m in read(tmp_path))


def test_one_midi_file_is_an_input(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.mid": b"1"})
    assert contents(tmp_path / "a.mid") == {"a.mid": b"1"}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("../../../etc/evil.mid", "etc/evil.mid"),
        ("/root/evil.mid", "root/evil.mid"),
        ("a\\b\\evil.mid", "a/b/evil.mid"),
        ("./a//./evil.mid", "a/evil.mid"),
        ("a\x1b[31m\nb.mid", "a?[31m?b.mid"),
        ("\udcff.mid", "?.mid"),
    ],
)
def test_names_of_members_are_labels_only(name: str, label: str, tmp_path: Path) -> None:
    assert archives.clean(name) == label
    inner = tmp_path / "deep" / "inner"
    inner.mkdir(parents=True)
    (member,) = read(write_tar(inner / "x.tar", {name: b"1"}))
    assert (member.path, member.data) == (label, b"1")
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", "inner", "x.tar"]


def test_links_and_devices_in_a_tar_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            header = tarfile.TarInfo(f"{kind.decode()}.mid")
            header.type, header.linkname = kind, "/etc/passwd"
            archive.addfile(header)
        header = tarfile.TarInfo("real.mid")
        header.size = 1
        archive.addfile(header, io.BytesIO(b"1"))
    assert contents(tmp_path / "x.tar") == {"real.mid": b"1"}


@pytest.mark.parametrize("name", ["", "x.zip", "x.tar.gz"])
def test_a_file_that_is_too_large_is_told_and_the_others_are_read(name: str, tmp_path: Path) -> None:
    files = {"a.mid": b"1", "b.mid": bytes(2000), "c.mid": b"3"}
    write = write_zip if name.endswith("zip") else write_tar
    source = write(tmp_path / name, files) if name else write_folder(tmp_path, files)
    found = read(source, Limits(file_bytes=1000))
    assert [(m.path, m.problem) for m in found] == [
        ("a.mid", ""),
        ("b.mid", "2,000 bytes, at most 1,000 are read"),
        ("c.mid", ""),
    ]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tar.xz"])
def test_a_bomb_of_many_files_is_left_at_the_limit(name: str, tmp_path: Path) -> None:
    write = write_zip if name.endswith("zip") else write_tar
    path = write(tmp_path / name, {f"{i:03d}.mid": bytes(100_000) for i in range(300)})
    limits = Limits(unpacked_bytes=5_000_000, unpacked_ratio=2)
    found = read(path, limits)
    assert 35 <= len(found) <= 51
    assert "it unpacks to more than 5,000,000 bytes" in found[-1].problem
    assert f"after {len(found) - 1} MIDI files" in found[-1].problem
    assert not any(member.problem for member in read(path, Limits(unpacked_bytes=40_000_000)))


def test_a_bomb_in_one_file_that_is_no_midi_is_left_too(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar.gz", {"a.mid": b"1", "zeros.bin": bytes(30_000_000), "b.mid": b"2"})
    found = read(path, Limits(unpacked_bytes=10_000_000, unpacked_ratio=1))
    assert [member.path for member in found if not member.problem] == ["a.mid"]
    assert "unpacks to more than" in found[-1].problem


def test_a_zip_that_lies_about_sizes_is_read_no_further_than_the_limit(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.mid": bytes(5_000_000)})
    data = bytearray(path.read_bytes())
    lie = struct.pack("<I", 10)
    for magic, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.find(magic) + offset
        data[at : at + 4] = lie
    path.write_bytes(data)
    (member,) = read(path, Limits(file_bytes=1000))
    assert member.data == b""
    assert "can't be unpacked" in member.problem or "at most 1,000" in member.problem


def test_an_encrypted_member_is_told(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.mid": b"1", "b.mid": b"2"})
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(magic) + offset] |= 1
    path.write_bytes(data)
    assert only_problem(path).startswith("can't be unpacked: ")
    assert [m.path for m in read(path) if not m.problem] == ["b.mid"]


def test_headers_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.XHDTYPE, 50_000_000
    (tmp_path / "x.tar").write_bytes(header.tobuf() + bytes(50_000_000))
    assert "a header of 50,000,000 bytes" in only_problem(tmp_path / "x.tar")


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.bz2", "x.tar.xz"])
def test_damaged_archives_are_told_and_never_raise(name: str, tmp_path: Path) -> None:
    write = write_zip if name.endswith("zip") else write_tar
    files = {f"{i}.mid": os.urandom(3000) for i in range(20)}
    whole = write(tmp_path / name, files).read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 10):
        (tmp_path / name).write_bytes(whole[:cut])
        for member in read(tmp_path / name):
            assert member.problem or member.data == files[member.path]
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert only_problem(tmp_path / name).startswith("the archive can't be read on after ")
    for at in range(0, len(whole), len(whole) // 40):
        (tmp_path / name).write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        read(tmp_path / name)


def test_zstd_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "x.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    assert "unpack it first (zstd -d)" in only_problem(tmp_path / "x.tar.zst")


def test_inputs_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: there is no such file or folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "x.rar").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"x\.rar: neither a folder nor an archive"):
        read(tmp_path / "x.rar")


def test_folders_in_a_zip_are_passed_over(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.mkdir("folder.mid") if hasattr(archive, "mkdir") else archive.writestr("folder.mid/", "")
        archive.writestr("a.mid", b"1")
    assert contents(tmp_path / "x.zip") == {"a.mid": b"1"}


@pytest.mark.parametrize("name", ["a.mid", "a.txt"])
def test_a_member_of_a_tar_that_says_it_is_endless_is_not_waited_for(name: str, tmp_path: Path) -> None:
    header = tarfile.TarInfo(name)
    header.size = 2**62
    path = tmp_path / "a.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    *_, last = members(path, Limits())
    assert "unpacks to more than" in last.problem


def test_a_member_without_a_name_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"nothing")
        archive.writestr("a.mid", b"1")
    data = bytearray(path.read_bytes())
    local, central = data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")
    data[central + 46] = data[local + 30] = 0  # A zero ends a name.
    path.write_bytes(data)
    assert [member.path for member in members(path, Limits())] == ["a.mid"]


def test_a_folder_or_an_archive_that_vanishes_meanwhile_is_told(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "music", {"a/1.mid": b"1", "b/2.mid": b"2", "c/3.mid": b"3"})
    write_zip(folder / "d.zip", {"4.mid": b"4"})
    found = archives.members(folder, Limits())
    assert next(found).path == "a/1.mid"
    shutil.rmtree(folder / "b")
    with pytest.raises(FileNotFoundError, match="bring it back") as told:
        list(found)
    assert told.value.filename == str(folder / "b")
    found = archives.members(folder, Limits())
    assert next(found).path == "a/1.mid"
    (folder / "d.zip").unlink()
    with pytest.raises(FileNotFoundError, match="bring it back") as told:
        list(found)
    assert told.value.filename == str(folder / "d.zip")
