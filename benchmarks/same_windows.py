"""Compares training runs on the windows that all of them saw at the same steps, also before they are finished.

    python benchmarks/same_windows.py designs/published/seed-0 designs/gdn-only/seed-0 --steps 241 270

Runs of one seed, batch and data see the same windows at the same step (batches.py). Until the corpus has been gone
through once a window's loss is measured before any step has used it, so its mean over steps is a held-out figure of
weights that still change. Differences to the first run are paired by step; ± is their standard error over steps, which
says nothing of other random seeds. Prints Markdown, in bits a note.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from statistics import fmean, stdev

from pulse88.vocabulary import EVENT_TOKENS

BITS = EVENT_TOKENS / math.log(2)  # a note, for one nat a token
LINE = re.compile(r"^step (\d+) tokens (\d+) loss (\S+)", re.MULTILINE)


def read(run: Path) -> dict[int, tuple[int, float]]:
    """Targets so far and nats a token of every step of training_log.txt."""
    return {int(s): (int(t), float(n)) for s, t, n in LINE.findall((run / "training_log.txt").read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="folders of runs; the first is what others are compared with"
    )
    parser.add_argument("--steps", nargs=2, type=int, required=True, metavar=("FIRST", "LAST"))
    asked = parser.parse_args()
    first, last = asked.steps
    logs = [read(run) for run in asked.runs]
    print("| run | bits a note | against the first |\n|---|---:|---:|")
    for run, log in zip(asked.runs, logs, strict=True):
        for step in range(first, last + 1):
            if step not in log or step not in logs[0]:
                parser.error(f"{run if step not in log else asked.runs[0]}: step {step} is not in its training_log.txt")
            if log[step][0] != logs[0][step][0]:
                parser.error(f"{run}: other windows than {asked.runs[0]} at step {step}: other seed, batch or data")
        losses = [log[step][1] * BITS for step in range(first, last + 1)]
        against = ""
        if run is not asked.runs[0]:
            gaps = [mine - logs[0][step][1] * BITS for mine, step in zip(losses, range(first, last + 1), strict=True)]
            against = f"{fmean(gaps):+.3f}" + (f" ± {stdev(gaps) / math.sqrt(len(gaps)):.3f}" if len(gaps) > 1 else "")
        print(f"| {run} | {fmean(losses):.3f} | {against} |")


if __name__ == "__main__":
    main()
