"""Files that appear whole or not at all; where they can't, the error names the file and the remedy."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REMEDIES = {
    errno.ENOSPC: "make room, then do it again",
    errno.EDQUOT: "make room in your quota, then do it again",
    errno.EFBIG: "it would pass the largest size of a file here: choose another folder",
    errno.EROFS: "choose a folder that may be written to",
    errno.EACCES: "choose a folder that may be written to",
    errno.EPERM: "choose a folder that may be written to",
    errno.ENOENT: "its folder is not there: make it, or choose another",
    errno.ENOTDIR: "choose another file or folder",
    errno.EISDIR: "that is a folder: choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "too many files are open: close something, then do it again",
}


def not_written(error: OSError, path: Path) -> OSError:
    """The error of a file that could not be written: of the same kind, about `path`, with what to do.

    The system names a file only where it could not be opened, and then the temporary one.
    """
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "choose another file or folder")
    return OSError(error.errno, f"can't be written ({reason}): {remedy}", str(path))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path` if all goes well and is taken away otherwise.

    OSError about `path` if it can't be written. What is raised about another file comes out as it is.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _clear(path)
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.filename not in (None, str(partial), partial):
            raise
        raise not_written(error, path) from error
    finally:
        with contextlib.suppress(OSError):  # On a file system that can't be written to not even nothing can be removed.
            partial.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """Takes away what killed processes have left of `path`, where the system tells which processes are gone."""
    if os.name != "posix":
        return
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        writer = left.name.split(".")[-2]
        if not writer.isdecimal():
            continue
        try:
            os.kill(int(writer), 0)
        except (ProcessLookupError, OverflowError):
            with contextlib.suppress(OSError):
                left.unlink()
        except OSError:
            continue  # Somebody else's process lives.


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; OSError about `path` if it can't be written."""
    with written_whole(path) as partial:
        partial.write_bytes(content)


def append_line(path: Path, line: str) -> None:
    """Adds a line of text, whole or not at all; OSError about `path` if it can't be written."""
    try:
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            data = line.encode() + b"\n"
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise not_written(error, path) from error


def end_whole(path: Path) -> None:
    """Cuts off a last line that has no end, which is left where a process was killed while it added it."""
    if not path.exists():
        return
    try:
        with path.open("r+b") as file:
            data = file.read()
            if data and not data.endswith(b"\n"):
                file.truncate(data.rfind(b"\n") + 1)
    except OSError as error:
        raise not_written(error, path) from error


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, unless it is there; OSError about the folder if it can't be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(error, path) from error
