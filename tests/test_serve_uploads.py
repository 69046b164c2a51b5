"""Bad uploads and strangers: a clear word for each, nothing read that needn't be, and the server as well as before."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages aren't installed: pip install '.[serve]'")

from pulse88.serve.guard import Doorway, is_loopback
from pulse88.serve.limits import Limits
from serving import JSON, MIDI, SEED, Running, base64_of, running, tiny_weights
from smf import meta, on, smf, track

FIFTY = 50 * 2**20


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Running]:
    with running(weights) as server:
        yield server


def zipped(data: bytes) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("seed.mid", data)
    return result.getvalue()


def test_each_bad_upload_is_told_what_is_wrong(server: Running) -> None:
    tracks = smf(*[track((0, on(60)))] * 10_000)
    cases = [
        (b"", 422, "empty"),
        (b"Dear Sir or Madam", 422, "not a MIDI file"),
        (os.urandom(5000), 422, "the upload"),
        (SEED[:20], 422, "the upload"),
        (zipped(bytes(20 * 2**20)), 415, "a ZIP archive"),
        (gzip.compress(bytes(20 * 2**20)), 415, "a gzip archive"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), 415, "a picture"),
        (b"ID3" + bytes(100), 415, "an MP3"),
        (tracks, 413, "10,000 tracks"),
        (smf(track((0, meta(1, b"no notes")))), 422, "no notes"),
        (smf(track((0, on(60, channel=9)))), 422, "drums"),
        (smf(track(*[(1, on(60))] * 110_000)), 413, "110,000 notes"),
        (smf(track((0, on(60)), (0x0FFFFFFF, on(62)))), 413, "hours"),
    ]
    for data, status, words in cases:
        began = time.monotonic()
        server.ask("POST", "/v1/seeds", data, MIDI).problem(status, words)
        assert time.monotonic() - began < 10
    pids = server.pids()
    assert server.ask("POST", "/v1/seeds", SEED, MIDI).status == 201
    assert server.pids() == pids, "a worker was lost over them"


def test_a_truncated_file_is_read_as_far_as_it_goes(server: Running) -> None:
    answer = server.ask("POST", "/v1/seeds", SEED[: len(SEED) * 2 // 3], MIDI)
    assert answer.status == 201
    assert 0 < len(answer.json["notes"]) < 12
    assert any("leniently" in remark for remark in answer.json["remarks"])


def test_fifty_megabytes_are_refused_before_they_are_sent(server: Running) -> None:
    """By the length that is told; and, where none is told, as soon as too much has come."""
    for path in ("/v1/seeds", "/v1/continuations", "/v1/takes"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plug:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: audio/midi\r\n"
            plug.sendall((head + f"Content-Length: {FIFTY}\r\n\r\n").encode())
            answer = b"".join(iter(lambda: plug.recv(65536), b""))
        assert b" 413 " in answer.splitlines()[0] and b"larger than" in answer
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plug:
        plug.sendall(b"POST /v1/seeds HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: audio/midi\r\n")
        plug.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        try:
            while sent < FIFTY:
                plug.sendall(chunk)
                sent += 0x10000
        except OSError:
            pass
    assert sent < FIFTY
    server.ask("POST", "/v1/seeds", bytes(3 * 2**20), MIDI).problem(413, "2 MiB")


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (SEED, {"Content-Type": "text/plain"}, 415, "text/plain"),
        (SEED, {}, 415, "unknown"),
        (gzip.compress(SEED), MIDI | {"Content-Encoding": "gzip"}, 415, "Content-Encoding"),
        (b"{", JSON, 400, "no JSON"),
        (b"[" * 100_000, JSON, 400, "no JSON"),
        (b'{"notes": 3}', JSON, 422, '"notes"'),
        (b'{"notes": [3]}', JSON, 422, "note 0: onset must be a number"),
        (b'{"notes": [{"onset": NaN, "duration": 1, "pitch": 1, "velocity": 1}]}', JSON, 422, "onset"),
        (b'{"notes": [{"onset": 0, "duration": 1, "pitch": 300, "velocity": 1}]}', JSON, 422, "pitch"),
        (b'{"notes": [{"onset": 0, "duration": 1, "pitch": 5, "velocity": 1}]}', JSON, 422, "88 keys"),
        (b'{"notes": [{"onset": 1e8, "duration": 1, "pitch": 60, "velocity": 1}]}', JSON, 413, "hours"),
        (b'{"notes": [], "path": "/etc/passwd"}', JSON, 422, "path"),
    ],
)
def test_bodies_without_sense(server: Running, body: bytes, headers: dict, status: int, words: str) -> None:
    server.ask("POST", "/v1/seeds", body, headers).problem(status, words)


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({}, 422, "give one of seed, midi_base64 and parent"),
        ({"seed": "../../etc/passwd"}, 422, "seed"),
        ({"seed": "0" * 32}, 404, "there is no seed"),
        ({"parent": {"take": "0" * 32}}, 404, "there is no take"),
        ({"midi_base64": "?"}, 422, "no base64"),
        ({"midi_base64": base64_of(b"PK\x03\x04")}, 415, "a ZIP archive"),
        ({"midi_base64": base64_of(SEED), "settings": {"temperature": 3}}, 422, "settings.temperature"),
        ({"midi_base64": base64_of(SEED), "settings": {"temperatur": 1}}, 422, "settings.temperatur"),
        ({"midi_base64": base64_of(SEED), "settings": {"seconds": "20"}}, 422, "settings.seconds"),
        ({"midi_base64": base64_of(SEED), "settings": {"seconds": 1e300}}, 422, "settings.seconds"),
        ({"midi_base64": base64_of(SEED), "settings": {"liveliness": 1, "top_p": 0.9}}, 422, "not both"),
        ({"midi_base64": base64_of(SEED), "settings": {"register": [80, 60]}}, 422, "the lower pitch comes first"),
        ({"midi_base64": base64_of(SEED), "settings": {"density": [4, 2]}}, 422, "density"),
        ({"midi_base64": base64_of(SEED), "takes": 9}, 422, "takes"),
        ({"midi_base64": base64_of(SEED), "random_seed": -1}, 422, "random_seed"),
        ({"midi_base64": base64_of(SEED), "random_seed": 2**53}, 422, "random_seed"),
        ({"midi_base64": base64_of(SEED), "seed_range": [2, 1]}, 422, "its end comes after its start"),
    ],
)
def test_wishes_without_sense(server: Running, asked: dict, status: int, words: str) -> None:
    server.ask("POST", "/v1/continuations", asked).problem(status, words)


def test_addresses_lead_to_no_file(server: Running) -> None:
    for path in ("/static/../../../../etc/passwd", "/static/%2e%2e%2f__init__.py", "/static//etc/passwd", "/none"):
        server.ask("GET", path).problem(404)
    server.ask("PUT", "/v1/seeds").problem(405)
    for name in ("../x", "x" * 32, "%00"):
        assert server.ask("GET", f"/v1/takes/{name}.mid").status in (404, 422)


def test_the_page_and_what_it_carries(server: Running) -> None:
    page = server.ask("GET", "/")
    assert page.status == 200 and "text/html" in page.headers["content-type"]
    assert "script-src 'self'" in page.headers["content-security-policy"]
    cookie = page.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert "set-cookie" not in server.ask("GET", "/", headers={"Cookie": cookie.split(";")[0]}).headers
    again = server.ask("GET", "/", headers={"Cookie": cookie.split(";")[0], "If-None-Match": page.headers["etag"]})
    assert again.status == 304
    script = server.ask("GET", "/static/app.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"


def test_other_sites_and_other_names_are_refused(server: Running) -> None:
    mine = f"http://127.0.0.1:{server.port}"
    assert server.ask("POST", "/v1/seeds", SEED, MIDI | {"Origin": mine}).status == 201
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        server.ask("POST", "/v1/seeds", SEED, MIDI | {"Origin": origin}).problem(403, "--allow-origin")
    server.ask("GET", "/v1/info", headers={"Host": "evil.example"}).problem(403, "--name")
    server.ask("GET", "/v1/info", headers={"Host": ""}).problem(403)
    assert server.ask("GET", "/v1/info", headers={"Host": "localhost:1"}).status == 200


def test_a_token_is_asked_for_and_known_in_three_ways(weights: Path) -> None:
    doorway = Doorway(hosts=(), origins=("https://piano.example",), token="open sesame")
    with running(weights, doorway=doorway) as server:
        assert server.ask("GET", "/v1/health").status == 200
        server.ask("GET", "/v1/info").problem(401, "token")
        server.ask("GET", "/v1/info", headers={"Authorization": "Bearer open"}).problem(401)
        assert server.ask("GET", "/v1/info", headers={"Authorization": "Bearer open sesame"}).status == 200
        page = server.ask("GET", "/?token=open+sesame")
        assert page.status == 200 and "pulse88_token" in page.headers["set-cookie"]
        cookie = {"Cookie": 'pulse88_token="open sesame"'}
        assert server.ask("GET", "/v1/info", headers=cookie).status == 200
        allowed = cookie | {"Origin": "https://piano.example"}
        answer = server.ask("GET", "/v1/info", headers=allowed)
        assert answer.headers["access-control-allow-origin"] == "https://piano.example"
        preflight = server.ask("OPTIONS", "/v1/continuations", headers={"Origin": "https://piano.example"})
        assert preflight.status == 204 and "content-type" in preflight.headers["access-control-allow-headers"]


def test_too_much_at_once_is_refused_and_says_when_to_come_back(weights: Path) -> None:
    limits = Limits(waiting_per_visitor=2, waiting=3)
    asked = {"midi_base64": base64_of(SEED), "settings": {"notes": 4000, "best_of": 8}, "takes": 2, "random_seed": 3}
    with running(weights, limits=limits) as server, server.stream(asked) as first:
        next(first)
        answer = server.ask("POST", "/v1/continuations", asked)
        answer.problem(429, "at most 2 takes")
        assert int(answer.headers["retry-after"]) > 0
        server.ask("POST", "/v1/continuations", asked, {"X-Visitor": "somebody-else"}).problem(429, "come back")
        one = asked | {"takes": 1, "settings": {"notes": 2}}
        assert server.ask("POST", "/v1/continuations", one, {"X-Visitor": "somebody-else"}).status == 200


def test_a_body_that_never_comes_is_not_waited_for(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pulse88.serve.streams.BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plug:
        plug.sendall(b"POST /v1/seeds HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: audio/midi\r\n")
        plug.sendall(b"Content-Length: 1000\r\n\r\nMThd")
        assert b" 408 " in plug.recv(65536).splitlines()[0]


def test_problems_tell_the_request_but_nothing_of_the_house(server: Running) -> None:
    answer = server.ask("POST", "/v1/seeds", b"MThd" + bytes(40), MIDI)
    text = json.dumps(answer.json)
    assert str(Path.cwd()) not in text and "Traceback" not in text and ".py" not in text


@pytest.mark.parametrize(
    ("host", "only_here"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True), ("0.0.0.0", False), ("pi", False)],
)
def test_which_addresses_only_this_machine_reaches(host: str, only_here: bool) -> None:
    assert is_loopback(host) is only_here


def test_the_log_has_a_line_a_request_whatever_is_asked(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="pulse88.serve.guard"):
        answer = server.ask("GET", "/none%0aforged%20line?token=secret")
        server.wait(lambda: answer.headers["x-request-id"] in caplog.text, "the log")
    (line,) = (
        record.getMessage() for record in caplog.records if answer.headers["x-request-id"] in record.getMessage()
    )
    assert "\n" not in line and " GET /none%0aforged%20line 404 " in line and "secret" not in line
