"""Many visitors at once: `python benchmarks/serve.py [--visitors 64] [--kill]`.

Starts a server of its own on this machine, has so many visitors each send a whole piece within a second and listen to
its continuation, all at once, and tells: errors, when the first notes came and in which order, notes a second,
and how much memory server and workers took. With --kill a worker is ended in the middle. Visitors leave after
--seconds at the latest, as people do.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEED = Path(__file__).parents[1] / "examples" / "piece" / "seed.mid"


@dataclass
class Visit:
    """One visitor's take."""

    number: int
    asked: float = 0.0  # seconds on the benchmark's clock
    begun: float | None = None
    first: float | None = None
    notes: int = 0
    error: str = ""
    indices: list[int] = field(default_factory=list)


async def visit(port: int, body: bytes, this: Visit, clock: Any, until: float) -> None:
    """Asks, and listens until the take is done or the time is over."""
    head = (
        f"POST /v1/continuations HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Visitor: visitor-{this.number:03d}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    this.asked = clock()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + body)
        while clock() < until:
            line = await asyncio.wait_for(reader.readline(), max(until - clock(), 0.01))
            if not line:
                this.error = this.error or "the stream ended early"
                return
            if not line.startswith(b"{"):
                continue
            event = json.loads(line)
            kind = event.get("type")
            if kind == "begun":
                this.begun = clock()
            elif kind == "note":
                this.first = this.first or clock()
                this.notes += 1
                this.indices.append(event["index"])
            elif kind == "done":
                return
            elif kind == "error" or "detail" in event:
                this.error = json.dumps(event)
                return
    except asyncio.TimeoutError:
        pass
    except OSError as error:
        this.error = str(error)
    finally:
        writer.close()


def memory(pid: int) -> dict[str, int]:
    """Bytes of a process: resident now, and the most there ever were."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {"now": found.get("VmRSS", 0), "most": found.get("VmHWM", 0)}


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def run(port: int, server: int, asked: argparse.Namespace) -> list[Visit]:
    """All visits, and a worker ended in the middle if that is asked for."""
    began = time.perf_counter()

    def clock() -> float:
        return time.perf_counter() - began

    visits = [Visit(number) for number in range(asked.visitors)]
    tasks = []
    for this in visits:
        settings = {"notes": asked.notes, "seed_notes": asked.seed_notes}
        wish = {"midi_base64": base64.b64encode(SEED.read_bytes()).decode(), "settings": settings}
        wish["random_seed"] = this.number
        body = json.dumps(wish).encode()
        tasks.append(asyncio.create_task(visit(port, body, this, clock, asked.seconds)))
        await asyncio.sleep(1 / asked.visitors)
    if asked.kill:
        await asyncio.sleep(max(asked.seconds / 3 - clock(), 0))
        victim = children(server)[0]
        os.kill(victim, signal.SIGKILL)
        print(f"ended worker {victim} after {clock():.1f} s")
    await asyncio.gather(*tasks)
    took = clock()
    print(f"{asked.visitors} visitors, {sum(v.notes for v in visits)} notes in {took:.1f} s: ", end="")
    print(f"{sum(v.notes for v in visits) / took:.1f} notes/s")
    return visits


def told(visits: list[Visit]) -> bool:
    """Prints what came of the visits; whether all went well."""
    errors = [visit for visit in visits if visit.error]
    for visit in errors[:5]:
        print(f"visitor {visit.number}: {visit.error}")
    broken = [visit for visit in visits if visit.indices != list(range(len(visit.indices)))]
    silent = [visit for visit in visits if visit.first is None]
    waits = sorted(visit.first - visit.asked for visit in visits if visit.first is not None)
    print(f"errors {len(errors)}, takes with a lost or doubled note {len(broken)}, without a note {len(silent)}")
    if waits:
        print(f"first note after {waits[0]:.1f} s, median {statistics.median(waits):.1f} s, last {waits[-1]:.1f} s")
        order = [visit.number for visit in sorted(visits, key=lambda visit: visit.first or 1e9)]
        displaced = [abs(place - number) for place, number in enumerate(order)]
        print(f"order of first notes: at most {max(displaced)} places from the order of asking")
        notes = sorted(visit.notes for visit in visits)
        print(f"notes a visitor: {notes[0]} to {notes[-1]}, median {statistics.median(notes):g}")
    return not (errors or broken or silent)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--notes", type=int, default=60)
    parser.add_argument("--seed-notes", type=int, default=128, help="notes of the seed that are read")
    parser.add_argument("--seconds", type=float, default=50.0)
    parser.add_argument("--kill", action="store_true")
    asked = parser.parse_args()
    command = [sys.executable, "-m", "pulse88", "serve", "--port", "0", "--workers", str(asked.workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().rstrip("/\n").rpartition(":")[2])
            server.stdout.readline()
            while len(children(server.pid)) < asked.workers:
                time.sleep(0.1)
            time.sleep(2)
            idle = memory(server.pid)["now"], sum(memory(pid)["now"] for pid in children(server.pid))
            well = told(asyncio.run(run(port, server.pid, asked)))
            workers = [memory(pid) for pid in children(server.pid)]
            most = memory(server.pid)["most"], sum(worker["most"] for worker in workers)
            print(f"memory, MB: server {idle[0] / 1e6:.0f} idle, {most[0] / 1e6:.0f} at most; ", end="")
            print(f"{len(workers)} workers {idle[1] / 1e6:.0f} idle, {most[1] / 1e6:.0f} at most")
        finally:
            server.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
            server.kill()
    sys.exit(not well)


if __name__ == "__main__":
    main()
