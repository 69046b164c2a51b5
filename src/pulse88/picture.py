"""Performance → PNG: a piano roll in rows, like the systems of a score, with a pedal lane under each.

Colours are Okabe and Ito's blue and vermilion, which colour-blind readers tell apart, and the continuation stays the
lighter one in grey. All sizes are pixels from the upper left corner; nothing is taken from matplotlib's global state.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pulse88.notes import PEDAL_DOWN, Floats, Performance, pedal_spans
from pulse88.written import write_whole

WIDTH, DPI = 1600, 100
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 64, 14  # margins around all rows
LANE, LANE_GAP, TIMES, ROW_GAP = 9, 4, 20, 14  # heights: pedal lane, above it, the row of times, between rows
ONE_ROW_SECONDS = 30.0  # what is no longer stays in one row
ROW_SECONDS = 20.0  # a row of several is no shorter than this, about
MOST_ROWS = 6
TICK_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
LEAST_SEMITONES = 24
MARGIN_SEMITONES = 2

FONT = "DejaVu Sans"  # comes with matplotlib
CENTRED: dict[str, Any] = {"va": "center", "fontfamily": FONT, "parse_math": False}
INK, GREY, GRID, OCTAVE, BLACK_KEYS = "#1a1a1a", "#5f6368", "#dfe3e8", "#c3c9d1", "#f1f3f6"
# From the softest to the loudest note.
SHADES = {
    "seed": np.array([[0.66, 0.80, 0.92], [0.0, 0.45, 0.70], [0.0, 0.20, 0.38]]),
    "continuation": np.array([[0.98, 0.79, 0.62], [0.90, 0.42, 0.05], [0.62, 0.20, 0.0]]),
}


class PictureError(ValueError):
    """Why no picture came about: the performance, the stretch of time or the path, with the remedy."""


@dataclass(frozen=True)
class _Row:
    """One row: `start` to `stop` seconds, drawn `width` pixels wide."""

    start: float
    stop: float
    width: float


def draw(
    performance: Performance,
    path: str | Path,
    *,
    boundary: float | None = None,
    title: str = "",
    seconds: tuple[float, float] | None = None,
) -> None:
    """Writes a PNG, whole or not at all: keys as they are held, darker where louder, and the pedal below.

    Notes from `boundary` (seconds) on have the continuation's colour, and without one all have the seed's. `seconds` is
    the stretch to draw, by default all of it. Equal input gives equal bytes. PictureError if there are no notes, the
    stretch is empty, or the path can't be written.
    """
    path = Path(path)
    data = to_bytes(performance, boundary=boundary, title=title, seconds=seconds)
    try:
        write_whole(path, data)
    except OSError as error:
        raise PictureError(f"{path}: {error.strerror}") from error


def to_bytes(
    performance: Performance,
    *,
    boundary: float | None = None,
    title: str = "",
    seconds: tuple[float, float] | None = None,
) -> bytes:
    """The PNG file that `draw` writes; PictureError as there."""
    if not len(performance):
        raise PictureError("there is nothing to draw: the performance has no notes; give one that has")
    start, stop = _whole(performance) if seconds is None else seconds
    rows = _rows(start, stop)
    low, high = _keys(performance, start, stop)
    per_semitone = 8 if len(rows) == 1 else 6 if len(rows) <= 3 else 5
    roll = per_semitone * (high - low)
    lane = LANE + LANE_GAP if (performance.pedal_value >= PEDAL_DOWN).any() else 0
    height = TOP + len(rows) * (roll + lane + TIMES) + (len(rows) - 1) * ROW_GAP + BOTTOM
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def axes(left: float, top: float, width: float, tall: float) -> Axes:
        place = (left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height)
        return figure.add_axes(place)

    _draw_header(axes(LEFT, 0, WIDTH - LEFT - RIGHT, TOP), title, split=boundary is not None)
    top = float(TOP)
    for row in rows:
        keys = axes(LEFT, top, row.width, roll)
        _draw_keyboard(keys, row, low, high)
        _draw_notes(keys, performance, row, boundary)
        lowest = keys
        if lane:
            lowest = axes(LEFT, top + roll + LANE_GAP, row.width, LANE)
            _draw_pedal(lowest, performance, row)
        _draw_times(keys, lowest, row, rows[-1].stop)
        if boundary is not None and row.start <= boundary < row.stop:
            for panel in {keys, lowest}:
                panel.axvline(boundary, color=INK, linewidth=1.2, zorder=5)
        top += roll + lane + TIMES + ROW_GAP
    result = io.BytesIO()
    # Metadata would hold matplotlib's version.
    canvas.print_png(result, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return result.getvalue()


def _whole(performance: Performance) -> tuple[float, float]:
    """From 0, or the second before the first note if that comes late, to the second after the last."""
    first = float(performance.onset[0])
    return (0.0 if first < 3 else float(math.floor(first))), float(math.floor(performance.end) + 1)


def _rows(start: float, stop: float) -> list[_Row]:
    if not (math.isfinite(start) and math.isfinite(stop) and start < stop):
        raise PictureError(f"can't draw seconds {start} to {stop}: the first must be below the second")
    width = WIDTH - LEFT - RIGHT
    if stop - start <= ONE_ROW_SECONDS:
        return [_Row(start, stop, width)]
    count = min(math.ceil((stop - start) / ROW_SECONDS), MOST_ROWS)
    unit = 1 if stop - start < 60 * count else 5
    length = math.ceil((stop - start) / count / unit) * unit
    starts = [start + i * length for i in range(math.ceil((stop - start) / length))]
    # The last row is as wide as it is long, so that seconds have one size.
    return [_Row(s, min(s + length, stop), width * (min(s + length, stop) - s) / length) for s in starts]


def _keys(performance: Performance, start: float, stop: float) -> tuple[int, int]:
    """Lowest key drawn and the one above the highest: those of the stretch, or of the piece if it is silent there."""
    here = (performance.onset < stop) & (performance.onset + performance.duration > start)
    pitch = performance.pitch[here] if here.any() else performance.pitch
    low, high = int(pitch.min()) - MARGIN_SEMITONES, int(pitch.max()) + 1 + MARGIN_SEMITONES
    more = max(LEAST_SEMITONES - (high - low), 0)
    low, high = low - more // 2, high + more - more // 2
    return max(low, 0), min(high, 128)


def _shades(kind: str, velocity: Floats) -> Floats:
    """Colours, [N, 3], of MIDI velocities."""
    stops = SHADES[kind]
    return np.stack([np.interp(velocity, (10, 75, 120), stops[:, channel]) for channel in range(3)], axis=-1)


def _boxes(left: ArrayLike, right: ArrayLike, bottom: ArrayLike, top: ArrayLike, colours: Any) -> PolyCollection:
    """Rectangles from N or 1 value of each side, without outlines."""
    x0, x1, y0, y1 = np.broadcast_arrays(np.atleast_1d(left), right, bottom, top)
    corners = np.stack((x0, y0, x1, y0, x1, y1, x0, y1), axis=-1).reshape(-1, 4, 2)
    return PolyCollection(list(corners), facecolors=colours, linewidths=0)


def _bare(panel: Axes) -> None:
    panel.grid(False)
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)


def _draw_header(panel: Axes, title: str, *, split: bool) -> None:
    panel.set(xlim=(0, WIDTH - LEFT - RIGHT), ylim=(TOP, 0), facecolor="none")
    _bare(panel)
    panel.text(0, 30, _drawable(title), color=INK, fontsize=13, fontweight="bold", **CENTRED)
    right = WIDTH - LEFT - RIGHT
    for kind in ("continuation", "seed") if split else ("seed",):
        velocity = np.linspace(10, 120, 6)
        left = right - 90 + np.arange(6) * 15
        panel.add_collection(_boxes(left, left + 14, 24, 36, _shades(kind, velocity)))
        panel.text(right - 100, 30, kind if split else "notes", color=INK, fontsize=10, ha="right", **CENTRED)
        right -= 216 if kind == "continuation" else 160
    panel.text(right, 30, "darker is louder", color=GREY, fontsize=9, ha="right", **CENTRED)


def _draw_keyboard(panel: Axes, row: _Row, low: int, high: int) -> None:
    """Rows of keys, their names, and the frame."""
    panel.set(xlim=(row.start, row.stop), ylim=(low - 0.5, high - 0.5), facecolor="white")
    _bare(panel)
    keys = np.arange(low, high)
    black = keys[np.isin(keys % 12, (1, 3, 6, 8, 10))]
    panel.add_collection(_boxes(row.start, row.stop, black - 0.5, black + 0.5, BLACK_KEYS), autolim=False)
    octaves = keys[keys % 12 == 0]
    panel.add_collection(
        LineCollection([[(row.start, c - 0.5), (row.stop, c - 0.5)] for c in octaves], colors=OCTAVE, linewidths=0.8),
        autolim=False,
    )
    panel.set_yticks(octaves.tolist(), [f"C{c // 12 - 1}" for c in octaves.tolist()])
    panel.tick_params(axis="y", length=0, labelsize=9, labelcolor=GREY, labelfontfamily=FONT, pad=6)


def _draw_notes(panel: Axes, performance: Performance, row: _Row, boundary: float | None) -> None:
    end = performance.onset + performance.duration
    here = (performance.onset < row.stop) & (end > row.start)
    onset, end = performance.onset[here], end[here]
    pitch, velocity = performance.pitch[here].astype(np.float64), performance.velocity[here].astype(np.float64)
    pixel = (row.stop - row.start) / row.width
    # A gap of a pixel parts repeated notes; none is narrower than two.
    right = np.maximum(end - pixel, onset + 2 * pixel)
    colours = _shades("seed", velocity)
    if boundary is not None:
        later = onset >= boundary
        colours[later] = _shades("continuation", velocity[later])
    notes = _boxes(onset, right, pitch - 0.42, pitch + 0.42, colours)
    notes.set_zorder(3)
    panel.add_collection(notes, autolim=False)


def _draw_pedal(panel: Axes, performance: Performance, row: _Row) -> None:
    panel.set(xlim=(row.start, row.stop), ylim=(0, 1), facecolor=BLACK_KEYS)
    _bare(panel)
    panel.set_yticks([0.5], ["pedal"])
    panel.tick_params(axis="y", length=0, labelsize=8, labelcolor=GREY, labelfontfamily=FONT, pad=6)
    stop = max(performance.end, float(performance.pedal_time[-1]))
    for part in np.unique(performance.pedal_part):
        mine = performance.pedal_part == part
        spans = pedal_spans(performance.pedal_time[mine], performance.pedal_value[mine] >= PEDAL_DOWN, stop)
        panel.add_collection(_boxes(*spans, 0, 1, GREY), autolim=False)


def _draw_times(keys: Axes, lowest: Axes, row: _Row, last: float) -> None:
    """Lines across the roll and times below the row, 110 pixels or more apart."""
    least = 110 * (row.stop - row.start) / row.width
    step = next((s for s in TICK_SECONDS if s >= least), TICK_SECONDS[-1] * math.ceil(least / TICK_SECONDS[-1]))
    ticks = np.arange(math.ceil(row.start / step - 1e-9), math.floor(row.stop / step + 1e-9) + 1) * step
    keys.add_collection(
        LineCollection([[(t, -1), (t, 129)] for t in ticks], colors=GRID, linewidths=0.8, zorder=1), autolim=False
    )
    lowest.set_xticks(ticks.tolist(), [_clock(t, step, last) for t in ticks.tolist()])
    lowest.tick_params(axis="x", length=3, color=OCTAVE, labelsize=9, labelcolor=GREY, labelfontfamily=FONT, pad=2)


def _clock(seconds: float, step: float, last: float) -> str:
    if last < 60:
        return f"{seconds:.1f} s" if step < 1 else f"{seconds:.0f} s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f}:{rest:04.1f}" if step < 1 else f"{minutes:.0f}:{rest:02.0f}"


def _drawable(title: str) -> str:
    """One line of what the font has; other characters are drawn as question marks."""
    font = font_manager.get_font(font_manager.findfont(FONT))
    line = "".join(c if font.get_char_index(ord(c)) else "?" for c in " ".join(title.split()))
    return line if len(line) <= 72 else line[:71] + "…"
