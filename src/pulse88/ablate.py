"""Trains the rows of a suite on equal data in equal order, and writes one table of what came of them.

OUT/ROW/seed-0/            the run: checkpoints, logs
OUT/ROW/seed-0/result.json what it came to; a finished run isn't run again
OUT/results.json, results.md, results.png

Several processes may share a suite (`share`): each takes its rows, and whoever is last writes the whole table.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pulse88 import checkpoint, shards
from pulse88.delta_rule import Kernel
from pulse88.engine import weights as weights_file
from pulse88.evaluate import likelihood
from pulse88.likelihood import grid_bits_per_note
from pulse88.model import Pulse88
from pulse88.suites import Row, RowConfig, Suite
from pulse88.train import train
from pulse88.written import write_whole, written_whole

RESULT = "result.json"
PREFILL, STEPS = 256, 32  # tokens before the decoding is timed, and timed
Tell = Callable[[str], None]


class AblationError(ValueError):
    """A suite can't go on; the message names the folder and the remedy."""


@dataclass(frozen=True)
class Plan:
    """What to run: which rows with which seeds on which data."""

    suite: Suite
    data: Path
    out: Path
    other_data: Mapping[str, Path]  # by the name of a row's time grid
    only: tuple[str, ...] = ()
    seeds: int | None = None  # in place of each row's own number
    share: tuple[int, int] = (1, 1)  # the k-th of n processes

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.only) - {row.name for row in self.suite.rows}):
            raise ValueError(f"{self.suite.name} has no row {', '.join(unknown)}")
        if not 1 <= self.share[0] <= self.share[1]:
            raise ValueError(f"share must be k/n with 1 <= k <= n, not {self.share[0]}/{self.share[1]}")

    def data_of(self, row: Row) -> Path | None:
        """The row's data, None where they were not given."""
        return self.other_data.get(row.grid) if row.grid else self.data

    def runs(self) -> list[tuple[Row, int]]:
        """Every row and seed of the plan that has data, first seeds first."""
        rows = [row for row in self.suite.rows if row.name in (self.only or (row.name,)) and self.data_of(row)]
        pairs = [(row, seed) for row in rows for seed in range(self.seeds or row.seeds)]
        return sorted(pairs, key=lambda pair: pair[1])

    def mine(self) -> list[tuple[Row, int]]:
        """Those of this process."""
        return self.runs()[self.share[0] - 1 :: self.share[1]]

    def folder(self, row: Row, seed: int) -> Path:
        return self.out / row.name / f"seed-{seed}"


def run(plan: Plan, *, kernel: Kernel | None = None, compiled: bool = False, tell: Tell = lambda line: None) -> None:
    """Trains what has no result yet, resuming what was cut short. AblationError, and what `train` raises."""
    for row, seed in plan.mine():
        folder, data = plan.folder(row, seed), plan.data_of(row)
        assert data is not None
        key = key_of(row, seed, data)
        if known := read_result(folder):
            if known["key"] != key:
                raise AblationError(
                    f"{folder / RESULT}: of another configuration or other data; choose another folder, or delete it"
                )
            tell(f"{row.name}, seed {seed}: {known['bits_per_note']:.3f} bits a note, found")
            continue
        config = with_seed(row.config, seed)
        outcome = train(config, data, folder, kernel=kernel, compiled=compiled, resume=True)
        if outcome.ended_by != "finished":
            tell(f"{row.name}, seed {seed}: stopped by {outcome.ended_by} at step {outcome.progress.step}")
            return
        result = {"key": key, "row": row.name, "seed": seed, **judged(folder, config, data, kernel)}
        write_whole(folder / RESULT, json.dumps(result, indent=1).encode())
        tell(f"{row.name}, seed {seed}: {result['bits_per_note']:.3f} bits a note")


def with_seed(config: RowConfig, seed: int) -> RowConfig:
    """The same row with another seed for weights and order: rows of one seed see the same windows."""
    values = {name: getattr(config, name) for name in config.__dataclass_fields__}
    return RowConfig(**values | {"seed": seed})


