"""Made-up pieces as `pulse88 prepare` leaves them, for tests that need legal music in prepared data."""

from __future__ import annotations

from pathlib import Path

from made_corpus import piece, write_folder
from pulse88.midi_file import to_bytes
from pulse88.prepare import Job, merge, parse
from pulse88.rules import Rules


def prepared(folder: Path, train: int = 6, validation: int = 3, notes: int = 120, grid: str = "fine") -> Path:
    """A folder of data with so many pieces on each side."""
    names = [f"train/made/{n:02d}.mid" for n in range(train)] + [
        f"validation/made/{n:02d}.mid" for n in range(validation)
    ]
    files = {name: to_bytes(piece(seed, notes)) for seed, name in enumerate(names)}
    midi = write_folder(folder / "midi", files)
    job = Job(Rules(grid=grid, min_seconds=1.0))
    parse([midi], folder / "data", job, processes=0)
    summary = merge([folder / "data"], folder / "data")
    assert not summary.manifest["refused"]
    return folder / "data"
