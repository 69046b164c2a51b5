"""Prepared data small enough to train on in a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pulse88.vocabulary import BLOCKS, BOS, EOS, FINE, TimeGrid


def make_data(folder: Path, grid: TimeGrid = FINE, seed: int = 0) -> Path:
    """Pieces that repeat a bar each, so that there is something to learn; as `pulse88 prepare` lays them out."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    pieces, tokens = [], []
    for number in range(12):
        bar = np.stack([random.integers(b.start, b.start + 3, 4) for b in BLOCKS.values()], axis=1)
        events = np.tile(bar, (int(random.integers(1, 8)), 1))
        tokens.append(np.concatenate(([BOS], events.ravel(), [EOS])).astype(np.uint8))
        split = "validation" if number % 4 == 3 else "train"
        offset = sum(map(len, tokens[:-1]))
        place = {"shard": "shard-00000.npz", "offset": offset, "length": len(tokens[-1])}
        pieces.append({"name": f"made/{number}", "split": split, **place})
    np.savez(folder / "shard-00000.npz", tokens=np.concatenate(tokens))
    manifest = {"time_grid": json.loads(grid.to_json()), "pieces": pieces}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