def key_of(row: Row, seed: int, data: Path) -> str:
    """16 hex digits that change with the configuration, the seed and the training data."""
    corpus = shards.read_split(data, "train")
    text = json.dumps([asdict(row.config), seed, corpus.fingerprint], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a finished run came to; AblationError if the file can't be read."""
    path = folder / RESULT
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        found["key"], found["bits_per_note"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AblationError(f"{path}: {error}; delete it, and the row is judged again") from error
    return found


def judged(folder: Path, config: RowConfig, data: Path, kernel: Kernel | None) -> dict[str, Any]:
    """The figures of a finished run: from its log, from its weights beyond the context, and from decoding."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    last = [line for line in lines if line.get("event") == "validation"][-1]
    held_out, grid = shards.read_split(data, "validation"), shards.read_grid(data)
    model = checkpoint.load_model(weights_file.read(checkpoint.list_checkpoints(folder)[-1] / checkpoint.WEIGHTS_NAME))
    speeds = [line["tokens_per_second"] for line in steps if line.get("tokens_per_second")]
    beyond = None
    if not config.shape.learned_positions:
        beyond = bits_beyond(model, held_out, config, kernel)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": steps[-1]["tokens"],
        "training_loss": steps[-1]["loss"],
        "bits_per_note": last["bits_per_note"],
        "grid_free": last["bits_per_note"] + grid_bits_per_note(held_out, grid),
        "slots": last["slots"],
        "bits_beyond": beyond,
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "memory_bytes": max(line["memory_bytes"] for line in steps),
        "decode_ms": decode_milliseconds(model.cpu()),
        "state_bytes": state_bytes(model, config.window),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }


def bits_beyond(model: Pulse88, held_out: Any, config: RowConfig, kernel: Kernel | None) -> float:
    """Bits a note with twice the context it was trained with; windows overlap by half of that."""
    cuda = torch.cuda.is_available()
    if cuda:
        model.cuda().use_kernel(kernel or "fla")
    found = likelihood(
        model,
        held_out,
        window=2 * config.window,
        batch=max(1, config.micro_windows // 2),
        precision=torch.bfloat16 if cuda and config.precision == "bf16" else None,
        ends=config.ends,
    )
    model.cpu().use_kernel("chunked")
    return found.bits_per_note


@torch.no_grad()
def decode_milliseconds(model: Pulse88) -> float:
    """Median wall time of a token on one CPU thread in eager torch, after PREFILL tokens or half the context."""
    model.use_kernel("chunked")
    model.eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokens = min(PREFILL, model.config.max_positions // 2)
        _, state = model(torch.zeros(1, tokens, dtype=torch.long), model.zero_state())
        taken = []
        for _ in range(min(STEPS, tokens)):
            began = time.perf_counter()
            _, state = model(torch.zeros(1, 1, dtype=torch.long), state)
            taken.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return 1e3 * statistics.median(taken)


@torch.no_grad()
def state_bytes(model: Pulse88, tokens: int) -> int:
    """Bytes of a sequence's state after so many tokens, in float32."""
    _, state = model(torch.zeros(1, 1, dtype=torch.long), model.zero_state())
    total = 0
    for layer in state.layers:
        for mixer in layer:
            for name, value in vars(mixer).items():
                total += value.numel() * value.element_size() * (tokens if name.endswith("_BTGE") else 1)
    return total


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Line:
    """A row's figures over its seeds."""

    row: Row
    results: Sequence[dict[str, Any]]
    against: float | None  # mean difference to the first row's bits, over the seeds that both have
    against_spread: float | None  # standard deviation of that difference, from two common seeds on

    def mean(self, name: str) -> float | None:
        values = [result[name] for result in self.results if result[name] is not None]
        return statistics.fmean(values) if values else None

    def spread(self, name: str) -> float | None:
        values = [result[name] for result in self.results if result[name] is not None]
        return statistics.stdev(values) if len(values) > 1 else None


def lines_of(plan: Plan) -> list[Line]:
    """All rows of the suite that have results, in its order."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in plan.suite.rows:
        results = {}
        for folder in sorted((plan.out / row.name).glob("seed-*")):
            if result := read_result(folder):
                results[int(result["seed"])] = result
        if results:
            found[row.name] = dict(sorted(results.items()))
    base = found.get(plan.suite.rows[0].name, {})
    lines = []
    for row in plan.suite.rows:
        if row.name in found:
            # Grids differ in what they ask; without them the figure is the same but for a constant.
            # One without ends has none to pay for: then events alone are compared.
            ends = row.config.ends and plan.suite.rows[0].config.ends
            gaps = [
                compared(r, ends) - compared(base[seed], ends) for seed, r in found[row.name].items() if seed in base
            ]
            lines.append(
                Line(
                    row,
                    list(found[row.name].values()),
                    statistics.fmean(gaps) if gaps else None,
                    statistics.stdev(gaps) if len(gaps) > 1 else None,
                )
            )
    return lines


def compared(result: dict[str, Any], ends: bool = True) -> float:
    """Grid-free bits a note, with or without those of EOS."""
    return float(result["grid_free"] - (0 if ends else result["slots"]["ends"]))


def table(plan: Plan, lines: Sequence[Line]) -> str:
    """Markdown: a line a row, speed and decoding as ratios to the first row's."""
    first = lines[0]
    head = (
        "| row | asks | parameters | seeds | bits a note | against the first | beyond the context | training, thousand "
        "tokens/s | GB | decoding, ms a token | state, MB |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    rows = []
    for line in lines:
        speed, base_speed = line.mean("tokens_per_second"), first.mean("tokens_per_second")
        decode, base_decode = line.mean("decode_ms"), first.mean("decode_ms")
        cells = [
            line.row.name,
            line.row.asks,
            f"{line.results[0]['parameters']:,}",
            str(len(line.results)),
            _figure(line.mean("bits_per_note"), 3) + _spread(line.spread("bits_per_note")),
            "" if line is first else _figure(line.against, 3, "+") + _spread(line.against_spread),
            _figure(line.mean("bits_beyond"), 3),
            _ratio(speed, base_speed, 1e-3),
            _figure((line.mean("memory_bytes") or 0) / 1e9 or None, 1),
            _ratio(decode, base_decode, 1.0),
            _figure((line.mean("state_bytes") or 0) / 1e6, 2),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    missing = [row.name for row in plan.suite.rows if row.name not in {line.row.name for line in lines}]
    commands = [f"pulse88 ablate {plan.suite.name} --data DATA -o OUT --only {line.row.name}" for line in lines]
    text = (
        f"# {plan.suite.name}\n\n{head}" + "\n".join(rows) + "\n\n"
        "Bits a note on held-out music, mean ± standard deviation over seeds; the difference is of grid-free figures "
        "and over common seeds; without what EOS costs where either row has none. Decoding is of eager torch on one "
        "CPU thread. Ratios are to the first row's.\n\n"
    )
    if missing:
        text += f"Not run: {', '.join(missing)}.\n\n"
    return text + "```\n" + "\n".join(commands) + "\n```\n"


def _figure(value: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:{sign}.{digits}f}"


def _spread(value: float | None) -> str:
    return "" if value is None else f" ± {value:.3f}"


def _ratio(value: float | None, base: float | None, unit: float) -> str:
    if value is None or not base:
        return _figure(None if value is None else value * unit, 2)
    return f"{value * unit:.4g} ({value / base:.2f}×)"


def write_tables(plan: Plan) -> Path | None:
    """Writes results.json, results.md and results.png of all that is there; None if nothing is."""
    lines = lines_of(plan)
    if not lines:
        return None
    results = {line.row.name: list(line.results) for line in lines}
    write_whole(plan.out / "results.json", json.dumps(results, indent=1).encode())
    draw(lines, plan.out / "results.png")
    write_whole(plan.out / "results.md", table(plan, lines).encode())
    return plan.out / "results.md"


def draw(lines: Sequence[Line], path: Path) -> None:
    """A dot a seed and row: bits a note against the first row's mean."""
    from matplotlib.figure import Figure  # takes longer than all else here

    figure = Figure(figsize=(8, 1 + 0.3 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for height, line in enumerate(reversed(lines)):
        ends = line.row.config.ends and lines[0].row.config.ends
        base = statistics.fmean(compared(result, ends) for result in lines[0].results)
        values = [compared(result, ends) - base for result in line.results]
        axes.plot(values, [height] * len(values), "o", color="tab:blue", alpha=0.6)
        axes.plot(statistics.fmean(values), height, "|", color="black", markersize=14)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(lines)), [line.row.name for line in reversed(lines)])
    axes.set_xlabel("bits a note against the first row")
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
