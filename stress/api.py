#!/usr/bin/env python3
"""Asks the HTTP API whatever schemathesis makes up from its OpenAPI, good and bad, in sequences too, for a while.

    python stress/api.py --seconds 600

A server over tiny weights is started on loopback. Answers that OpenAPI doesn't name, that aren't of the form that it
says, bad requests that are taken, and 5xx are failures; afterwards the server has to be well and its queue empty.
This file is given to schemathesis as its hooks as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests")]

from serving import MIDI, SEED, running, tiny_weights  # noqa: E402

# What a schema can say is not all that has to hold: of two pitches the lower comes first, a file must be MIDI.
EXCLUDED = "positive_data_acceptance"
SETTINGS = """
[checks]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 429]
"""  # 413, for lists that are too long, is none of those that schemathesis takes for a refusal
TAKE = "PULSE88_STRESS_TAKE"  # names a MIDI file that the server wrote
PHASES = "examples,coverage,fuzzing,stateful"


@schemathesis.serializer("audio/midi")
def midi(context: schemathesis.SerializationContext, value: object) -> bytes:
    """Made-up bytes as they are, but a good file in half of the requests that are meant to be good."""
    made = getattr(value, "data", value)
    data = made if isinstance(made, bytes) else str(made).encode("utf-8", "replace")
    about = context.case.meta
    if about is None or about.generation.mode.is_negative or sum(data) % 2:
        return data
    return Path(os.environ[TAKE]).read_bytes() if context.case.operation.path == "/v1/takes" else SEED


def told(report: Path) -> Counter[str]:
    """Of a report in lines of JSON: how many requests were made, and with which status they were answered."""
    found: Counter[str] = Counter()

    def look(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("status_code"), int):
                found["requests"] += 1
                found[str(node["status_code"])] += 1
            for inner in node.values():
                look(inner)
        elif isinstance(node, list):
            for inner in node:
                look(inner)

    with report.open(encoding="utf-8") as lines:
        for line in lines:
            look(json.loads(line))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--phases", default=PHASES)
    parser.add_argument("--keep", type=Path, help="folder for schemathesis's report")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, running(tiny_weights(Path(made))) as server:
        folder = asked.keep or Path(made) / "report"
        folder.mkdir(parents=True, exist_ok=True)
        report = folder / "events.ndjson"
        address = f"http://127.0.0.1:{server.port}"
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/v1/openapi.json", "--url", address]
        command += ["--phases", asked.phases, "--max-time", str(asked.seconds), "--seed", str(asked.seed)]
        command += ["--checks", "all", "--exclude-checks", EXCLUDED, "--continue-on-failure", "--request-timeout", "60"]
        command += ["--suppress-health-check", "all", "--report", "ndjson", "--report-ndjson-path", str(report)]
        paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        (Path(made) / "schemathesis.toml").write_text(SETTINGS)
        answer = server.ask("POST", "/v1/continuations?notes=4", SEED, MIDI | {"Accept": "audio/midi"})
        assert answer.status == 200, answer.body
        (Path(made) / "take.mid").write_bytes(answer.body)
        environment = os.environ | {
            TAKE: str(Path(made) / "take.mid"),
            "SCHEMATHESIS_HOOKS": "api",
            "PYTHONPATH": paths,
        }
        status = subprocess.call(command, env=environment, cwd=made)
        counts = told(report)
        requests = counts.pop("requests", 0)
        print(f"{requests:,} requests: {', '.join(f'{count:,} x {code}' for code, count in sorted(counts.items()))}")
        server.wait(lambda: server.ask("GET", "/v1/health").json["waiting"] == 0, "an empty queue")
        assert server.ask("GET", "/v1/health").status == 200
    return status


if __name__ == "__main__":
    raise SystemExit(main())
