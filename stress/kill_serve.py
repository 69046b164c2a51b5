"""Kills a server, or its workers, while three visitors listen; used by kill.py."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import signal
import threading
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import launch
from pulse88.config import TINY
from pulse88.engine import weights as weights_file
from pulse88.engine.weights import random_tensors
from pulse88.vocabulary import FINE

SEED = Path(__file__).parents[1] / "examples" / "motif" / "seed.mid"
VISITORS = 3
NOTES = 300  # of a take; tiny weights make them in a second
ORPHANS = 30.0  # s that workers may outlive their server
READY = 120.0  # s that anything may take on a busy machine


class Visit(threading.Thread):
    """Asks for a take, and listens to its end or the server's."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__(daemon=True)
        self.port, self.number = port, number
        self.notes: list[list[float]] = []
        self.last: dict[str, object] = {}

    def run(self) -> None:
        midi = base64.b64encode(SEED.read_bytes()).decode()
        asked = {"midi_base64": midi, "settings": {"notes": NOTES}, "random_seed": self.number}
        headers = {"Content-Type": "application/json", "X-Visitor": f"visitor-{self.number:03d}"}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=READY)
        try:
            connection.request("POST", "/v1/continuations", json.dumps(asked), headers)
            for line in connection.getresponse():
                if line.endswith(b"}\n"):
                    self.last = json.loads(line)
                    if self.last["type"] == "note":
                        assert self.last["index"] == len(self.notes), "a note was lost or doubled"
                        self.notes.append(self.last["note"])  # type: ignore[arg-type]
        except (OSError, HTTPException):
            pass  # The server is gone: what has come until then counts.
        finally:
            connection.close()


class Server:
    """`pulse88 serve` over tiny weights; `wait` until it listens."""

    def __init__(self, weights: Path, workers: int, port: int = 0) -> None:
        self._heard, tell = os.pipe()
        command = ["serve", "--port", port, "--workers", workers, "--weights", weights]
        self.process = launch.start(command, output=tell)
        os.close(tell)
        self.port = port

    def wait(self, words: bytes, until: float) -> bool:
        """Reads its output up to a line with such words; False if it is later than `until` before it comes."""
        os.set_blocking(self._heard, False)
        said = b""
        while time.monotonic() < until:
            try:
                piece = os.read(self._heard, 65536)
            except BlockingIOError:
                time.sleep(0.005)
                continue
            said += piece
            if words in said:
                for line in said.splitlines():
                    if b"listens on" in line:
                        self.port = int(line.rstrip(b"/").rpartition(b":")[2])
                return True
            assert piece, f"it ended: {self.process.ended(1.0)}"
        return False

    def close(self) -> None:
        os.close(self._heard)


def processes(marker: str) -> list[int]:
    """Processes whose command line holds such a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def listen(port: int) -> list[Visit]:
    visits = [Visit(port, number) for number in range(VISITORS)]
    for visit in visits:
        visit.start()
    return visits


def undisturbed(weights: Path, workers: int) -> tuple[int, list[list[list[float]]], float]:
    """Port, the notes of each visitor, and seconds from the start to the last note, of a server that nobody kills."""
    began = time.monotonic()
    server = Server(weights, workers)
    assert server.wait(b"Ready", began + READY)
    visits = listen(server.port)
    for visit in visits:
        visit.join()
    took = time.monotonic() - began
    assert all(visit.last["type"] == "done" and len(visit.notes) == NOTES for visit in visits)
    os.kill(server.process.pid, signal.SIGINT)
    ended = server.process.ended(READY)
    assert ended and not ended.status, f"it did not stop cleanly: {ended}"
    assert not processes(str(weights)), "a worker outlives a server that has stopped"
    server.close()
    return server.port, [visit.notes for visit in visits], took


def tiny(room: Path) -> Path:
    folder = room / "weights"
    folder.mkdir()
    path = folder / "tiny.safetensors"
    weights_file.save(path, random_tensors(TINY, 1), weights_file.metadata_of(TINY, FINE))
    return path


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def kill_servers(room: Path, count: int, chance: random.Random) -> str:
    """Kills so many servers; what came of it."""
    weights = tiny(room)
    files = contents(weights.parent)
    port, expected, usual = undisturbed(weights, 1)
    whole, latest_orphan, in_the_middle = 0, 0.0, 0
    orphans: list[int] = []
    killed_at = time.monotonic()
    for kills in range(count):
        began = time.monotonic()
        server = Server(weights, 1, port)  # at once, on the port of the one that was killed
        while orphans:
            orphans = [pid for pid in orphans if pid in processes(str(weights))]
            latest_orphan = max(latest_orphan, time.monotonic() - killed_at)
            assert latest_orphan < ORPHANS, f"workers outlive their server: {orphans}"
        until = began + chance.uniform(0.0, 1.2) * usual
        visits = listen(port) if server.wait(b"Ready", until) else []
        while time.monotonic() < until and any(visit.is_alive() for visit in visits):
            time.sleep(0.005)
        assert not server.process.ended(), f"after {kills} kills it ended by itself: {server.process.ended()}"
        orphans = processes(str(weights))
        server.process.kill()
        killed_at = time.monotonic()
        server.close()
        for visit in visits:
            visit.join()
            assert visit.notes == expected[visit.number][: len(visit.notes)], "other notes than undisturbed"
        whole += sum(visit.notes == expected[visit.number] for visit in visits)
        in_the_middle += any(0 < len(visit.notes) < NOTES for visit in visits)
        assert contents(weights.parent) == files, f"something is left beside the weights: {contents(weights.parent)}"
        assert not list((room / "tmp").iterdir()), f"something is left: {list((room / 'tmp').iterdir())}"
    return (
        f"{count} kills, {in_the_middle} of them between the first and the last note of a take; {whole} takes were "
        f"whole before, and all others a beginning of the undisturbed ones; every next server listened on the same "
        f"port at once; orphaned workers had ended after {latest_orphan:.1f} s at the latest"
    )


def kill_workers(room: Path, count: int, chance: random.Random) -> str:
    """Kills so many workers of one server, at most two while the same takes are played; what came of it."""
    weights = tiny(room)
    _, expected, _ = undisturbed(weights, 2)
    server = Server(weights, 2)
    assert server.wait(b"Ready", time.monotonic() + READY)
    kills = rounds = 0
    usual = 2.0
    while kills < count:
        began = time.monotonic()
        visits = listen(server.port)
        for _ in range(min(2, count - kills)):
            time.sleep(chance.uniform(0.0, 0.7) * usual)
            workers = [pid for pid in processes(str(weights)) if pid != server.process.pid]
            if workers:
                os.kill(chance.choice(workers), signal.SIGKILL)
                kills += 1
        for visit in visits:
            visit.join()
            assert visit.last.get("type") == "done", f"after {kills} kills a take ended with {visit.last}"
            assert visit.notes == expected[visit.number], f"after {kills} kills a take has other notes"
        rounds, usual = rounds + 1, time.monotonic() - began
    os.kill(server.process.pid, signal.SIGINT)
    ended = server.process.ended(READY)
    assert ended and not ended.status, f"it did not stop cleanly: {ended}"
    return f"{kills} kills, {rounds * VISITORS} takes of {NOTES} notes, each whole and note for note as undisturbed"
