"""A report of weights: report.json, report.md and its pictures, from what likelihood.py and trials.py measured.

Shape legend: P pieces, C contexts.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pulse88.batches import TokenCorpus
from pulse88.distributions import FEATURES
from pulse88.intervals import LEVEL, RESAMPLES, Interval, mean, ratio
from pulse88.likelihood import CONTEXTS, SLOTS, Floats, Likelihood, grid_bits, seconds_of_pieces, sources
from pulse88.trials import DRIFT_NOTES, FIGURES, NOTES, PROMPT_NOTES, Row
from pulse88.vocabulary import EVENT_TOKENS, TimeGrid
from pulse88.written import write_whole

COLOURS = {"model": "#d1701f", "same piece, later": "#3565a8", "another piece": "#9aa0a6", "composer": "#3565a8"}


def likelihood_section(found: Likelihood, corpus: TokenCorpus, grid: TimeGrid) -> dict[str, Any]:
    """Bits a note and a second, whole, grid-free, by slot, source and context, each with its interval over pieces."""
    bits, notes = found.piece_bits, found.notes
    free = bits + grid_bits(corpus, grid)
    by_slot = found.nats / math.log(2)
    by_source = {
        source: {
            "pieces": int(mine.sum()),
            "notes": int(notes[mine].sum()),
            "bits_per_note": ratio(bits[mine], notes[mine]),
            "grid_free": ratio(free[mine], notes[mine]),
        }
        for source, mine in sources(found.names).items()
    }
    return {
        "bits_per_note": ratio(bits, notes),
        "grid_free": ratio(free, notes),
        "bits_per_second": ratio(bits, seconds_of_pieces(corpus, grid)),
        "by_slot": {slot: ratio(by_slot[:, at], notes) for at, slot in enumerate(SLOTS)},
        "by_source": by_source,
        "by_context": _by_context(found),
    }


def _by_context(found: Likelihood) -> list[dict[str, Any]]:
    if found.context_nats is None or found.context_tokens is None:
        return []
    ends = [*CONTEXTS[1:], None]
    return [
        {
            "from": begin,
            "to": end,
            "bits_per_note": ratio(EVENT_TOKENS * found.context_nats[:, at] / math.log(2), found.context_tokens[:, at]),
        }
        for at, (begin, end) in enumerate(zip(CONTEXTS, ends, strict=True))
        if found.context_tokens[:, at].sum()
    ]


def baseline_rows(bits: Mapping[str, Floats], corpus: TokenCorpus, grid: TimeGrid) -> list[dict[str, Any]]:
    """Bits a note of predictors by name; [P] bits each, or [1] for those that know no pieces."""
    notes = (corpus.lengths - 1) // EVENT_TOKENS
    free = grid_bits(corpus, grid)
    rows = []
    for name, of in bits.items():
        by_piece = len(of) == len(notes)
        below = notes if by_piece else notes.sum(keepdims=True)
        added = free if by_piece else free.sum(keepdims=True)
        rows.append({"name": name, "bits_per_note": ratio(of, below), "grid_free": ratio(of + added, below)})
    return rows


def row_section(row: Row) -> dict[str, Any]:
    """A row of trials as JSON has it."""
    return {
        "who": row.who,
        "overlapping_area": row.areas,
        "divergence_bits": row.divergences,
        "figures": row.figures,
    }


def write(folder: Path, report: Mapping[str, Any]) -> None:
    """report.json, report.md and pictures; whatever section is missing is left out."""
    plain = _plain(report)
    write_whole(folder / "report.json", (json.dumps(plain, indent=1) + "\n").encode())
    pictures = []
    if "likelihood" in report:
        _draw_likelihood(report["likelihood"], folder / "likelihood.png")
        pictures.append("likelihood.png")
    if "continuations" in report:
        _draw_areas(report["continuations"]["rows"], folder / "overlap.png")
        pictures.append("overlap.png")
    if report.get("drift"):
        _draw_drift(report["drift"], folder / "drift.png")
        pictures.append("drift.png")
    write_whole(folder / "report.md", _markdown(report, pictures).encode())


def _plain(value: Any) -> Any:
    """Intervals as objects, numbers that are none as null."""
    if isinstance(value, Interval):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _markdown(report: Mapping[str, Any], pictures: Sequence[str]) -> str:
    about = report["about"]
    lines = ["# How good it is", "", f"Weights `{about['weights']}`, sha256 {about['weights_sha256']}, engine"]
    lines[-1] += f" {about['engine']}, pulse88 {about['version']}; made by"
    lines += ["", f"    {about['command']}"]
    lines += ["", f"In brackets: {LEVEL:.0%} bootstrap intervals over pieces ({RESAMPLES:,} resamples)."]
    if "likelihood" in report:
        lines += _likelihood_lines(report["likelihood"], about)
    if "continuations" in report:
        lines += _continuation_lines(report["continuations"])
    if report.get("drift"):
        lines += _drift_lines(report["drift"])
    for said in report.get("remarks", ()):
        lines += ["", said]
    for picture in pictures:
        lines += ["", f"![{picture.removesuffix('.png')}]({picture})"]
    return "\n".join(lines) + "\n"


def _likelihood_lines(found: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    lines = ["", "## Likelihood", ""]
    lines.append(
        f"{about['pieces']} of the {about['of_pieces']} pieces of `{about['split']}`, evenly spaced, "
        f"{about['notes']:,} notes, "
        f"{found['bits_per_second'].text(1)} bits a second of music."
    )
    lines += ["", *table(["", "bits a note", "grid-free"], [["**these weights**", *_both(found)]])]
    lines += table([], [[row["name"], *_both(row)] for row in found.get("baselines", ())])[2:]
    lines += ["", "Grid-free: docs/tokens.md defines it. The baselines are defined in docs/evaluation.md.", ""]
    slots = {slot: bits for slot, bits in found["by_slot"].items() if bits.value}
    lines += table(list(slots), [[bits.text() for bits in slots.values()]])
    lines += ["", *table(["source", "pieces", "notes", "bits a note", "grid-free"], _source_rows(found["by_source"]))]
    if found["by_context"]:
        heads = ["tokens read before", *(_context_name(row) for row in found["by_context"])]
        lines += ["", *table(heads, [["bits a note", *(row["bits_per_note"].text() for row in found["by_context"])]])]
        lines.append("")
        lines.append("By context only whole windows count, so that all columns are of the same music but for its ends.")
    return lines


def _both(row: Mapping[str, Any]) -> list[str]:
    return [row["bits_per_note"].text(), row["grid_free"].text()]


def _source_rows(by_source: Mapping[str, Any]) -> list[list[str]]:
    return [[name, f"{row['pieces']:,}", f"{row['notes']:,}", *_both(row)] for name, row in by_source.items()]


def _context_name(row: Mapping[str, Any]) -> str:
    return f"{row['from']}–{row['to'] - 1}" if row["to"] else f"{row['from']} and more"


def _continuation_lines(found: Mapping[str, Any]) -> list[str]:
    lines = ["", "## Continuations", ""]
    lines.append(
        f"After the first {PROMPT_NOTES} notes of {found['prompts']} held-out pieces, {found['takes']} takes each, as "
        f"long as the true continuation ({NOTES} notes at most); {found['sampling']}. Overlapping area with the true "
        "continuation (1 is alike), means over pieces; *same piece, later* is real against real, the ceiling; "
        "*another piece* the floor."
    )
    rows = [row for row in found["rows"] if row["who"] != "true continuation"]
    heads = ["overlapping area", *FEATURES, "mean"]
    lines += ["", *table(heads, [[r["who"], *_texts(r["overlapping_area"], 2)] for r in rows])]
    if "shortfall" in found:
        lines += ["", f"The takes fall short of the ceiling by {found['shortfall'].text(3)}, paired by piece."]
    heads[0] = "divergence, bits"
    lines += ["", *table(heads, [[r["who"], *_texts(r["divergence_bits"], 2)] for r in rows])]
    heads = ["", *FIGURES.values()]
    lines += ["", *table(heads, [[r["who"], *_texts(r["figures"], 2)] for r in found["rows"]])]
    if "density_within" in found:
        lines += ["", f"Takes within a factor of 2 of the prompt's density: {found['density_within']:.0%}."]
    return lines


def _drift_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["", "## Drift", ""]
    lines.append(
        f"One long take of each prompt, in windows of {DRIFT_NOTES} notes that end at so many times the context; the "
        "composer's own piece at the same places, where it goes on for so long."
    )
    heads = ["", "contexts", "pieces", *FIGURES.values()]
    rows = [[r["who"], str(r["contexts"]), str(r["pieces"]), *_texts(r["figures"], 2)] for r in found]
    return [*lines, "", *table(heads, rows)]


def _texts(intervals: Mapping[str, Interval], digits: int) -> list[str]:
    return [interval.text(digits) for interval in intervals.values()]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, numbers to the right."""
    count = len(heads) or max(map(len, rows), default=0)
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (count - 1)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def _figure(width: float, panels: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, panels)))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    write_whole(path, content.getvalue())


