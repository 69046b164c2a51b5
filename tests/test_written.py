"""Files that are whole or not there, and errors that say which file and what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pulse88.written import append_line, end_whole, make_folder, write_whole, written_whole


def full(self: object, data: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as the system has it: without a name


def test_what_can_not_be_written_leaves_the_old_file_and_says_which_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"old")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"can't be written .No space left on device.: make room") as told:
            write_whole(path, b"new")
    assert told.value.filename == str(path) and told.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old" and [left.name for left in tmp_path.iterdir()] == ["a.bin"]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(os.name != "posix", reason="which processes are gone is only told by POSIX systems")
def test_what_a_killed_process_has_left_of_a_file_goes_when_it_is_written_again(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    left = tmp_path / f".a[1].bin.{gone.pid}.partial"
    others = tmp_path / f".b.bin.{gone.pid}.partial", tmp_path / f".a[1].bin.{os.getppid()}.partial"
    for path in (left, *others):
        path.write_bytes(b"half")
    write_whole(tmp_path / "a[1].bin", b"whole")
    assert not left.exists() and all(path.exists() for path in others)
    assert (tmp_path / "a[1].bin").read_bytes() == b"whole"


def test_a_folder_that_is_not_there_is_told_by_the_name_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="its folder is not there") as told:
        write_whole(tmp_path / "no" / "a.bin", b"")
    assert told.value.filename == str(tmp_path / "no" / "a.bin")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="can't be written") as told:
        make_folder(tmp_path / "file" / "inside")
    assert told.value.filename == str(tmp_path / "file" / "inside")


def test_errors_about_other_files_and_other_errors_come_out_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told, written_whole(tmp_path / "a.bin"):
        (tmp_path / "input").read_bytes()
    assert told.value.filename == str(tmp_path / "input")
    with pytest.raises(KeyError), written_whole(tmp_path / "a.bin") as partial:
        partial.write_bytes(b"half")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append_line(path, "one")
    append_line(path, "zwö")
    assert path.read_text(encoding="utf-8") == "one\nzwö\n"
    with pytest.raises(FileNotFoundError, match="can't be written"):
        append_line(tmp_path / "no" / "log", "x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_line_for_a_full_disk_is_told() -> None:
    with pytest.raises(OSError, match="make room") as told:
        append_line(Path("/dev/full"), "x")
    assert told.value.filename == "/dev/full"


@pytest.mark.parametrize(("left", "kept"), [("a\nb\n", "a\nb\n"), ("a\nb", "a\n"), ("a", ""), ("", "")])
def test_a_line_that_was_not_ended_is_cut_off(tmp_path: Path, left: str, kept: str) -> None:
    path = tmp_path / "log"
    path.write_text(left)
    end_whole(path)
    assert path.read_text() == kept
    end_whole(tmp_path / "none")
    assert not (tmp_path / "none").exists()
