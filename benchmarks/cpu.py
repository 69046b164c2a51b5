"""How fast the engines are on one core, beside torch, a transformer, and recomputing the context for every token.

    python benchmarks/cpu.py                      # the released weights, about ten minutes
    python benchmarks/cpu.py --rounds 9 --only "native int8" "torch eager"

All engines run in one process, in turn within every round, one thread each. Times are process CPU time, because other
programs may share the cores; wall time stands beside it where it matters. Ratios are medians over the rounds of ratios
within a round. Peak memory and the time to a first note come from a process of its own for each engine, its modules
compiled to bytecode before, as an installation leaves them. Engines whose libraries are missing are named and left out.
Prints Markdown.

At 8000 tokens, past the context of 2048, this model rolls on: its figure is the mean over a whole turn, a rebuilding of
the state from 1024 tokens and the 1024 that follow. The transformer just goes on, its cache ever longer; what it would
play there is another question. numpy and torch could roll on too, but have no figure.
"""

# ruff: noqa: E402  The number of threads is set before anything is imported that reads it.
from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import argparse
import importlib.metadata as metadata
import importlib.util
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse88 import engine as engines
from pulse88.config import SamplingConfig
from pulse88.continuation import default_weights
from pulse88.engine.library import kernels, library
from pulse88.engine.weights import Weights, metadata_of, read, save
from pulse88.vocabulary import EVENT_TOKENS

SHORT, LONG, FAR, SEED = 512, 1920, 8000, 512  # tokens of context at which decoding is timed, and of the seed
TURN = (1024, 1536, 2008)  # positions at which a turn of rolling on is timed, each for 32 tokens
NOTES = 600  # of the timed minute of dense music, ten a second
BATCHES = (4, 16)
THREADS = (1, 2, 4)  # of the native engine, as far as there are cores
LIBRARIES = ("numpy", "torch", "transformers")
CHILD = "--first-note"


class TorchEngine:
    """The training model under the engines' contract, eager, float32."""

    name = "torch"

    def __init__(self, weights: Weights) -> None:
        import torch

        from pulse88.model import Pulse88

        torch.set_num_threads(1)
        self.torch, self.config = torch, weights.config
        self.model = Pulse88(weights.config).eval()
        names = (name for name in weights.tensors if not name.endswith(".scale"))
        self.model.load_state_dict({name: torch.from_numpy(weights.matrix(name).copy()) for name in names})

    def zero_state(self, batch: int = 1) -> Any:
        return self.model.zero_state(batch)

    def forward(self, ids: Any, state: Any, *, last_only: bool = False) -> tuple[NDArray[np.float32], Any]:
        with self.torch.inference_mode():
            logits, state = self.model(self.torch.as_tensor(np.asarray(ids)), state)
        return (logits[:, -1:] if last_only else logits).numpy(), state

    def fork(self, state: Any, count: int) -> Any:
        return state.fork(count)


class LlamaEngine:
    """A transformers Llama of about the same size with its key/value cache: what an ordinary model costs."""

    name = "llama"

    def __init__(self, weights: Weights) -> None:
        import torch
        import transformers

        torch.set_num_threads(1)
        self.torch, self.config = torch, weights.config
        settings = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 1408}
        shape = transformers.LlamaConfig(vocab_size=171, max_position_embeddings=8192, **settings)
        self.model = transformers.LlamaForCausalLM(shape).eval()
        self.cache = transformers.DynamicCache

    def zero_state(self, batch: int = 1) -> Any:
        return self.cache(), 0

    def forward(self, ids: Any, state: Any, *, last_only: bool = False) -> tuple[NDArray[np.float32], Any]:
        cache, length = state
        ids_BT = self.torch.as_tensor(np.asarray(ids))
        with self.torch.inference_mode():
            self.forget(cache, length)
            keep = 1 if last_only else 0
            result = self.model(ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=keep)
        return result.logits.numpy(), (cache, length + ids_BT.shape[1])

    def forget(self, cache: Any, length: int) -> None:
        """A call changes its cache: takes out what an earlier one added past `length`."""
        if extra := cache.get_seq_length() - length:
            cache.crop(-extra)

    def fork(self, state: Any, count: int) -> Any:
        import copy

        cache, length = copy.deepcopy(state)
        self.forget(cache, length)
        cache.batch_repeat_interleave(count)
        return cache, length


