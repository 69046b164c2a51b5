from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pulse88 import data_statistics
from pulse88.data_statistics import DENSITIES, LENGTHS, PITCHES, SECONDS, VELOCITIES, Amount, measure
from pulse88.shards import ShardWriter, write_manifest
from pulse88.vocabulary import FINE


def write(data: Path) -> None:
    """Three pieces of two notes each: gaps of 2, 0.005 and 0.5 s."""
    rows = []
    writer = ShardWriter(data, "train", 15)
    for number, gap in enumerate((2.0, 0.005, 0.5)):
        notes = {
            "onsets": np.array([10.0, 10.0 + gap]),
            "durations": np.array([0.25, 1.0 + number], np.float32),
            "pitch": np.array([60, 61 + number], np.uint8),
            "velocity": np.array([64, 127], np.uint8),
        }
        place = writer.add(np.zeros(10, np.uint8), notes)
        source = "a" if number < 2 else "b"
        row = {"name": f"{source}/{number}", "source": source, "split": "train", "length": 10, "notes": 2}
        rows.append(row | place._asdict())
    writer.close()
    manifest = {"time_grid": json.loads(FINE.to_json()), "licences": {"a": "MIT"}}
    write_manifest(data, manifest | {"shards": writer.shards, "pieces": rows})


def test_counts_by_hand(tmp_path: Path) -> None:
    write(tmp_path)
    found = measure(tmp_path)
    assert found.amounts == {
        ("train", "a"): Amount(2, 4, 20, pytest.approx(3.0 + 2.005)),
        ("train", "b"): Amount(1, 2, 10, pytest.approx(3.5)),
    }
    assert found.total.notes == 6
    assert dict(zip(PITCHES[np.flatnonzero(found.pitch)].tolist(), found.pitch[found.pitch > 0], strict=True)) == {
        60: 3,
        61: 1,
        62: 1,
        63: 1,
    }
    assert found.velocity[VELOCITIES[:-1] == 64] == found.velocity[VELOCITIES[:-1] == 127] == 3
    assert found.duration.sum() == 6
    assert found.duration[np.searchsorted(SECONDS, 0.25) - 1] == 3
    assert found.gap.sum() == 2  # that within a chord is left out
    assert found.density == pytest.approx([2 / 3, 2 / 2.005, 2 / 3.5])
    assert found.length == [10, 10, 10]
    assert data_statistics.rows(found) == [
        ("split", "source", "pieces", "hours", "notes", "tokens", "licence"),
        ("train", "a", "2", "0.0", "4", "20", "MIT"),
        ("train", "b", "1", "0.0", "2", "10", "unknown"),
        ("all", "", "3", "0.0", "6", "30", ""),
    ]


def test_edges_rise_and_span_what_there_is() -> None:
    for edges in (PITCHES, VELOCITIES, SECONDS, DENSITIES, LENGTHS):
        assert (np.diff(edges) > 0).all()
    assert (PITCHES[0], PITCHES[-1], VELOCITIES[0], VELOCITIES[-1]) == (21, 109, 1, 128)


def test_the_picture_depends_on_the_data_alone_and_is_written_whole(tmp_path: Path) -> None:
    write(tmp_path)
    found = measure(tmp_path)
    pictures = []
    for name, title in (("1.png", "data"), ("2.png", "data"), ("3.png", "other $x$ data")):
        data_statistics.draw(found, tmp_path / name, title)
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]
    assert not list(tmp_path.glob("*.partial"))
