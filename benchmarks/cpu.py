"""How fast the engines are on one core, beside torch and beside recomputing the whole context for every token.

    python benchmarks/cpu.py                      # random weights of the released model's shape
    python benchmarks/cpu.py --weights FILE --rounds 9

All engines run in one process, in turn within every round, one thread each. Times are process CPU time, because other
programs may share the cores; wall time stands beside it where it matters. Ratios are medians over the rounds of ratios
within a round. Peak memory and the time to a first note come from a process of its own for each engine. Engines whose
libraries are missing are named and left out.
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
from pulse88.config import PULSE88_40M, SamplingConfig
from pulse88.engine.library import kernels, library
from pulse88.engine.weights import Weights, metadata_of, random_tensors, read, save
from pulse88.vocabulary import EVENT_TOKENS, PUBLISHED

SHORT, LONG, SEED = 512, 1920, 512  # tokens of context at which decoding is timed, and of the seed
BATCHES = (4, 16)
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
        shape = transformers.LlamaConfig(vocab_size=171, max_position_embeddings=2048, **settings)
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
BASE = "torch eager"


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
        if BASE in chosen and turn % 3 == 0:
            # The original's way: every token costs a pass over all that came before it.
            clock("whole context", "short", 1, partial(prefill, BASE, SHORT))
            clock("whole context", "long", 1, partial(prefill, BASE, LONG))
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    return times


# ---------------------------------------------------------------- one process an engine


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
    for _ in range(min(rounds, 3)):
        for name in names:
            command = [sys.executable, __file__, CHILD, name, str(int8), str(fp32)]
            start = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                note = child.stdout.readline()
                seconds = time.perf_counter() - start
                peak = child.stdout.readline()
            if child.returncode or len(note.split()) != EVENT_TOKENS:
                raise RuntimeError(f"{name} made no note")
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
        wanted = (line for line in found.requires or [] if "extra ==" not in line)
        waiting += [match[0] for line in wanted if (match := re.match(r"[\w.-]+", line))]
    return size / 1e6


# ---------------------------------------------------------------- the table


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def report(
    times: dict[tuple[str, str], list[tuple[float, float]]], starts: dict[str, tuple[float, float]], names: list[str]
) -> None:
    def cpu(name: str, task: str) -> float:
        return median(spent for spent, _ in times[name, task])

    def ratio(name: str, task: str) -> str:
        if (BASE, task) not in times:
            return "-"
        pairs = zip(times[BASE, task], times[name, task], strict=False)
        return f"{median(base[0] / own[0] for base, own in pairs):.1f}"

    heads = ["engine", f"ms/token @{SHORT}", "wall", "tokens/s", "notes/s", f"vs {BASE}", f"ms/token @{LONG}", "vs"]
    heads += [f"prefill {SEED}, s", "vs", *(f"batch {batch}, tokens/s" for batch in BATCHES)]
    heads += [f"batch {BATCHES[-1]} / 1", "first note, s", "peak MB"]
    print(row(heads))
    print(row(["---"] + ["---:"] * (len(heads) - 1)))
    for name in names:
        short, long = cpu(name, "short"), cpu(name, "long")
        wall = median(spent for _, spent in times[name, "short"])
        cells = [name, f"{short * 1e3:.2f}", f"{wall * 1e3:.2f}", f"{1 / short:.0f}", f"{1 / short / EVENT_TOKENS:.0f}"]
        cells += [ratio(name, "short"), f"{long * 1e3:.2f}", ratio(name, "long")]
        if (name, "prefill") in times:
            gains = zip(times[name, "short"], times[name, f"batch {BATCHES[-1]}"], strict=True)
            cells += [f"{cpu(name, 'prefill'):.2f}", ratio(name, "prefill")]
            cells += [f"{1 / cpu(name, f'batch {batch}'):.0f}" for batch in BATCHES]
            cells += [f"{median(one[0] / many[0] for one, many in gains):.2f}"]
            cells += [f"{starts[name][0]:.2f}", f"{starts[name][1]:.0f}"]
        print(row(cells + ["-"] * (len(heads) - len(cells))))


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return re.search(r"model name\s*: (.*)", text)[1] if "model name" in text else platform.machine()  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, help="a weights file; random weights of the released shape")
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
        weights = read(options.weights) if options.weights else Weights(PULSE88_40M, random_tensors(PULSE88_40M, 0))
        wide = {name: weights.matrix(name) for name in weights.tensors if not name.endswith(".scale")}
        description = metadata_of(weights.config, PUBLISHED)
        save(fp32, wide, description)
        save(int8, weights.as_int8().tensors, description)
        sizes = int8.stat().st_size / 1e6, fp32.stat().st_size / 1e6
        del weights, wide
        starts = children(names, int8, fp32, options.rounds)
        load_before = os.getloadavg()[0]
        times = measure({name: MAKERS[name](int8, fp32) for name in names}, options.rounds)
    kernel = kernels()[-1] if not missing("native int8") else "-"
    print(
        f"{processor()}, 1 thread; native kernel {kernel}; Python {platform.python_version()}, numpy {np.__version__}"
    )
    print(f"load average {load_before:.1f} before, {os.getloadavg()[0]:.1f} after; {options.rounds} rounds, medians")
    print(f"weights: int8 {sizes[0]:.0f} MB, fp32 {sizes[1]:.0f} MB; CPU time unless it says wall\n")
    report(times, starts, [*names, *(["whole context"] if (BASE, "short") in times else [])])
    print(f"\ninstalled: engine (numpy, safetensors) {installed_megabytes('numpy', 'safetensors'):.0f} MB", end=", ")
    print(f"all of pulse88 {installed_megabytes('pulse88'):.0f} MB", end=", ")
    print(f"with torch {installed_megabytes('pulse88', 'torch'):.0f} MB")


if __name__ == "__main__":
    main()