def _errors(intervals: Sequence[Interval]) -> Floats:
    """[2, n] how far the intervals reach below and above; 0 where there are none."""
    found = np.array([(i.value - i.low, i.high - i.value) for i in intervals]).T
    return np.maximum(np.nan_to_num(found), 0.0)


def _draw_likelihood(found: Mapping[str, Any], path: Path) -> None:
    figure, axes = _figure(13, 2)
    rows = [("these weights", found["bits_per_note"])]
    rows += [(row["name"], row["bits_per_note"]) for row in found.get("baselines", ())]
    rows += [(name, row["bits_per_note"]) for name, row in found["by_source"].items()]
    values = [row[1] for row in rows]
    axes[0].barh(range(len(rows)), [i.value for i in values], xerr=_errors(values), color=COLOURS["model"], capsize=2)
    axes[0].set_yticks(range(len(rows)), [row[0] for row in rows])
    axes[0].invert_yaxis()
    axes[0].set_xlabel("bits a note: weights, baselines, and the weights by source")
    context = [row["bits_per_note"] for row in found["by_context"]]
    if context:
        axes[1].errorbar(
            range(len(context)), [i.value for i in context], yerr=_errors(context), color=COLOURS["model"], capsize=3
        )
        axes[1].set_xticks(range(len(context)), [_context_name(row) for row in found["by_context"]], rotation=30)
    axes[1].set_xlabel("tokens read before")
    axes[1].set_ylabel("bits a note")
    _save(figure, path)


