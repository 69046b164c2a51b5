"""A client of `pulse88 serve` in Python, with nothing but the standard library.

    python examples/client.py examples/motif/seed.mid out.mid --seconds 20

Prints the notes as they are made, and writes the take. Ctrl-C stops the making; what is there is written.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen


def continued(server: str, midi: bytes, *, random_seed: int | None = None, **settings: Any) -> Iterator[dict[str, Any]]:
    """The events of one continuation as they come (docs/api.md); to leave the loop stops the making."""
    asked = {"midi_base64": base64.b64encode(midi).decode(), "settings": settings, "random_seed": random_seed}
    request = Request(f"{server}/v1/continuations", json.dumps(asked).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        for line in answer:
            if line.strip():
                yield json.loads(line)


def take_as(server: str, take: str, kind: str) -> bytes:
    """A take as mid, wav or png."""
    with urlopen(f"{server}/v1/takes/{take}.{kind}", timeout=120) as answer:
        return answer.read()


def main() -> None:
    """Continues a file."""
    parser = argparse.ArgumentParser(description="Continue a MIDI file by a running `pulse88 serve`.")
    parser.add_argument("seed", type=Path)
    parser.add_argument("out", type=Path, help="file to write: .mid, .wav or .png")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--liveliness", type=float, default=0.5)
    parser.add_argument("--random-seed", type=int, help="a whole number: the same one gives the same notes again")
    parser.add_argument("--server", default="http://127.0.0.1:8088")
    asked = parser.parse_args()
    take = ""
    try:
        with contextlib.suppress(KeyboardInterrupt):
            for event in continued(
                asked.server,
                asked.seed.read_bytes(),
                random_seed=asked.random_seed,
                seconds=asked.seconds,
                liveliness=asked.liveliness,
            ):
                take = event["take"]
                if event["type"] == "note":
                    onset, duration, pitch, velocity, _ = event["note"]
                    print(f"{onset:8.3f} s  {pitch:3d} for {duration:.3f} s at {velocity}")
                elif event["type"] == "error":
                    sys.exit(event["problem"]["detail"])
        asked.out.write_bytes(take_as(asked.server, take, asked.out.suffix.lstrip(".")))
    except HTTPError as error:
        sys.exit(json.load(error)["detail"])
    print(f"Wrote {asked.out}.")


if __name__ == "__main__":
    main()
