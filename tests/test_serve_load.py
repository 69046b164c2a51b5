"""What keeps one visitor, or many, from holding up the others: connections, bodies, answers, duets, memory."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server's packages aren't installed: pip install '.[serve]'")
pytest.importorskip("websockets", reason="websockets isn't installed: pip install '.[serve]'")

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pulse88.serve import connections
from pulse88.serve.limits import Limits
from pulse88.serve.memory import Memory, Seed, Take
from pulse88.serve.metrics import Metrics
from serving import MIDI, SECONDS, SEED, Running, base64_of, running, tiny_weights

LONG = {"midi_base64": base64_of(SEED), "settings": {"notes": 400}, "random_seed": 3}
SMALL = Limits(requests=3, bodies_bytes=200_000, answers_bytes=150_000, duets=1, duet_hello_seconds=0.5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def server(weights: Path) -> Running:
    with running(weights, limits=SMALL) as server:
        yield server


def opened(server: Running, *sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
    for data in sent:
        connection.sendall(data)
    return connection


def head(path: str, length: int, kind: str = "audio/midi") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def cut(connection: socket.socket) -> bool:
    """Whether the server ends it."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    finally:
        connection.close()
    return True


def is_reset(connection: socket.socket) -> bool:
    """Whether the server has ended a connection that is not read."""
    return bool(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def test_too_many_requests_at_once_are_refused_and_those_after_them_are_not(server: Running) -> None:
    slow = [opened(server, head("/v1/seeds", 1000)) for _ in range(3)]
    deadline = time.monotonic() + SECONDS
    while (refused := server.ask("GET", "/v1/info")).status != 429:
        assert time.monotonic() < deadline
    refused.problem(429, "too many requests at once")
    assert refused.headers["retry-after"] == "5"
    assert server.ask("GET", "/v1/health").status == 200  # What balancers ask is answered all the same.
    for connection in slow:
        connection.close()
    server.wait(lambda: server.ask("GET", "/v1/info").status == 200, "those who are gone count no more")


def test_uploads_are_bounded_together(server: Running) -> None:
    body = bytes(150_000)
    slow = opened(server, head("/v1/seeds", len(body) + 1), body)
    answers = []
    deadline = time.monotonic() + SECONDS
    while not answers or answers[-1].status != 429:
        assert time.monotonic() < deadline
        answers.append(server.ask("POST", "/v1/seeds", body, MIDI))
    answers[-1].problem(429, "too much is being uploaded")
    assert answers[-1].headers["retry-after"] == "5"
    slow.close()
    server.wait(lambda: server.ask("POST", "/v1/seeds", SEED, MIDI).status == 201, "uploads again")


def test_downloads_are_bounded_together(server: Running) -> None:
    take = server.events(LONG | {"settings": {"notes": 3}})[-1]["take"]
    server.ask("GET", f"/v1/takes/{take}.wav").problem(429, "too much is being downloaded")
    assert server.ask("GET", f"/v1/takes/{take}.mid").status == 200


def test_who_asks_for_nothing_or_takes_nothing_is_cut_off(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ASK_SECONDS", 0.3)
    monkeypatch.setattr(connections, "TAKE_SECONDS", 0.3)
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.1)
    with running(weights) as server:
        half_open = opened(server)
        half_asked = opened(server, b"GET /v1/info HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        kept_alive = opened(server, b"GET /v1/info HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert cut(half_open) and cut(half_asked) and cut(kept_alive)
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(SECONDS)
        deaf.connect(("127.0.0.1", server.port))
        for _ in range(40):  # answered one after another, and read by nobody
            deaf.sendall(b"GET /v1/soundfont HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        with deaf:
            server.wait(lambda: is_reset(deaf), "who takes nothing is cut off")
        told = server.events(LONG)  # Who listens is not.
        assert told[-1]["type"] == "done"


def test_of_too_many_connections_the_longest_idle_one_goes(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST", 4)
    with running(weights) as server:
        idle = [opened(server) for _ in range(4)]
        time.sleep(0.1)
        assert server.ask("GET", "/v1/info").status == 200
        idle[0].settimeout(SECONDS)
        assert cut(idle[0])
        for connection in idle[1:]:
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.close()


def test_a_duet_that_says_nothing_has_no_place(server: Running) -> None:
    address = f"ws://127.0.0.1:{server.port}/v1/duet"
    with connect(address) as mute, connect(address) as speaks:
        speaks.send(json.dumps({"type": "hello"}))
        assert json.loads(speaks.recv(SECONDS))["type"] == "ready"
        told = json.loads(mute.recv(SECONDS))
        assert told["problem"]["status"] == 408 and "connect again" in told["problem"]["detail"]
        with pytest.raises(ConnectionClosed):
            mute.recv(SECONDS)
        with connect(address) as late:
            assert json.loads(late.recv(SECONDS))["problem"]["status"] == 429


def test_a_take_that_nobody_heard_a_note_of_is_forgotten(server: Running) -> None:
    blocked = threading.Event()

    def block() -> None:
        with server.stream(LONG | {"settings": {"notes": 4000}}) as stream:
            next(event for event in stream if event["type"] == "note")
            blocked.set()
            for _ in stream:
                if not blocked.is_set():
                    break

    def held() -> int:
        return len(server.service.memory.takes)

    before = held()
    thread = threading.Thread(target=block, daemon=True)
    thread.start()
    assert blocked.wait(SECONDS)
    with server.stream(LONG | {"settings": {"notes": 4000, "best_of": 8}}, **{"X-Visitor": "somebody-else"}) as stream:
        assert next(stream)["type"] == "queued"
    blocked.clear()
    thread.join(SECONDS)
    server.wait(lambda: held() == before + 1, "only the take that has notes stays")


def test_methods_of_ones_own_make_no_series(server: Running) -> None:
    for number in range(5):
        server.ask(f"METHOD{number}", "/v1/info")
    told = server.ask("GET", "/metrics").body.decode()
    assert "METHOD" not in told and 'method="other"' in told


def test_what_is_remembered_is_bounded_by_its_size_too() -> None:
    memory = Memory(replace(Limits(), seed_bytes=1000, notes_in_all=10), Metrics())
    seeds = [memory.seeds.add(Seed("me", bytes(300), b"{}")) for _ in range(5)]
    assert [memory.seeds.find(seed.id) is not None for seed in seeds] == [False, False, True, True, True]
    large = memory.seeds.add(Seed("me", bytes(5000), b"{}"))
    assert len(memory.seeds) == 1 and memory.seeds.get(large.id)
    settings: dict[str, Any] = {}
    takes = [memory.takes.add(Take("me", seeds[-1], settings, 0, 0)) for _ in range(3)]
    for take in takes:
        take.notes += [[0.0] * 5] * 5
    memory.takes.settle()
    assert [memory.takes.find(take.id) is not None for take in takes] == [False, True, True]


def test_takes_keep_no_more_of_forgotten_seeds_than_seeds_may_have() -> None:
    memory = Memory(replace(Limits(), seed_bytes=1000, seeds_per_visitor=2), Metrics())
    takes: list[Take] = []
    for _ in range(5):
        seed = memory.seeds.add(Seed("me", bytes(300), b"{}"))
        takes += [memory.takes.add(Take("me", seed, {}, 0, number)) for number in range(2)]
    assert (
        len(memory.seeds) == 2
        and [memory.takes.find(take.id) is not None for take in takes] == [False] * 4 + [True] * 6
    )
    for take in takes:
        memory.takes.drop(take.id)
    large = [memory.takes.add(Take("me", Seed("me", bytes(size), b"{}"), {}, 0, 0)) for size in (5000, 996)]
    assert [memory.takes.find(take.id) is not None for take in large] == [False, True]


def test_a_seeds_facts_come_as_they_went(server: Running) -> None:
    told = server.ask("POST", "/v1/seeds", SEED, MIDI).json
    assert server.ask("GET", f"/v1/seeds/{told['seed']}").json == told and len(told["notes"]) == 12
