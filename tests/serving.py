"""A server in a thread of the test's own process, over tiny weights, and a client of the standard library."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import uvicorn

from pulse88.config import TINY
from pulse88.engine import weights as weights_file
from pulse88.engine.weights import random_tensors
from pulse88.midi_file import to_bytes
from pulse88.notes import Performance
from pulse88.serve.app import application
from pulse88.serve.connections import Connection, Socket
from pulse88.serve.guard import Doorway
from pulse88.serve.limits import Limits
from pulse88.serve.service import Service
from pulse88.vocabulary import FINE

CONFIG = replace(TINY, max_positions=1024)
SECONDS = 20.0  # that anything may take on a busy machine
MIDI = {"Content-Type": "audio/midi"}
JSON = {"Content-Type": "application/json"}


def tiny_weights(folder: Path) -> Path:
    path = folder / "tiny.safetensors"
    weights_file.save(path, random_tensors(CONFIG, 1), weights_file.metadata_of(CONFIG, FINE))
    return path


def a_seed(notes: int = 12, start: float = 0.0, pitch: int = 48) -> Performance:
    """A scale under a pedal, a note each half second."""
    return Performance(
        onset=start + 0.5 * np.arange(notes),
        duration=np.full(notes, 0.4),
        pitch=(pitch + np.arange(notes) % 24).astype(np.uint8),
        velocity=np.full(notes, 80, np.uint8),
        part=np.zeros(notes, np.uint8),
        pedal_time=np.array([0.1, 0.9]),
        pedal_value=np.array([127, 0], np.uint8),
        pedal_part=np.zeros(2, np.uint8),
    )


SEED = to_bytes(a_seed())


class Answer(NamedTuple):
    """What the server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def problem(self, status: int, *words: str) -> None:
        """Asserts that it is such a problem, said in such words."""
        assert self.status == status, (self.status, self.body[:300])
        assert self.headers["content-type"] == "application/problem+json"
        told = self.json
        assert told["status"] == status and told["request"] == self.headers["x-request-id"]
        for word in words:
            assert word in told["detail"], told["detail"]


class Running:
    """A running server, and how to ask it."""

    def __init__(self, service: Service, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.service, self.port, self.loop = service, port, loop

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        connection = self.connect()
        try:
            if isinstance(body, (dict, list)):
                body, headers = json.dumps(body), JSON | (headers or {})
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            answered = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, answered, response.read())
        finally:
            connection.close()

    @contextlib.contextmanager
    def stream(self, asked: dict[str, Any], **headers: str) -> Iterator[Iterator[dict[str, Any]]]:
        """The events of a continuation as they come; leaving the block leaves the server."""
        connection = self.connect()
        try:
            connection.request("POST", "/v1/continuations", json.dumps(asked), JSON | headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            yield events(response)
        finally:
            connection.close()

    def events(self, asked: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
        with self.stream(asked, **headers) as stream:
            return list(stream)

    def seed(self, midi: bytes = SEED) -> str:
        answer = self.ask("POST", "/v1/seeds", midi, MIDI)
        assert answer.status == 201, answer.body
        return answer.json["seed"]

    def pids(self) -> list[int]:
        """Of the workers that are ready."""
        return [worker.process.pid for worker in self.service.pool._workers if worker.ready]

    def wait(self, until: Any, what: str) -> None:
        end = time.monotonic() + SECONDS
        while not until():
            assert time.monotonic() < end, f"waited in vain: {what}"
            time.sleep(0.02)

    def wait_until_ready(self, workers: int = 1) -> None:
        self.wait(lambda: len(self.pids()) >= workers, f"{workers} workers")


def events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.strip():
            yield json.loads(line)


def of_kind(told: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in told if event["type"] == kind]


def notes_of(told: list[dict[str, Any]]) -> list[list[float]]:
    return [event["note"] for event in of_kind(told, "note")]


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@contextlib.contextmanager
def running(
    weights: Path,
    *,
    index: Path | None = None,
    workers: int = 1,
    limits: Limits | None = None,
    doorway: Doorway | None = None,
) -> Iterator[Running]:
    """A server on a free port, until the block ends. Nothing of it is left then."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    service = Service(workers, weights, index=index, limits=limits)
    began: dict[str, Any] = {}
    ready = threading.Event()

    def run() -> None:
        config = uvicorn.Config(
            application(service, doorway, renders_ahead=False),
            port=0,
            log_config=None,
            http=Connection,
            ws=Socket,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)

        async def main() -> None:
            serving = asyncio.create_task(server.serve())
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            began.update(server=server, loop=asyncio.get_running_loop())
            began["port"] = server.servers[0].sockets[0].getsockname()[1]
            ready.set()
            await serving

        asyncio.run(main())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(SECONDS), "the server did not begin"
    server = Running(service, began["port"], began["loop"])
    try:
        server.wait_until_ready(workers)
        yield server
    finally:
        pids = set(service.pool.pids)
        began["server"].should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive(), "the server did not end"
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
