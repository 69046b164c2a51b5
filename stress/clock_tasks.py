"""What works while the wall clock jumps, and what has to come of it; used by clock.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from shutil import rmtree
from typing import Protocol

import disk
import kill
import kill_serve
import launch
from kill import Task
from pulse88 import checkpoint
from test_serve_duet import Player

SITTING, BETWEEN = 4.0, 0.8  # s of a sitting, and between its checkpoints
LATE = 10.0  # s that it may take to begin and to end, on a busy machine
SILENCE = (29.9, 45.0)  # s after which a connection that says nothing is cut off


class Clock(Protocol):
    """What clock.py has."""

    jumps: int

    def jump(self) -> None: ...
    def pause(self) -> None: ...


Run = Callable[[Clock, int], str]  # makes a clock jump so many times; tells what came of it, or raises AssertionError


def tasks(room: Path) -> dict[str, Run]:
    known = kill.tasks(room)
    known["crew"] = known["prepare"]._replace(
        command=lambda out: [*known["prepare"].command(out)[:-1], 2]  # processes that parse
    )
    known |= disk.more(room)
    found: dict[str, Run] = {name: same_bytes(task, room / "out") for name, task in known.items()}
    return found | {"sitting": sitting(room), "serve": serve(room)}


def jumping(clock: Clock, command: list[object], look: Callable[[], None] = lambda: None) -> None:
    """A command to its good end, while the clock jumps; `look` is called between two jumps."""
    started = launch.start(command)
    while not (end := started.ended()):
        clock.jump()
        clock.pause()
        look()
    assert not end.status, f"after {clock.jumps} jumps it ended with {end.status}:\n{end.said}"


def same_bytes(task: Task, out: Path) -> Run:
    def run(clock: Clock, jumps: int) -> str:
        out.mkdir()
        launch.good(task.command(out))
        expected, runs = task.results(out), 0
        rmtree(out)
        while clock.jumps < jumps:
            out.mkdir()
            jumping(clock, task.command(out))
            task.intact(out)
            assert task.results(out) == expected, f"after {clock.jumps} jumps the bytes are others"
            assert not list(out.rglob(".*")), f"there is left: {list(out.rglob('.*'))}"
            rmtree(out)
            runs += 1
        return f"{runs} runs, each with the bytes of the one without"

    return run


def sitting(room: Path) -> Run:
    """Trains by minutes, many times; sittings and the checkpoints in them have to take their time."""
    out = room / "out"

    def run(clock: Clock, jumps: int) -> str:
        settings = {"window": 32, "steps": 10**6, "validate_every": 10**6, "batch_windows": 2, "samples": 0}
        settings |= {"checkpoint_every": 10**6}
        changes = [x for key, value in settings.items() for x in ("--set", f"{key}={value}")]
        command = ["train", "--config", "tiny", "--data", room / "small", "--out", out, *changes]
        command += ["--set", f"checkpoint_minutes={BETWEEN / 60}", "--sitting-minutes", SITTING / 60]
        took: list[float] = []
        gaps: list[float] = []
        backwards = 0
        while clock.jumps < jumps:
            out.mkdir()
            began, seen = time.monotonic(), dict[Path, float]()

            def look(seen: dict[Path, float] = seen) -> None:
                for folder in checkpoint.list_checkpoints(out):
                    seen.setdefault(folder, time.monotonic())

            jumping(clock, command, look)
            took.append(time.monotonic() - began)
            assert SITTING <= took[-1] < SITTING + LATE, f"a sitting of {SITTING} s took {took[-1]:.1f} s"
            times = sorted(seen.values())
            assert 1 <= len(times) <= SITTING / BETWEEN + 1, f"there were {len(times)} checkpoints"
            gaps += [b - a for a, b in pairwise(times[:-1])]  # The last one is the sitting's end.
            told = [json.loads(line)["time"] for line in (out / "log.jsonl").read_text().splitlines()]
            backwards += sum(b < a for a, b in pairwise(told))
            rmtree(out)
        assert backwards, "its log knows of no jump: did the clock reach it?"
        assert min(gaps) > 0.9 * BETWEEN, f"checkpoints came {min(gaps):.2f} s after one another"
        return (
            f"{len(took)} sittings of {SITTING:.0f} s took {min(took):.1f} to {max(took):.1f} s, checkpoints came each "
            f"{min(gaps):.1f} to {max(gaps):.1f} s; its log went backwards {backwards} times"
        )

    return run


def serve(room: Path) -> Run:
    """A server, its queue, takes, duets, and who says nothing."""

    def run(clock: Clock, jumps: int) -> str:
        weights = kill_serve.tiny(room)
        _, expected, _ = kill_serve.undisturbed(weights, 1)
        clock.jump()
        server = kill_serve.Server(weights, 1)
        try:
            return visited(clock, jumps, server, expected)
        finally:
            server.process.kill()
            server.close()

    return run


def visited(clock: Clock, jumps: int, server: kill_serve.Server, expected: list[list[list[float]]]) -> str:
    """What came of the visits to a server."""
    assert server.wait(b"Ready", time.monotonic() + kill_serve.READY)
    began, rounds, cut = time.monotonic(), 0, 0.0
    duets: list[Duet] = []
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.setblocking(False)
        while clock.jumps < jumps or not cut:
            visits = kill_serve.listen(server.port)
            if not duets or not duets[-1].is_alive():
                duets.append(Duet(server.port))
            while any(visit.is_alive() for visit in visits):
                clock.jump()
                clock.pause()
                cut = cut or silence(silent, began)
            for visit in visits:
                visit.join()
                assert visit.last.get("type") == "done", f"a take ended with {visit.last}"
                assert visit.notes == expected[visit.number], "a take has other notes"
            rounds += 1
        while duets[-1].is_alive():
            clock.jump()
            clock.pause()
    for duet in duets:
        assert not duet.wrong, duet.wrong
    assert SILENCE[0] < cut < SILENCE[1], f"who says nothing was cut off after {cut:.1f} s"
    negative = [line for line in metrics(server.port) if line.rpartition(" ")[2].startswith("-")]
    assert not negative, f"figures below 0: {negative}"
    os.kill(server.process.pid, signal.SIGINT)
    ended = server.process.ended(kill_serve.READY)
    assert ended and not ended.status, f"it did not stop cleanly: {ended}"
    waits = [wait for duet in duets for wait in duet.waits]
    said = f"{rounds * kill_serve.VISITORS} takes of {kill_serve.NOTES} notes, note for note those without; "
    said += f"{len(waits)} answers in duets came {min(waits):.2f} to {max(waits):.2f} s after the phrase, the pause "
    return said + f"being {Duet.PAUSE} s; who says nothing was cut off after {cut:.1f} s"


def silence(silent: socket.socket, began: float) -> float:
    """Seconds after which a connection was cut off; 0 as long as it is open."""
    try:
        return time.monotonic() - began if silent.recv(1) == b"" else 0.0
    except BlockingIOError:
        return 0.0
    except ConnectionError:
        return time.monotonic() - began


def metrics(port: int) -> list[str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=kill_serve.READY)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    return [line for line in lines if not line.startswith("#")]


class Duet(threading.Thread):
    """Plays a phrase, hears the answer, and plays another."""

    PAUSE = 0.3

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.waits, self.wrong = port, list[float](), ""
        self.start()

    def run(self) -> None:
        try:
            with Player(self, pause=self.PAUSE) as player:  # type: ignore[arg-type]
                for answer in (1, 2):
                    player.play()
                    ended = player.now()
                    begun = player.wait("answering", answer)["time"]
                    player.wait("answered", answer)
                    assert begun - ended > self.PAUSE - 0.05, f"it answered {begun - ended:.2f} s after the phrase"
                    self.waits.append(begun - ended)
                assert not player.of("error"), player.of("error")
        except (AssertionError, OSError) as error:
            self.wrong = f"a duet: {error!r}"
