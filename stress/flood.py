#!/usr/bin/env python3
"""Floods a server of its own on loopback: `python stress/flood.py [--minutes 10] [--times 4] [--limit NAME=NUMBER]`.

First it measures what the server can do: takes a second, with as many visitors as it has workers. Then so many times as
many come for some minutes, and beside them all the time:

- readers who take a byte a second, of streams, of the soundfont, and of a long take;
- visitors who vanish: they reset the connection in the middle of their take;
- bodies that are too large, declared or not, and bodies of which a byte comes a second;
- connections that ask for nothing, or half of something;
- WebSockets, of which half say nothing.

At last some visitors come as if nothing had been. What has to hold: every take that was let in comes whole, with no
note lost or doubled; who is refused gets 429 or 413, with Retry-After where it may be tried again; nothing is answered
by 5xx; health is told all the time; and the memory of server and workers stays where it is from the third minute on, or
from when the server has as many takes as it may remember: until then it grows by them. --limit lowers that number, and
other bounds of limits.py; --tiny has tiny weights, which make a take in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from pulse88.config import TINY
from pulse88.engine import weights as weights_file
from pulse88.engine.weights import random_tensors
from pulse88.serve.limits import STANDARD, Limits
from pulse88.serve.run import ServeConfig, serve
from pulse88.vocabulary import FINE

SEED = Path(__file__).parents[1] / "examples" / "motif" / "seed.mid"
HEAD = "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Visitor: {visitor}\r\n{more}\r\n"
MOST_MEMORY_SLOPE = 0.02  # share of the memory at the third minute that it may grow by in a minute after it
DRAIN_SECONDS = 600.0  # that takes which were let in may take after the flood
SLOW, IDLE, SOCKETS, DRIP = 12, 300, 30, 8  # at once, of each kind of nuisance

Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Flood:
    """The clients, and what came of them."""

    def __init__(self, port: int, notes: int) -> None:
        self.port, self.notes = port, notes
        self.count: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.first_notes: list[float] = []
        self.chance = random.Random(0)
        self.over = False
        self._number = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def spawn(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(doing)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def open(self) -> Opened:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)

    def head(self, method: str, path: str, **more: str) -> bytes:
        self._number += 1
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in more.items())
        return HEAD.format(method=method, path=path, visitor=f"flood-{self._number:06d}", more=lines).encode()

    def wish(self, notes: int) -> bytes:
        midi = base64.b64encode(SEED.read_bytes()).decode()
        body = json.dumps({"midi_base64": midi, "settings": {"notes": notes}, "random_seed": self._number}).encode()
        return (
            self.head("POST", "/v1/continuations", Content_Type="application/json", Content_Length=str(len(body)))
            + body
        )

    async def visit(self) -> bool:
        """An ordinary visitor; whether the take came whole."""
        asked, indices, kind = time.monotonic(), [], ""
        reader, writer = await self.open()
        try:
            writer.write(self.wish(self.notes))
            status, headers = await answer(reader)
            if status == 429:
                assert int(headers["retry-after"]) > 0
                self.count["refused, 429 with Retry-After"] += 1
                return False
            if status != 200:
                self.wrong.append(f"a visitor is answered by {status}")
                return False
            self.count["let in"] += 1
            async for line in reader:
                if line.startswith(b"{"):
                    event = json.loads(line)
                    kind = event["type"]
                    if kind == "note":
                        if not indices:
                            self.first_notes.append(time.monotonic() - asked)
                        indices.append(event["index"])
                    elif kind in ("done", "error"):
                        break
            if kind != "done" or indices != list(range(self.notes)):
                self.wrong.append(f"a take was lost after {len(indices)} notes: {kind}")
                return False
            self.count["whole"] += 1
            return True
        except (OSError, asyncio.IncompleteReadError, ValueError, KeyError, AssertionError) as error:
            self.wrong.append(f"a visitor is cut off: {error!r}")
            return False
        finally:
            writer.close()

    async def vanish(self) -> None:
        """Asks for a long take, and resets the connection in the middle."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            _, writer = await self.open()
            writer.write(self.wish(400))
            await asyncio.sleep(self.chance.uniform(0.0, 3.0))
            client = writer.get_extra_info("socket")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()
            self.count["vanished"] += 1

    async def too_large(self, declared: bool) -> None:
        """Sends 8 MiB; the answer must be 413, and the rest is read by nobody."""
        size = 8 * 2**20
        try:
            reader, writer = await self.open()
            how = {"Content_Length": str(size)} if declared else {"Transfer_Encoding": "chunked"}
            writer.write(self.head("POST", "/v1/seeds", Content_Type="audio/midi", **how))
            piece = bytes(2**16)
            for _ in range(size // len(piece)):
                writer.write(piece if declared else b"10000\r\n" + piece + b"\r\n")
                with contextlib.suppress(ConnectionError):
                    await asyncio.wait_for(writer.drain(), 1)
                if writer.is_closing() or reader._buffer:  # type: ignore[attr-defined]
                    break
            status, _ = await answer(reader)
            self.count[f"too large: {status}"] += 1
            if status not in (413, 429):
                self.wrong.append(f"a body of 8 MiB is answered by {status}")
            writer.close()
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, ValueError):
            self.count["too large: cut off before the answer could be read"] += 1

    async def read_slowly(self, what: str) -> None:
        """Reads a byte a second until it is cut off."""
        began, loop = time.monotonic(), asyncio.get_running_loop()
        with socket.socket() as client, contextlib.suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", self.port))
            asked = self.head("GET", "/v1/soundfont") if what == "soundfont" else self.wish(int(what))
            await loop.sock_sendall(client, asked)
            while not self.over and not client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                if not await loop.sock_recv(client, 1):
                    break
                await asyncio.sleep(1)
        self.count["slow readers cut off" if not self.over else "slow readers at the end"] += 1
        self.count["slow readers, longest stay, s"] = max(
            self.count["slow readers, longest stay, s"], round(time.monotonic() - began)
        )

    async def send_slowly(self) -> None:
        """Sends a byte of a body a second; 408 after half a minute."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
            reader, writer = await self.open()
            writer.write(self.head("POST", "/v1/seeds", Content_Type="audio/midi", Content_Length="1000"))
            asking = asyncio.ensure_future(answer(reader))
            while not asking.done() and not self.over:
                writer.write(b"M")
                await asyncio.sleep(1)
            if asking.done():
                self.count[f"slow senders: {asking.result()[0]}"] += 1
            asking.cancel()
            writer.transport.abort()

    async def ask_nothing(self) -> None:
        """Connects, sends nothing or half a head, and waits to be cut off."""
        began = time.monotonic()
        with contextlib.suppress(OSError):
            reader, writer = await self.open()
            if self.chance.random() < 0.5:
                writer.write(b"GET /v1/info HTTP/1.1\r\nHost: 127.0")
            while not self.over and not reader.at_eof():
                with contextlib.suppress(asyncio.TimeoutError):
                    if not await asyncio.wait_for(reader.read(100), 1):
                        break
            writer.transport.abort()
        if not self.over:
            self.count["half-open cut off"] += 1
            self.count["half-open, longest stay, s"] = max(
                self.count["half-open, longest stay, s"], round(time.monotonic() - began)
            )

    async def duet(self, speaks: bool) -> None:
        """A WebSocket that says hello, or nothing, and then waits a minute at most."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        try:
            async with connect(f"ws://127.0.0.1:{self.port}/v1/duet", open_timeout=60) as duet:
                if speaks:
                    await duet.send('{"type": "hello"}')
                told = json.loads(await asyncio.wait_for(duet.recv(), 60))
                status = told.get("problem", {}).get("status", told["type"])
                self.count[f"WebSockets: {status}"] += 1
                if status == "ready":
                    await asyncio.sleep(self.chance.uniform(0, 20))
        except (OSError, WebSocketException, asyncio.TimeoutError) as error:
            self.count[f"WebSockets: {type(error).__name__}"] += 1

    async def keep(self, most: int, make: Any) -> None:
        """So many of a nuisance at once, again and again."""
        under_way: set[asyncio.Task[None]] = set()
        while not self.over:
            under_way = {task for task in under_way if not task.done()}
            for _ in range(min(most - len(under_way), max(1, most // 10))):
                task = asyncio.create_task(make())
                under_way.add(task)
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            await asyncio.sleep(0.5)

    def nuisances(self) -> list[Coroutine[Any, Any, None]]:
        return [
            self.keep(SLOW, lambda: self.read_slowly(self.chance.choice(("soundfont", str(self.notes), "1000")))),
            self.keep(IDLE, self.ask_nothing),
            self.keep(SOCKETS, lambda: self.duet(self.chance.random() < 0.5)),
            self.keep(DRIP, self.send_slowly),
            self.keep(2, self.vanish),
            self.keep(1, lambda: self.too_large(self.chance.random() < 0.5)),
        ]


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer."""
    status = int((await reader.readuntil(b"\r\n")).split()[1])
    headers = {}
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return status, headers


def resident(pid: int) -> float:
    """MB."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) / 1000 if found else 0.0
    return 0.0


def memory(server: int) -> tuple[float, float]:
    """MB of the server, and of its workers together."""
    workers = [int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split()]
    return resident(server), sum(map(resident, workers))


class Watch:
    """Looks at the server every few seconds."""

    def __init__(self, flood: Flood, server: int, most_takes: int) -> None:
        self.flood, self.server, self.most_takes = flood, server, most_takes
        self.rows: list[tuple[float, float, float]] = []  # minutes, MB of the server, MB of its workers
        self.full: float | None = None  # minutes after which it had as many takes as it may remember
        self.most_waiting = self.looks = 0
        self.slowest = 0.0

    async def run(self) -> None:
        began = told = time.monotonic()
        while not self.flood.over:
            asked = time.monotonic()
            status, told_body = await self.ask("/v1/health")
            waiting = json.loads(told_body)["waiting"]
            now = time.monotonic()
            if status != 200:
                self.flood.wrong.append(f"health is {status}")
            self.looks, self.slowest = self.looks + 1, max(self.slowest, now - asked)
            self.most_waiting = max(self.most_waiting, waiting)
            self.rows.append(((now - began) / 60, *memory(self.server)))
            if now - told >= 60 or len(self.rows) == 1:
                told = now
                minutes, server, workers = self.rows[-1]
                held = await self.held()
                if self.full is None and held["takes"] >= self.most_takes:
                    self.full = minutes
                files = len(list(Path(f"/proc/{self.server}/fd").iterdir()))
                print(
                    f"{minutes:5.1f} min: server {server:6.0f} MB, workers {workers:6.0f} MB, {waiting:3d} wait, ",
                    end="",
                )
                print(f"{files} open files, {self.flood.count['whole']} takes whole; it remembers ", end="")
                print(f"{held['takes']:.0f} takes, {held['seeds']:.0f} seeds, ", end="")
                print(f"{held['snapshot_bytes'] / 1e6:.0f} MB of states", flush=True)
            await asyncio.sleep(5)

    async def ask(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        reader, writer = await self.flood.open()
        writer.write(self.flood.head("GET", path, Connection="close"))
        status, _ = await answer(reader)
        body = await reader.read()
        writer.close()
        return status, body

    async def held(self) -> dict[str, float]:
        """How much the server remembers, by kind."""
        _, body = await self.ask("/metrics")
        return {kind: float(count) for kind, count in re.findall(r'pulse88_held{what="(\w+)"} (\S+)', body.decode())}

    def slope(self, column: int, since: float = 2.0) -> tuple[float, float]:
        """MB a minute from a minute on, by least squares, and MB there at first."""
        rows = [row for row in self.rows if row[0] >= since]
        if len(rows) < 3:
            return 0.0, rows[0][column] if rows else 0.0
        x, y = [row[0] for row in rows], [row[column] for row in rows]
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        up = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
        return up / sum((a - mean_x) ** 2 for a in x), y[0]


async def capacity(flood: Flood, workers: int, seconds: float) -> float:
    """Takes a second, with as many visitors as workers."""
    began, whole = time.monotonic(), 0

    async def one_after_another() -> None:
        nonlocal whole
        while time.monotonic() - began < seconds:
            whole += await flood.visit()

    await asyncio.gather(*(one_after_another() for _ in range(workers)))
    return whole / (time.monotonic() - began)


async def run(port: int, server: int, asked: argparse.Namespace) -> bool:
    """All of it; whether it held."""
    flood = Flood(port, asked.notes)
    able = await capacity(flood, asked.workers, asked.capacity_seconds)
    rate = asked.times * able
    print(f"it can do {able:.2f} takes of {asked.notes} notes a second; {rate:.2f} a second come now", flush=True)
    flood.count.clear()
    flood.first_notes.clear()
    watch = Watch(flood, server, limits(asked).takes_in_all)
    watching = asyncio.create_task(watch.run())
    nuisances = [asyncio.create_task(nuisance) for nuisance in flood.nuisances()]
    visits: list[asyncio.Task[bool]] = []
    began = time.monotonic()
    while (now := time.monotonic() - began) < 60 * asked.minutes:
        for _ in range(int(now * rate) + 1 - len(visits)):
            visits.append(asyncio.create_task(flood.visit()))
        await asyncio.sleep(0.02)
    flood.over = True
    await asyncio.gather(watching, *nuisances)
    flooded = time.monotonic() - began
    _, late = await asyncio.wait(visits, timeout=DRAIN_SECONDS)
    drained = time.monotonic() - began - flooded
    for task in (*late, *flood.tasks):
        task.cancel()
    print(f"{len(visits)} came in {flooded / 60:.1f} min; the last of those let in had theirs {drained:.0f} s later")
    for kind, count in sorted(flood.count.items()):
        print(f"  {kind}: {count}")
    waits = sorted(flood.first_notes)
    print(f"  first note after {waits[len(waits) // 2]:.1f} s (median), {waits[-1]:.1f} s (last)")
    print(f"  at most {watch.most_waiting} works waited")
    print(f"  health was told {watch.looks} times, after {watch.slowest:.2f} s at most")
    flat, since = True, max(2.0, watch.full or 0.0)
    for name, column in (("server", 1), ("workers", 2)):
        slope, first = watch.slope(column, since)
        flat &= slope <= MOST_MEMORY_SLOPE * first
        print(f"  memory of the {name} from minute {since:.1f} on: {first:.0f} MB, {slope:+.1f} MB a minute")
    await asyncio.sleep(2)
    after = [await flood.visit() for _ in range(10)]
    print(f"afterwards {sum(after)} of 10 visitors had their takes; server and workers now {memory(server)} MB")
    for problem, count in Counter(flood.wrong).most_common(10):
        print(f"WRONG, {count} times: {problem}")
    return flat and not flood.wrong and not late and all(after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--times", type=float, default=4.0, help="of what the server can do")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--notes", type=int, default=12, help="of an ordinary visitor's take")
    parser.add_argument("--capacity-seconds", type=float, default=30.0)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--tiny", action="store_true", help="tiny weights")
    parser.add_argument(
        "--limit", action="append", default=[], metavar="NAME=NUMBER", help="another bound of the server"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        config = ServeConfig(port=0, workers=asked.workers, weights=asked.weights, limits=limits(asked))
        serve(config, lambda line: print(line, flush=True))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if asked.tiny:
            asked.weights = Path(folder) / "tiny.safetensors"
            weights_file.save(asked.weights, random_tensors(TINY, 1), weights_file.metadata_of(TINY, FINE))
        return flood(asked)


def limits(asked: argparse.Namespace) -> Limits:
    return replace(STANDARD, **{name: int(number) for name, _, number in (text.partition("=") for text in asked.limit)})


def flood(asked: argparse.Namespace) -> int:
    """The exit status."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    command = [sys.executable, __file__, "--serve", "--workers", str(asked.workers)]
    command += ["--weights", str(asked.weights)] if asked.weights else []
    command += [word for text in asked.limit for word in ("--limit", text)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().rstrip("/\n").rpartition(":")[2])
            server.stdout.readline()
            held = asyncio.run(run(port, server.pid, asked))
        finally:
            server.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()
    print("it held" if held else "it did not hold", f"(load {os.getloadavg()[1]:.1f})")
    return not held


if __name__ == "__main__":
    raise SystemExit(main())
