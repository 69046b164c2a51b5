"""Pictures: what is where, in which colour, read back from the PNG's pixels."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from pulse88 import picture
from pulse88.notes import Note, Performance
from pulse88.picture import PictureError

WIDTH = picture.WIDTH - picture.LEFT - picture.RIGHT
TWO_NOTES = Performance.from_notes([Note(2.0, 2.0, 60, 70), Note(6.0, 3.5, 72, 70)])  # drawn from 0 to 10 s


def pixels(performance: Performance, **options: object) -> np.ndarray:
    """[height, width, 3] 0-255, below the header."""
    image = imread(io.BytesIO(picture.to_bytes(performance, **options)))  # type: ignore[arg-type]
    return np.rint(image[picture.TOP :, :, :3] * 255).astype(int)


def is_blue(image: np.ndarray) -> np.ndarray:
    return image[..., 2] - image[..., 0] > 60


def is_orange(image: np.ndarray) -> np.ndarray:
    return image[..., 0] - image[..., 2] > 60


def columns(mask: np.ndarray) -> tuple[int, int]:
    """First and last column with a True."""
    found = np.flatnonzero(mask.any(axis=0))
    return int(found[0]), int(found[-1])


def lines(mask: np.ndarray) -> tuple[int, int]:
    found = np.flatnonzero(mask.any(axis=1))
    return int(found[0]), int(found[-1])


def at(seconds: float, of: float = 10.0) -> float:
    """Pixels from the left."""
    return picture.LEFT + seconds / of * WIDTH


def dense(seconds: float, rate: float = 12.0) -> Performance:
    rng = np.random.default_rng(0)
    count = int(seconds * rate)
    onset = np.sort(rng.uniform(0, seconds, count))
    pedal = np.arange(0, seconds, 0.1)
    return Performance(
        onset=onset,
        duration=rng.uniform(0.05, 1.0, count),
        pitch=rng.integers(21, 109, count).astype(np.uint8),
        velocity=rng.integers(20, 120, count).astype(np.uint8),
        part=np.zeros(count, np.uint8),
        pedal_time=pedal,
        pedal_value=rng.integers(0, 128, len(pedal)).astype(np.uint8),
        pedal_part=np.zeros(len(pedal), np.uint8),
    )


def test_a_note_is_as_long_as_it_is_held() -> None:
    first, last = columns(is_blue(pixels(TWO_NOTES, boundary=5.0)))
    assert first == pytest.approx(at(2.0), abs=2)
    assert last == pytest.approx(at(4.0), abs=3)


def test_seed_and_continuation_part_at_the_boundary() -> None:
    image = pixels(TWO_NOTES, boundary=6.0)  # The note at the boundary is the continuation's.
    assert columns(is_orange(image)) == pytest.approx((at(6.0), at(9.5)), abs=3)
    assert columns(is_blue(image))[1] < at(4.0) + 3
    dark = np.flatnonzero((image[:180].max(axis=2) < 90).mean(axis=0) > 0.5)
    assert len(dark) in (1, 2, 3)
    assert dark.mean() == pytest.approx(at(6.0), abs=2)


def test_without_a_boundary_all_is_one_colour() -> None:
    image = pixels(TWO_NOTES)
    assert not is_orange(image).any()
    assert columns(is_blue(image))[1] > at(9.0)


def test_higher_is_higher_by_the_semitones_between() -> None:
    image = pixels(TWO_NOTES)
    blue = is_blue(image)
    low = np.mean(lines(blue[:, : int(at(5.0))]))
    high = np.mean(lines(blue[:, int(at(5.0)) :]))
    assert low - high == pytest.approx(12 * 8, abs=1)


def test_a_c_stands_on_its_octave_line() -> None:
    image = pixels(TWO_NOTES)
    bottom = lines(is_blue(image[:, : int(at(5.0))]))[1]
    octave = np.abs(image - np.array([0xC3, 0xC9, 0xD1])).max(axis=2) < 20
    assert np.abs(np.flatnonzero(octave.mean(axis=1) > 0.5) - bottom).min() <= 2


@pytest.mark.parametrize("boundary", [None, 0.0])
def test_louder_is_darker(boundary: float | None) -> None:
    means = []
    for velocity in (20, 50, 80, 110):
        image = pixels(Performance.from_notes([Note(0, 9.5, 60, velocity)]), boundary=boundary)
        mask = is_blue(image) if boundary is None else is_orange(image)
        means.append(image[mask].mean())
    assert means == sorted(means, reverse=True)
    assert means[0] - means[-1] > 60


def test_pedal_lane() -> None:
    pedalled = replace(
        TWO_NOTES,
        pedal_time=np.array([1.0, 3.0, 7.0]),
        pedal_value=np.array([100, 20, 64], np.uint8),
        pedal_part=np.zeros(3, np.uint8),
    )
    grey = np.array([0x5F, 0x63, 0x68])
    image = pixels(pedalled)
    lane = np.abs(image - grey).max(axis=2) < 8
    rows = np.flatnonzero(lane.sum(axis=1) > WIDTH * 0.3)
    assert len(rows) == pytest.approx(picture.LANE, abs=1)
    down = lane[int(rows.mean())]
    # Down from 1 to 3 s, and from 7 s, never released, to the end of the last note at 9.5 s.
    for second, expected in (
        (0.5, False),
        (1.1, True),
        (2.9, True),
        (3.1, False),
        (7.1, True),
        (9.4, True),
        (9.6, False),
    ):
        assert bool(down[round(at(second))]) is expected, second
    assert len(pixels(pedalled)) == len(pixels(TWO_NOTES)) + picture.LANE + picture.LANE_GAP


def test_a_long_piece_is_wrapped_into_rows() -> None:
    one, six = pixels(dense(29)), pixels(dense(180))
    assert one.shape[1] == six.shape[1] == picture.WIDTH
    assert 3 * len(one) < len(six) < 8 * len(one)


def test_rows_hold_every_second_once() -> None:
    for start, stop in ((0.0, 10.0), (0.0, 31.0), (5.0, 96.5), (0.0, 180.0), (3.0, 1322.0), (0.0, 7201.0)):
        rows = picture._rows(start, stop)
        assert rows[0].start == start
        assert rows[-1].stop == stop
        assert all(a.stop == b.start for a, b in pairwise(rows))
        assert len(rows) <= picture.MOST_ROWS
        assert [(r.stop - r.start) / r.width for r in rows] == pytest.approx(
            [(rows[0].stop - start) / WIDTH] * len(rows)
        )


def test_a_stretch_is_cut_out() -> None:
    image = pixels(TWO_NOTES, seconds=(5.0, 15.0))
    assert columns(is_blue(image)) == pytest.approx((at(1.0), at(4.5)), abs=3)
    assert not is_blue(pixels(TWO_NOTES, seconds=(4.5, 5.5))).any()


def test_leading_silence_is_left_out() -> None:
    image = pixels(TWO_NOTES.shifted(600))  # drawn from 10:02 to 10:10
    assert columns(is_blue(image))[0] == pytest.approx(at(0.0), abs=2)


def test_equal_input_gives_equal_bytes_without_a_date(tmp_path: Path) -> None:
    picture.draw(TWO_NOTES, tmp_path / "a.png", boundary=5.0, title="A title")
    picture.draw(TWO_NOTES, tmp_path / "b.png", boundary=5.0, title="A title")
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes()
    assert not {b"tEXt", b"iTXt", b"zTXt", b"tIME"} & {data[i : i + 4] for i in range(len(data) - 3)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.fixture
def odd_style() -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.family": "serif", "axes.grid": True, "figure.facecolor": "red"}):
        yield
    assert dict(matplotlib.rcParams) == before


def test_the_readers_own_style_changes_nothing(odd_style: None) -> None:
    inside = picture.to_bytes(TWO_NOTES, title="Title", boundary=5.0)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        assert picture.to_bytes(TWO_NOTES, title="Title", boundary=5.0) == inside


@pytest.mark.parametrize("title", ["cost $5 and $6", "日本の歌", "two\nlines\tand tabs", "x" * 400, "a_b^c \\alpha"])
def test_any_title_can_be_drawn(title: str) -> None:
    data = picture.to_bytes(TWO_NOTES, title=title)  # Warnings of missing letters would be errors here.
    assert data != picture.to_bytes(TWO_NOTES)


def test_dollars_are_no_formula() -> None:
    def title_width(title: str) -> int:
        image = imread(io.BytesIO(picture.to_bytes(TWO_NOTES, title=title)))[: picture.TOP, : picture.WIDTH // 2, :3]
        return columns(image.max(axis=2) < 0.5)[1]

    assert title_width("$aaaa$") > title_width("aaaa") + 15


def test_every_key_of_midi_can_be_drawn() -> None:
    edges = Performance.from_notes([Note(0, 1, 0, 1), Note(1, 1, 127, 127)])
    assert is_blue(pixels(edges)).any()


def test_three_minutes_take_less_than_two_seconds() -> None:
    piece = dense(180)
    picture.to_bytes(TWO_NOTES)  # Fonts are read once.
    start = time.process_time()
    picture.to_bytes(piece, boundary=30.0)
    assert time.process_time() - start < 2.0


def test_pyplot_is_never_imported() -> None:
    code = "import sys, pulse88.picture; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_errors_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="no notes"):
        picture.draw(Performance(), tmp_path / "x.png")
    with pytest.raises(PictureError, match=r"seconds 5\.0 to 5\.0"):
        picture.draw(TWO_NOTES, tmp_path / "x.png", seconds=(5.0, 5.0))
    with pytest.raises(PictureError, match=r"nowhere.*can't be written \(No such file.*choose another"):
        picture.draw(TWO_NOTES, tmp_path / "nowhere" / "x.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PictureError, match="can't be written"):
        picture.draw(TWO_NOTES, tmp_path / "folder.png")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


def test_a_failed_picture_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    picture.draw(TWO_NOTES, path)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(PictureError, match="No space left"):
        picture.draw(TWO_NOTES, path, title="another")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
