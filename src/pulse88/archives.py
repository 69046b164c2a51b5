"""Files of folders, .zip and .tar.* as a stream of bytes, with limits: nothing of an archive is ever unpacked to disk.

Names in an archive are labels and nothing else. Folders and zips come in the order of their names, tars in their own
order, so that one pass is enough. What can't be read is told as a member with a problem and never raises; only what
goes away while it is read does.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

MIDI_SUFFIXES = (".mid", ".midi", ".smf", ".kar", ".rmi")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tgz", ".tbz2", ".txz")
_BLOCK = 2**20
_DAMAGES = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError),
    *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
)

_GONE = {errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT}


@dataclass(frozen=True)
class Limits:
    """What may come out of one archive."""

    file_bytes: int = 4 * 2**20  # of a member; a larger one is passed over and told
    unpacked_bytes: int = 2**30  # of an archive, or
    unpacked_ratio: int = 200  # times its own size, whichever is more; what lies behind is left out and told


class Member(NamedTuple):
    """A MIDI file of an input, or what kept one from being read."""

    path: str  # in the input, with / between folders
    data: bytes | Path  # bytes of an archive's member; the path of a file, not read yet
    size: int  # bytes
    problem: str  # empty if the file is there
    passed: int  # bytes of the input on disk that are behind us, this member included


def members(source: Path, limits: Limits) -> Iterator[Member]:
    """Every MIDI file in a folder, an archive, or the one file that `source` is; archives within a folder too.

    ValueError if there is no such file or it is neither folder, archive nor MIDI file by its name.
    """
    if source.is_dir():
        yield from _folder(source, limits)
    elif not source.exists():
        raise ValueError(f"{source}: there is no such file or folder: check its name")
    elif is_archive(source.name):
        yield from _archive(source, limits)
    elif is_midi(source.name):
        size = source.stat().st_size
        yield _file(source, clean(source.name), size, size, limits)
    else:
        raise ValueError(
            f"{source}: neither a folder nor an archive ({', '.join(ARCHIVE_SUFFIXES)}) nor a MIDI file "
            f"({', '.join(MIDI_SUFFIXES)}): rename it, or name the folder it is in"
        )


def bytes_of(source: Path) -> int:
    """Bytes on disk of all that `members` will look at."""
    if not source.is_dir():
        return source.stat().st_size if source.exists() else 0
    return sum(size for path, size in _walk(source) if is_midi(path.name) or is_archive(path.name))


def is_midi(name: str) -> bool:
    # macOS puts a ._ file of its own beside every file of a zip.
    return name.lower().endswith(MIDI_SUFFIXES) and not name.rsplit("/", 1)[-1].startswith("._")


def is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def clean(name: str) -> str:
    """A label for a member: no roots, no dots that climb, no characters that can't be printed."""
    text = name.replace("\\", "/")
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return "/".join(part for part in text.split("/") if part not in ("", ".", ".."))


def gone(error: OSError, path: Path) -> OSError:
    """The error of an input that was there a moment ago. Left out, it would be missing in the data without a word."""
    reason = f"can't be read any more ({error.strerror}): bring it back, and give the same line again"
    return OSError(error.errno, reason, str(path))