def _draw_areas(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    figure, (ax,) = _figure(11, 1)
    shown = [row for row in rows if row["who"] in COLOURS]
    for number, row in enumerate(shown):
        intervals = list(row["overlapping_area"].values())
        at = np.arange(len(intervals)) + 0.27 * (number - (len(shown) - 1) / 2)
        colour = COLOURS[row["who"]]
        values = [i.value for i in intervals]
        ax.bar(at, values, 0.25, yerr=_errors(intervals), color=colour, capsize=2, label=row["who"])
    ax.set_xticks(range(len(FEATURES) + 1), [*FEATURES, "mean"])
    ax.set_ylabel("overlapping area with the true continuation")
    ax.legend(frameon=False, ncols=len(shown), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _save(figure, path)


def _draw_drift(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    shown = ("density", "range", "entropy", "bars", "degenerate")
    figure, axes = _figure(17, len(shown))
    for ax, name in zip(axes, shown, strict=True):
        for who in dict.fromkeys(row["who"] for row in found):
            mine = [row for row in found if row["who"] == who]
            intervals = [row["figures"][name] for row in mine]
            at, values = [row["contexts"] for row in mine], [i.value for i in intervals]
            ax.errorbar(at, values, yerr=_errors(intervals), color=COLOURS[who], capsize=3, label=who)
        ax.set_xscale("log", base=2)
        ax.set_xlabel("contexts")
        ax.set_title(FIGURES[name], fontsize=10)
    axes[0].legend(frameon=False)
    _save(figure, path)


def share_within(densities: Sequence[float], factor: float = 2.0) -> float:
    """Share of density ratios within a factor of 1."""
    return float(mean([1 / factor <= density <= factor for density in densities]).value)