MAKERS: dict[str, Callable[[Path, Path], Any]] = {
    "native int8": lambda int8, fp32: engines.load(int8, "native"),
    "native fp32": lambda int8, fp32: engines.load(fp32, "native"),
    "numpy fp32": lambda int8, fp32: engines.load(fp32, "numpy"),
    "torch eager": lambda int8, fp32: TorchEngine(read(fp32)),
    "llama, torch": lambda int8, fp32: LlamaEngine(read(fp32)),
}
BASE, TRANSFORMER = "torch eager", "llama, torch"


def missing(name: str) -> str | None:
    """Why an engine can't run here."""
    needs = {"torch eager": ["torch"], "llama, torch": ["torch", "transformers"]}.get(name, [])
    absent = [library for library in needs if importlib.util.find_spec(library) is None]
    if absent:
        return f"{' and '.join(absent)} not installed"
    if name.startswith("native"):
        try:
            library()
        except ImportError as error:
            return str(error)
    return None


# ---------------------------------------------------------------- speed, in turn


def measure(chosen: dict[str, Any], rounds: int) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(CPU, wall) seconds of a token, or of a whole prefill, for every engine, task and round."""
    ids_BT = np.random.default_rng(0).integers(0, 168, (1, LONG))
    states: dict[tuple[str, str], Any] = {}
    for name, engine in chosen.items():
        _, states[name, "short"] = engine.forward(ids_BT[:, :SHORT], engine.zero_state(), last_only=True)
        for batch in BATCHES:
            states[name, f"batch {batch}"] = engine.fork(states[name, "short"], batch)
        start = engine.fork(states[name, "short"], 1)
        _, states[name, "long"] = engine.forward(ids_BT[:, SHORT:], start, last_only=True)
        if name == TRANSFORMER:
            far = engine.fork(states[name, "long"], 1)
            for _ in range((FAR - LONG) // 304):
                _, far = engine.forward(ids_BT[:, :304], far, last_only=True)
            states[name, "far"] = far

    def roll(name: str) -> None:
        """A turn: the state rebuilt, and tokens at three places between there and the end of the context."""
        engine, state = chosen[name], chosen[name].zero_state()
        _, state = engine.forward(ids_BT[:, : TURN[0]], state, last_only=True)
        for place in TURN:
            if place > state.position:
                _, state = engine.forward(ids_BT[:, : place - state.position], state, last_only=True)
            began = time.process_time(), time.perf_counter()
            for _ in range(32):
                _, state = engine.forward(ids_BT[:, :1], state, last_only=True)
            turns[name, place] = time.process_time() - began[0], time.perf_counter() - began[1]

    turns: dict[tuple[str, int], tuple[float, float]] = {}

    def decode(name: str, task: str, batch: int, steps: int) -> None:
        engine, state = chosen[name], states[name, task]
        token_B1 = np.repeat(ids_BT[:, :1], batch, axis=0)
        for _ in range(steps):
            _, state = engine.forward(token_B1, state, last_only=True)

    def prefill(name: str, tokens: int) -> None:
        engine = chosen[name]
        engine.forward(ids_BT[:, :tokens], engine.zero_state(), last_only=True)

    times: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def clock(name: str, task: str, tokens: int, work: Callable[[], None]) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        spent = (time.process_time() - cpu) / tokens, (time.perf_counter() - wall) / tokens
        times.setdefault((name, task), []).append(spent)

    for name in chosen:  # What is asked of the system for the first time, and kept, belongs to no round.
        for task, batch in (("short", 1), ("long", 1), *((f"batch {batch}", batch) for batch in BATCHES)):
            decode(name, task, batch, 17)
    for turn in range(rounds):
        for name in chosen:
            # Sixteen steps or a multiple, so that what happens once in sixteen tokens has its share.
            clock(name, "short", 32, partial(decode, name, "short", 1, 32))
            clock(name, "long", 32, partial(decode, name, "long", 1, 32))
            for batch in BATCHES:
                task = f"batch {batch}"
                clock(name, task, 16 * batch, partial(decode, name, task, batch, 16))
            clock(name, "prefill", 1, partial(prefill, name, SEED))
            if name == TRANSFORMER:
                clock(name, "far", 16, partial(decode, name, "far", 1, 16))
            elif name.startswith("native"):
                clock(name, "rebuilding", TURN[0], partial(prefill, name, TURN[0]))
                roll(name)
                rebuilt = times[name, "rebuilding"][-1]
                steps = np.mean([turns[name, place] for place in TURN], axis=0) / 32
                times.setdefault((name, "far"), []).append((rebuilt[0] + steps[0], rebuilt[1] + steps[1]))
        if BASE in chosen and turn % 3 == 0:
            # The original's way: every token costs a pass over all that came before it.
            clock("whole context", "short", 1, partial(prefill, BASE, SHORT))
            clock("whole context", "long", 1, partial(prefill, BASE, LONG))
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    return times


def with_threads(int8: Path, rounds: int) -> dict[int, tuple[float, float]]:
    """Seconds by the clock of a prefill and of a step of the largest batch, by threads; medians of rounds in turn.

    Threads need cores of their own, and CPU time doesn't tell what they save.
    """
    ids_BT = np.random.default_rng(0).integers(0, 168, (1, SEED))
    weights = read(int8)
    spent: dict[int, list[tuple[float, float]]] = {}
    chosen = {n: engines.load(weights, "native", threads=n) for n in THREADS if n <= (os.cpu_count() or 1)}
    for turn in range(rounds + 1):
        for threads, engine in chosen.items():
            began = time.perf_counter()
            _, state = engine.forward(ids_BT, engine.zero_state(), last_only=True)
            read_at = time.perf_counter()
            state = engine.fork(state, BATCHES[-1])
            for _ in range(16):
                _, state = engine.forward(np.repeat(ids_BT[:, :1], BATCHES[-1], axis=0), state, last_only=True)
            if turn:  # The first belongs to no round.
                spent.setdefault(threads, []).append((read_at - began, (time.perf_counter() - read_at) / 16))
    return {n: (median(a for a, _ in found), median(b for _, b in found)) for n, found in spent.items()}


# ---------------------------------------------------------------- one process an engine


def installed_like(folder: Path) -> dict[str, str]:
    """An environment whose Python keeps bytecode, here in a folder, whatever the caller's does."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def first_note(name: str, int8: Path, fp32: Path) -> None:
    """What a child process does: load, read a seed, print the first note, play on, print the peak of memory."""
    from pulse88.generate import begin, play

    engine = MAKERS[name](int8, fp32)
    event = (5, 60, 140, 160)
    seed = [token for i in range(SEED // EVENT_TOKENS) for token in (event[0], 40 + i % 60, *event[2:])]
    for number, (note, _) in enumerate(play(begin(engine, seed, SamplingConfig(), random_seed=1))):
        if number == 0:
            print(*note, flush=True)
        if number == 31:
            break
    print(peak_megabytes(), flush=True)


def peak_megabytes() -> float:
    """The largest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Counted from exec on; getrusage's figure would begin with the parent's.
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 1e3  # type: ignore[index]
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def children(names: list[str], int8: Path, fp32: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds from the command to the first note, and the peak of memory in MB, best of a few."""
    results: dict[str, tuple[float, float]] = {}
    environment = installed_like(int8.parent)
    for turn in range(1 + min(rounds, 3)):
        for name in names:
            command = [sys.executable, __file__, CHILD, name, str(int8), str(fp32)]
            start = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
                assert child.stdout is not None
                note = child.stdout.readline()
                seconds = time.perf_counter() - start
                peak = child.stdout.readline()
            if child.returncode or len(note.split()) != EVENT_TOKENS:
                raise RuntimeError(f"{name} made no note")
            if turn:  # The first one compiled.
                best = results.get(name, (float("inf"), float("inf")))
                results[name] = min(best[0], seconds), min(best[1], float(peak))
    return results


# ---------------------------------------------------------------- size


def installed_megabytes(*roots: str) -> float:
    """Files of distributions and of all that they require, without extras."""
    waiting, seen, size = list(roots), set(), 0
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        paths = {Path(str(file.locate())) for file in found.files or []}
        size += sum(path.stat().st_size for path in paths if path.is_file())
        waiting += required(name)
    return size / 1e6


def required(name: str) -> list[str]:
    """Distributions that one requires, without extras."""
    wanted = (line for line in metadata.requires(name) or [] if "extra ==" not in line)
    return [match[0] for line in wanted if (match := re.match(r"[\w.-]+", line))]


def package_megabytes() -> float:
    """pulse88's own files, wherever it is installed, without weights."""
    paths = Path(engines.__file__).parents[1].rglob("*")
    return (
        sum(path.stat().st_size for path in paths if path.is_file() and path.suffix not in (".pyc", ".safetensors"))
        / 1e6
    )


# ---------------------------------------------------------------- the table


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def report(
    times: dict[tuple[str, str], list[tuple[float, float]]], starts: dict[str, tuple[float, float]], names: list[str]
) -> None:
    def cpu(name: str, task: str, digits: int = 2, unit: float = 1e3) -> str:
        if (name, task) not in times:
            return "-"
        return f"{median(spent for spent, _ in times[name, task]) * unit:.{digits}f}"

    def rate(name: str, task: str, each: int = 1, digits: int = 0) -> str:
        return (
            f"{1 / median(spent for spent, _ in times[name, task]) / each:.{digits}f}" if (name, task) in times else "-"
        )

    def times_faster(than: str, name: str, task: str) -> str:
        if (than, task) not in times or (name, task) not in times:
            return "-"
        pairs = zip(times[than, task], times[name, task], strict=False)
        return f"{median(theirs[0] / own[0] for theirs, own in pairs):.1f}"

    heads = ["engine"]
    for task in (SHORT, LONG):
        heads += [f"ms a token at {task}", "notes/s", f"× {BASE}", f"× {TRANSFORMER}"]
    print(row([*heads, f"ms a token at {FAR}", f"× {TRANSFORMER}"]))
    print(row(["---"] + ["---:"] * (len(heads) + 1)))
    for name in names:
        cells = [name]
        for task in ("short", "long"):
            cells += [cpu(name, task), rate(name, task, EVENT_TOKENS, 1 if "whole" in name else 0)]
            cells += [times_faster(than, name, task) for than in (BASE, TRANSFORMER)]
        print(row([*cells, cpu(name, "far"), times_faster(TRANSFORMER, name, "far")]))
    heads = ["engine", f"prefill of {SEED}, s", f"× {BASE}", *(f"tokens/s, batch {batch}" for batch in (1, *BATCHES))]
    heads += [f"batch {BATCHES[-1]} against 1", "wall/CPU time", "first note, s", "peak MB"]
    print("\n" + row(heads))
    print(row(["---"] + ["---:"] * (len(heads) - 1)))
    for name in starts:
        gains = zip(times[name, "short"], times[name, f"batch {BATCHES[-1]}"], strict=True)
        cells = [name, cpu(name, "prefill", 2, 1), times_faster(BASE, name, "prefill"), rate(name, "short")]
        cells += [rate(name, f"batch {batch}") for batch in BATCHES]
        cells += [f"{median(one[0] / many[0] for one, many in gains):.2f}"]
        cells += [f"{median(wall / cpu for cpu, wall in times[name, 'short']):.2f}"]
        print(row([*cells, f"{starts[name][0]:.2f}", f"{starts[name][1]:.0f}"]))


# ---------------------------------------------------------------- the command itself


def commands(weights: Path, folder: Path, rounds: int) -> dict[int, tuple[float, float]]:
    """(CPU, wall) seconds of `pulse88 continue` over a dense seed, by how many notes it makes; medians."""
    from pulse88 import midi_file
    from pulse88.notes import Note, Performance

    notes = [Note(0.1 * i, 0.3, 40 + i * 7 % 45, 70) for i in range(SEED // EVENT_TOKENS)]
    midi_file.write(Performance.from_notes(notes), folder / "dense.mid")
    command = [sys.executable, "-m", "pulse88", "continue", "dense.mid", "-o", "out.mid", "--weights", str(weights)]
    spent: dict[int, list[tuple[float, float]]] = {1: [], NOTES: []}

    def run(count: int) -> None:
        arguments = ["--random-seed", "1", "--notes", str(count)]
        environment = installed_like(folder)
        subprocess.run([*command, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL, env=environment)

    run(1)
    for _ in range(min(rounds, 5)):
        for count, found in spent.items():
            wall, before = time.perf_counter(), os.times()
            run(count)
            after = os.times()
            cpu = sum(after[2:4]) - sum(before[2:4])  # of children that have ended
            found.append((cpu, time.perf_counter() - wall))
    return {
        count: (median(cpu for cpu, _ in found), median(wall for _, wall in found)) for count, found in spent.items()
    }


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return re.search(r"model name\s*: (.*)", text)[1] if "model name" in text else platform.machine()  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, help="a weights file; the released weights")
    parser.add_argument("--rounds", type=int, default=5, help="5")
    parser.add_argument("--only", nargs="*", help="engines to run: " + ", ".join(MAKERS))
    parser.add_argument(CHILD, nargs=3, dest="child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        first_note(options.child[0], Path(options.child[1]), Path(options.child[2]))
        return
    wanted = options.only or list(MAKERS)
    for name in wanted:
        if reason := missing(name):
            print(f"{name} is left out: {reason}")
    names = [name for name in wanted if not missing(name)]
    with tempfile.TemporaryDirectory() as folder:
        int8, fp32 = Path(folder, "int8.safetensors"), Path(folder, "fp32.safetensors")
        weights = read(options.weights or default_weights())
        wide = {name: weights.matrix(name) for name in weights.tensors if not name.endswith(".scale")}
        description = metadata_of(weights.config, weights.grid)
        save(fp32, wide, description)
        save(int8, weights.as_int8().tensors, description)
        sizes = int8.stat().st_size / 1e6, fp32.stat().st_size / 1e6
        del weights, wide
        starts = children(names, int8, fp32, options.rounds)
        played = commands(int8, Path(folder), options.rounds)
        load_before = os.getloadavg()[0]
        times = measure({name: MAKERS[name](int8, fp32) for name in names}, options.rounds)
        shared = with_threads(int8, options.rounds) if "native int8" in names else {}
    kernel = kernels()[-1] if not missing("native int8") else "-"
    print(f"{processor()}, one thread; native kernel {kernel}; Python {platform.python_version()}, ", end="")
    print(
        ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES if importlib.util.find_spec(name)), end="; "
    )
    print(f"medians of {options.rounds} rounds, CPU time.")
    print(f"Load average {load_before:.1f} before, {os.getloadavg()[0]:.1f} after.\n")
    report(times, starts, [*names, *(["whole context"] if (BASE, "short") in times else [])])
    print(f"\n`pulse88 continue`, {SEED // EVENT_TOKENS} notes read, MIDI written:", end=" ")
    first, minute = (f"{cpu:.2f} s of CPU time, {wall:.2f} s by the clock" for cpu, wall in played.values())
    print(f"one new note {first}; {NOTES} new notes, a dense minute, {minute}.\n")
    if shared:
        print(row(["native int8, by the clock", *(f"{n} thread{'s' * (n > 1)}" for n in shared)]))
        print(row(["---"] + ["---:"] * len(shared)))
        print(row([f"prefill of {SEED}, s", *(f"{prefill:.2f}" for prefill, _ in shared.values())]))
        steps = (f"{BATCHES[-1] / step:.0f}" for _, step in shared.values())
        print(row([f"tokens/s, batch {BATCHES[-1]}", *steps]) + "\n")
    own, needed = package_megabytes() + sizes[0], required("pulse88")
    print(f"Installed: {installed_megabytes(*needed) + own:.0f} MB with the weights ({sizes[0]:.0f} MB), a", end=" ")
    print(f"soundfont and all dependencies; with torch {installed_megabytes(*needed, 'torch') + own:.0f} MB.")


if __name__ == "__main__":
    main()