def _walk(folder: Path) -> Iterator[tuple[Path, int]]:
    """Regular files below a folder with their sizes, in the order of their names; links to folders aren't followed.

    OSError for what goes away meanwhile.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError:
        return  # A folder that may not be listed holds nothing for us.
    except OSError as error:
        raise gone(error, folder) from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
            continue
        try:
            status = entry.stat()
        except OSError as error:
            if entry.is_symlink() or not (is_midi(entry.name) or is_archive(entry.name)):
                continue  # a link to nowhere, or what wasn't ours
            raise gone(error, Path(entry.path)) from error
        if stat.S_ISREG(status.st_mode):
            yield Path(entry.path), status.st_size


def _folder(folder: Path, limits: Limits) -> Iterator[Member]:
    passed = 0
    for path, size in _walk(folder):
        label = clean(path.relative_to(folder).as_posix())
        if is_midi(path.name):
            passed += size
            yield _file(path, label, size, passed, limits)
        elif is_archive(path.name):
            for member in _archive(path, limits):
                yield member._replace(path=f"{label}/{member.path}", passed=passed + min(member.passed, size))
            passed += size


def _file(path: Path, label: str, size: int, passed: int, limits: Limits) -> Member:
    return Member(label, path, size, _too_large(size, limits), passed)


def _too_large(size: int, limits: Limits) -> str:
    return f"{size:,} bytes, at most {limits.file_bytes:,} are read" if size > limits.file_bytes else ""


def _archive(path: Path, limits: Limits) -> Iterator[Member]:
    count, passed = 0, 0
    read = _zip if path.name.lower().endswith(".zip") else _tar
    try:
        most = max(limits.unpacked_bytes, limits.unpacked_ratio * path.stat().st_size)
        for member in read(path, limits, most):
            count, passed = count + 1, member.passed
            yield member
    except _DAMAGES as error:
        if isinstance(error, OSError) and error.errno in _GONE:
            raise gone(error, path) from error
        reason = f"the archive can't be read on after {count} MIDI files: {error or type(error).__name__}"
        yield Member("", b"", 0, reason, passed)


def _zip(path: Path, limits: Limits, most: int) -> Iterator[Member]:
    unpacked = passed = 0
    with zipfile.ZipFile(path) as archive:
        for info in sorted(archive.infolist(), key=lambda info: (info.filename, info.header_offset)):
            passed += info.compress_size
            if not info.filename or info.is_dir() or not is_midi(info.filename):
                continue
            label, problem, data = clean(info.filename), _too_large(info.file_size, limits), b""
            if not problem:
                try:
                    with archive.open(info) as file:
                        data = file.read(limits.file_bytes + 1)  # The size it declares may be a lie.
                    problem = _too_large(len(data), limits)
                except _DAMAGES as error:
                    problem = f"can't be unpacked: {error or type(error).__name__}"
            unpacked += len(data)
            if unpacked > most:
                raise ValueError(_bomb(most))
            yield Member(label, b"" if problem else data, info.file_size, problem, passed)


def _tar(path: Path, limits: Limits, most: int) -> Iterator[Member]:
    with path.open("rb") as raw, closing(_unpacked(raw)) as stream:
        limited = _Limited(stream, most)
        # Streaming, so that not even a tar of one endless member is ever held.
        with tarfile.open(fileobj=limited, mode="r|", bufsize=_BLOCK, tarinfo=_Header) as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all headers otherwise.
                if archive.offset > most:  # tarfile would go on and on reading towards where the next header should be.
                    raise ValueError(_bomb(most))
                if not info.isreg() or not is_midi(info.name):
                    continue
                problem, data = _too_large(info.size, limits), b""
                if not problem and (file := archive.extractfile(info)) is not None:
                    data = file.read()
                yield Member(clean(info.name), data, info.size, problem, raw.tell())


class _Header(tarfile.TarInfo):
    """A header that may not bring more than a megabyte of names and comments, which tarfile would hold at once."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE) and header.size > _BLOCK:
            raise ValueError(f"a header of {header.size:,} bytes")
        return header


def _unpacked(raw: IO[bytes]) -> Any:
    """A reader of the tar behind whatever compression, by its first bytes."""
    first = raw.read(6)
    raw.seek(0)
    if first.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    if first.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    if first.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(raw)
    if first.startswith(b"\x28\xb5\x2f\xfd"):
        raise ValueError("it is compressed with zstd: unpack it first (zstd -d), or compress it with xz or gzip")
    return raw


class _Limited(io.RawIOBase):
    """Reads through, and raises once more than `most` bytes have come."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream, self._most, self._came = stream, most, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size)
        self._came += len(data)
        if self._came > self._most:
            raise ValueError(_bomb(self._most))
        return data


def _bomb(most: int) -> str:
    return f"it unpacks to more than {most:,} bytes, more than such an archive should hold"
