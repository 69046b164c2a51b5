"""Duets over a WebSocket: it answers in time, yields, reads along, and goes on when its worker is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server's packages aren't installed: pip install '.[serve]'")
pytest.importorskip("websockets", reason="websockets isn't installed: pip install '.[serve]'")

from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pulse88.notes import Note, Performance
from pulse88.serve.history import History
from pulse88.serve.phrase import SHORTEST, Phrase
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import FINE, Grammar
from serving import SECONDS, Running, running, tiny_weights

PITCHES = (60, 64, 67, 72, 67, 64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Running]:
    with running(weights) as server:
        yield server


class Player:
    """Somebody with a keyboard and a clock that began when they did."""

    def __init__(self, server: Running, **hello: Any) -> None:
        self._connection = connect(f"ws://127.0.0.1:{server.port}/v1/duet")
        self.socket = self._connection.__enter__()
        self.began = time.monotonic()
        self.heard: list[tuple[float, dict[str, Any]]] = []
        threading.Thread(target=self._listen, daemon=True).start()
        self.say(type="hello", **{"pause": 0.3, "answer_seconds": 1.0, "random_seed": 1} | hello)

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.__exit__(None, None, None)

    def _listen(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            for message in self.socket:
                self.heard.append((self.now(), json.loads(message)))

    def now(self) -> float:
        return time.monotonic() - self.began

    def say(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def play(self, pitches: tuple[int, ...] = PITCHES) -> None:
        for pitch in pitches:
            self.say(type="on", time=self.now(), pitch=pitch, velocity=80)
            time.sleep(0.05)
            self.say(type="off", time=self.now(), pitch=pitch)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for _, message in list(self.heard) if message["type"] == kind]

    def wait(self, kind: str, count: int = 1) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while len(self.of(kind)) < count:
            assert time.monotonic() < end, f"no {kind}: {self.heard[-5:]}"
            time.sleep(0.01)
        return self.of(kind)[count - 1]


def test_a_phrase_is_read_along_and_answered_after_the_pause(server: Running) -> None:
    with Player(server) as player:
        ready = player.wait("ready")
        assert ready["settings"]["temperature"] == 1.0 and ready["pause"] == 0.3
        player.play()
        ended = player.now()
        answering = player.wait("answering")
        assert answering["time"] - ended > 0.25
        done = player.wait("answered")
        notes = [message["note"] for message in player.of("note")]
        assert len(notes) == done["notes"] > 0
        onsets = [note[0] for note in notes]
        assert onsets == sorted(onsets)
        assert answering["time"] < onsets[0] and onsets[-1] <= answering["time"] + 1.0 + 0.3
        latency = player.of("latency")[0]
        shares = latency["waited_ms"] + latency["read_ms"] + latency["made_ms"]
        assert latency["first_note_ms"] == pytest.approx(shares, abs=0.5)
        assert any(message["read"] >= 3 for message in player.of("listening")), "nothing was read along"
        text = server.ask("GET", "/metrics").body.decode()
        assert "pulse88_duet_first_note_seconds_count" in text and "pulse88_duets 1.0" in text


def test_it_yields_when_the_other_plays_again_and_answers_again(server: Running) -> None:
    with Player(server, answer_seconds=30.0) as player:
        player.play()
        player.wait("note", 3)
        time.sleep(0.3)
        player.play()
        yielded = player.wait("yielded")
        heard = [note for note in player.of("note") if note["answer"] == 0]
        assert yielded["kept"] == sum(note["note"][0] <= yielded["time"] for note in heard)
        player.wait("answering", 2)
        player.wait("latency", 2)
        player.say(type="yield", time=player.now())
        player.wait("yielded", 2)
        assert not player.of("error")
        player.say(type="save")
        seed = server.ask("GET", f"/v1/seeds/{player.wait('saved')['seed']}").json
        kept = sum(message["kept"] for message in player.of("yielded"))
        assert seed["parts"] == (["You", "Pulse88"] if kept else ["You"])
        assert len(seed["notes"]) == 2 * len(PITCHES) + kept


def test_it_answers_when_it_is_asked_and_not_by_itself_with_pause_0(server: Running) -> None:
    with Player(server, pause=0) as player:
        player.play()
        time.sleep(0.5)
        assert not player.of("answering")
        player.say(type="answer", time=player.now())
        player.wait("answered")
        player.say(type="ping", time=1.5)
        assert player.wait("pong")["time"] == 1.5


def test_the_same_notes_are_answered_the_same_way(server: Running) -> None:
    """Of a phrase of fixed times; when the pause is noticed only moves the answer as a whole."""
    answers = []
    for _ in range(2):
        with Player(server, pause=0, settings={"temperature": 0.5, "register": [60, 80]}) as player:
            for index, pitch in enumerate(PITCHES):
                player.say(type="on", time=100 + 0.25 * index, pitch=pitch, velocity=80)
                player.say(type="off", time=100.2 + 0.25 * index, pitch=pitch)
            player.say(type="answer", time=101.5)
            player.wait("answered")
            answers.append([message["note"][2:] for message in player.of("note")])
    assert answers[0][:2] == answers[1][:2]
    assert all(60 <= pitch <= 80 for answer in answers for pitch, _, _ in answer)


def test_a_lost_worker_is_replaced_and_the_duet_goes_on(server: Running) -> None:
    with Player(server) as player:
        player.play()
        player.wait("answered")
        (pid,) = server.pids()
        os.kill(pid, signal.SIGKILL)
        server.wait(lambda: server.pids() and server.pids() != [pid], "another worker")
        player.play()
        player.wait("answered", 2)
        assert not player.of("error")


def test_long_duets_forget_their_beginning_and_go_on(server: Running) -> None:
    with Player(server, pause=0) as player:
        for index in range(700):
            player.say(type="on", time=0.1 * index, pitch=40 + index % 40, velocity=80)
            player.say(type="off", time=0.1 * index + 0.05, pitch=40 + index % 40)
            if index % 100 == 99:
                time.sleep(0.3)
        for answer in (1, 2):
            player.say(type="answer", time=70.0 + answer)
            player.wait("answered", answer)
        assert not player.of("error")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", "body"),
        ('{"type": "onn"}', "type"),
        ('{"type": "on", "time": 1, "pitch": 200, "velocity": 1}', "pitch"),
        ('{"type": "on", "time": NaN, "pitch": 60, "velocity": 1}', "time"),
        ('{"type": "hello", "settings": {"register": [60, 61]}}', "an octave lies between"),
    ],
)
def test_messages_without_sense_are_told_and_the_duet_goes_on(server: Running, text: str, words: str) -> None:
    with Player(server) as player:
        player.socket.send(text)
        problem = player.wait("error")["problem"]
        assert problem["status"] in (400, 422) and words in problem["detail"]
        player.say(type="ping", time=2.0)
        player.wait("pong")


def test_other_sites_and_floods_are_kept_out(server: Running) -> None:
    with pytest.raises(Exception, match=r"403|rejected|1008|HTTP"):
        connect(f"ws://127.0.0.1:{server.port}/v1/duet", origin="http://evil.example").__enter__()
    with Player(server) as player, pytest.raises(Exception, match=r"1008|closed|pipe"):
        for _ in range(20_000):
            player.say(type="ping", time=1.0)
    server.wait(lambda: server.service.pool.duets == 0, "all duets to be over")


# Phrases


def test_the_pedal_holds_notes_until_it_rises_or_they_are_struck_again() -> None:
    phrase = Phrase()
    phrase.pedal(0.0, 127)
    phrase.on(0.1, 60, 80)
    phrase.off(0.2, 60)
    phrase.on(0.3, 62, 80)
    phrase.off(0.4, 62)
    phrase.on(0.5, 60, 80)
    phrase.off(0.6, 60)
    assert len(phrase.over()) == 1  # The first, which the third ended; the second rings.
    phrase.pedal(1.0, 0)
    assert [round(note.duration, 6) for note in phrase.notes] == [0.4, 0.7, 0.5]


@given(
    st.lists(
        st.tuples(st.sampled_from(("on", "off", "pedal")), st.floats(0, 10), st.integers(58, 62), st.booleans()),
        max_size=40,
    )
)
def test_whatever_is_played_every_note_ends_and_none_lasts_less_than_it_may(played: list[tuple]) -> None:
    phrase, struck = Phrase(), 0
    for kind, at, pitch, down in sorted(played, key=lambda event: event[1]):
        match kind:
            case "on":
                phrase.on(at, pitch, 80)
                struck += 1
            case "off":
                phrase.off(at, pitch)
            case _:
                phrase.pedal(at, 127 if down else 0)
        over = phrase.over()
        assert sorted(over) == sorted(phrase.notes[: len(over)])
    phrase.finish(11.0)
    assert not phrase.down and not phrase.ringing
    everything = phrase.all()
    assert len(everything) == struck and (everything.duration >= SHORTEST).all()


# Histories


def played(history: History, onsets: list[float], pitch: int = 60) -> None:
    for index, onset in enumerate(onsets):
        history.phrase.on(onset, pitch + index % 12, 80)
        history.phrase.off(onset + 0.05, pitch + index % 12)


@pytest.mark.parametrize(("gap", "pulse"), [(0.5, 0.0625), (0.3, 0.075), (0.09, 0.045)])
def test_an_answer_begins_on_the_pulse_and_soon(gap: float, pulse: float) -> None:
    history = History(Tokenizer(FINE), 400)
    played(history, [3 + gap * index for index in range(12)])
    history.end_phrase(20.0)
    last = 3 + gap * 11
    for soonest in (last + 0.7, last + 1.234, last + 30.0):
        begins = history.begins_at(soonest)
        assert soonest - 1e-9 <= begins <= soonest + 0.08
        assert (begins - last) / pulse == pytest.approx(round((begins - last) / pulse), abs=1e-6)


@pytest.mark.parametrize("later", [0.0, 0.003, 0.2])
def test_a_phrase_may_begin_at_once_with_what_came_before_it_and_lower(later: float) -> None:
    history = History(Tokenizer(FINE), 400)
    played(history, [0.0, 0.5])
    history.end_phrase(1.0)
    history.add_answer(bytes((10, 103, 140, 160)), [Note(1.5, 0.2, 92, 80, 1)])
    played(history, [1.5 + later, 1.5 + later, 2.0], pitch=40)
    Grammar.of(history.over())
    history.end_phrase(3.0)
    Grammar.of(history.ids)
    assert len(history.ids) == 1 + 4 * 6


def test_a_phrase_after_a_seed_may_begin_lower_than_it_ends() -> None:
    history = History(Tokenizer(FINE), 400)
    history.begin_with([Note(0.0, 1.0, 60, 80, 0), Note(0.0, 1.0, 100, 80, 0)])
    played(history, [7.0, 8.0], pitch=40)
    history.end_phrase(9.0)
    Grammar.of(history.ids)
    assert len(history.ids) == 1 + 4 * 4


def test_keys_that_no_piano_has_begin_nothing() -> None:
    history = History(Tokenizer(FINE), 400)
    for start in (0.0, 10.0):
        played(history, [start], pitch=5)
        history.end_phrase(start + 1.0)
        assert history.ids == ()
    played(history, [20.0, 21.0])
    history.end_phrase(22.0)
    Grammar.of(history.ids)
    assert len(history.ids) == 1 + 4 * 2


def test_a_duet_goes_on_after_keys_that_no_piano_has(server: Running) -> None:
    with Player(server) as player:
        player.play((5, 6))
        assert "88 keys" in player.wait("error")["problem"]["detail"]
        player.play()
        assert player.wait("answered")["notes"]


def test_what_was_read_stays_read_however_long_it_gets() -> None:
    history, kept = History(Tokenizer(FINE), 40), 0
    before: tuple[int, ...] = ()
    for index in range(600):
        played(history, [0.2 * index])
        if index % 7 == 6:
            history.end_phrase(0.2 * index + 0.1)
        now = history.over()
        Grammar.of(now)
        assert len(now) <= 40 * 4 + 1
        kept += now[: len(before)] == before
        before = now
    assert kept > 500
    assert len(history.everything) == 600


def test_notes_of_one_chord_are_read_when_no_more_can_come_to_it() -> None:
    history = History(Tokenizer(FINE), 400)
    played(history, [0.0, 0.5, 0.505, 0.51])
    assert len(history.over()) == 1 + 4  # BOS and the first note
    history.end_phrase(1.0)
    assert len(history.ids) == 1 + 16
    whole = Tokenizer(FINE).encode(Performance.from_notes(history.notes), ends=False)
    assert list(history.ids) == whole.ids.tolist()
    history.add_answer(bytes((10, 71, 140, 160)), [Note(1.5, 0.2, 60, 80, 1)])
    assert history.anchor == 1.5 and len(history.with_answer(b"")) == 21
