"""The original's prepared data, seen as ours: its manifest is a list, and every piece has an NPZ of its own.

ROOT/manifest.json or ROOT/metadata/manifest.json   [{md5, npz_path, length, source_path}, ...]
ROOT/data/00000/0000000_MD5.npz                     tokens int16 [T], onsets and durations float32 seconds [T]

Every event is four tokens on the published time grid, without BOS and EOS. A tenth of the pieces is held out at random
there; here it is by md5 (of the name, not of the file), so that it is the same tenth every time.

Shape legend: T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pulse88.vocabulary import EVENT_TOKENS, PUBLISHED

HELD_OUT = 0.1


def as_manifest(data: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A manifest as `shards.read_manifest` gives it; KeyError, TypeError or ValueError if a row isn't one."""
    pieces = []
    for row in rows:
        name = str(row["source_path"]).replace("\\", "/").lstrip("/")
        name = name if "/" in name else f"published/{name}"
        length = int(row["length"])
        pieces.append(
            {
                "name": name,
                "source": name.split("/")[0],
                "split": "validation" if int(str(row["md5"])[:8], 16) < HELD_OUT * 2**32 else "train",
                "shard": _npz(data, str(row["npz_path"]).replace("\\", "/")),
                "offset": 0,
                "length": length + 2,  # with BOS and EOS, which reading adds
                "note_offset": 0,
                "notes": length // EVENT_TOKENS,
            }
        )
    return {"form": "published", "time_grid": json.loads(PUBLISHED.to_json()), "pieces": pieces}


def _npz(data: Path, npz_path: str) -> str:
    """The path relative to `data`. One that another machine wrote is looked for by its last folders."""
    parts = Path(npz_path).parts
    tails = (Path(*parts[at:]) for at in range(len(parts)))
    return next((tail.as_posix() for tail in tails if not tail.is_absolute() and (data / tail).exists()), npz_path)
