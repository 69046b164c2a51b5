"""Made-up piano pieces, and folders and archives of them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pulse88.midi_file import to_bytes
from pulse88.notes import Performance


def piece(seed: int, notes: int = 120) -> Performance:
    """A piece of its own: chords of one to three keys, spread by milliseconds, that wander over the keyboard."""
    random = np.random.default_rng(seed)
    chord = np.cumsum(random.random(notes) < 0.6)
    centre = 60 + np.cumsum(random.integers(-4, 5, notes)) % 24 - 12
    onset = 0.25 * chord + random.uniform(0, 0.015, notes)
    return Performance(
        onset=np.sort(onset),
        duration=random.uniform(0.1, 0.6, notes),
        pitch=np.clip(centre + random.integers(-12, 13, notes), 21, 108),
        velocity=random.integers(30, 100, notes),
        part=np.zeros(notes),
    ).without_overlaps()


def played_again(performance: Performance, seed: int) -> Performance:
    """The same score by another player: other tempo and dynamics, and chords spread in another order."""
    random = np.random.default_rng(seed)
    chord = np.floor(performance.onset / 0.25)
    return Performance(
        onset=chord * 0.31 + random.uniform(0, 0.015, len(chord)),
        duration=performance.duration * 0.9,
        pitch=performance.pitch,
        velocity=random.integers(30, 100, len(chord)),
        part=performance.part,
    ).without_overlaps()


def joined(first: Performance, second: Performance) -> Performance:
    """One after the other."""
    later = second.shifted(first.end)
    return Performance(
        **{
            name: np.concatenate((getattr(first, name), getattr(later, name)))
            for name in ("onset", "duration", "pitch", "velocity", "part")
        }
    )


def corpus() -> dict[str, bytes]:
    """Files of a small corpus with planted copies, by their paths: 20 pieces that differ, and what must go."""
    files = {f"train/first/{seed:02d}.mid": to_bytes(piece(seed)) for seed in range(10)}
    files |= {f"train/second/deep/{seed:02d}.mid": to_bytes(piece(seed)) for seed in range(10, 16)}
    files |= {f"validation/first/{seed:02d}.mid": to_bytes(piece(seed)) for seed in range(16, 20)}
    files["train/second/byte copy.mid"] = files["train/first/03.mid"]
    files["train/second/of held-out.mid"] = files["validation/first/17.mid"]
    files["train/second/transposed.mid"] = to_bytes(piece(4).transposed(3), texts=["moved"])
    longer = joined(piece(5), piece(100, 40))
    files["train/second/longer.mid"] = to_bytes(longer.take(slice(7, None)).shifted(-longer.onset[7]))
    files["train/second/version of held-out.mid"] = to_bytes(played_again(piece(16), 1))
    files["train/second/short.mid"] = to_bytes(piece(101, 60))
    files["train/second/broken.mid"] = b"MThd is not enough"
    files["train/second/notes.txt"] = b"not music"
    return files


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """A tar, compressed by the last suffix of its name."""
    kind = path.suffix.removeprefix(".")
    with tarfile.open(path, "w" if kind == "tar" else f"w:{kind}") as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path
