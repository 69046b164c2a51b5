"""What docs/api.md says of seeds, continuations, takes and files, asked over HTTP of a running server."""

from __future__ import annotations

import io
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages aren't installed: pip install '.[serve]'")

from pulse88 import midi_file, overlap_index
from pulse88.continuation import Continuer, provenance_of
from pulse88.key import NAMES
from serving import MIDI, SEED, Running, a_seed, base64_of, notes_of, of_kind, running, tiny_weights

NOTES = {"settings": {"notes": 8}, "random_seed": 3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Running]:
    with running(weights) as server:
        yield server


def made_by(server: Running, weights: Path, take: str) -> bytes:
    """The take's file, which is also made again from its own settings, byte for byte."""
    answer = server.ask("GET", f"/v1/takes/{take}.mid")
    assert answer.status == 200 and answer.headers["content-type"] == "audio/midi"
    facts = provenance_of(answer.body)
    assert facts is not None
    assert Continuer(weights, facts.engine).replay(answer.body).finish().to_bytes() == answer.body
    return answer.body


def test_health_info_metrics_and_examples(server: Running) -> None:
    health = server.ask("GET", "/v1/health")
    assert (health.status, health.json["status"], health.json["workers"]) == (200, "ok", 1)
    info = server.ask("GET", "/v1/info").json
    assert info["model"]["engine"] in ("native", "numpy") and info["defaults"]["seed_notes"] == 128
    assert info["limits"]["upload_bytes"] == 2 * 2**20 and info["originality"] is True
    examples = server.ask("GET", "/v1/examples").json["examples"]
    assert [example["id"] for example in examples] == ["carol", "motif", "one-note", "piece"]
    for example in examples:
        midi = server.ask("GET", f"/v1/examples/{example['id']}.mid")
        assert len(midi_file.read(midi.body).performance) == example["notes"]
    text = server.ask("GET", "/metrics").body.decode()
    assert "pulse88_workers 1.0" in text and 'pulse88_requests_total{method="GET",route="/v1/health"' in text
    server.ask("GET", "/v1/examples/../../etc/passwd").problem(404)
    server.ask("GET", "/v1/examples/none.mid").problem(422, "id")


def test_a_seed_is_read_and_told(server: Running) -> None:
    told = server.ask("POST", "/v1/seeds", SEED, MIDI).json
    performance = a_seed()
    assert [row[2] for row in told["notes"]] == performance.pitch.tolist()
    assert told["notes"][1] == pytest.approx([0.5, 0.4, 49, 80, 0], abs=1e-3)
    assert told["pedal"] == [pytest.approx([0.1, 127, 0], abs=1e-3), pytest.approx([0.9, 0, 0], abs=1e-3)]
    assert told["boundary"] == pytest.approx(5.5, abs=1e-3) and told["seconds"] == pytest.approx(5.9, abs=1e-3)
    assert told["read_from"] == 0 and told["usable_notes"] == 12
    assert told["remarks"] == ["format 1, 2 tracks, 12 piano notes"]
    assert server.ask("GET", f"/v1/seeds/{told['seed']}").json == told
    long = server.ask("POST", "/v1/seeds", midi_file.to_bytes(a_seed(150)), MIDI).json
    assert long["read_from"] == 150 - 128
    assert server.ask("DELETE", f"/v1/seeds/{told['seed']}").status == 204
    server.ask("GET", f"/v1/seeds/{told['seed']}").problem(404, "send it again")


def test_played_notes_are_a_seed(server: Running) -> None:
    played = [{"onset": 0.25 * i, "duration": 0.2, "pitch": 60 + i, "velocity": 70} for i in range(5)]
    told = server.ask("POST", "/v1/seeds", {"notes": played, "pedal": [{"time": 0.1, "value": 127}]}).json
    assert [row[2] for row in told["notes"]] == [60, 61, 62, 63, 64]
    assert told["parts"] == ["Played"] and told["pedal"][0][1] == 127
    assert of_kind(server.events({"seed": told["seed"], **NOTES}), "done")[0]["notes"] == 8


def test_notes_stream_and_the_file_holds_them(server: Running, weights: Path) -> None:
    told = server.events({"midi_base64": base64_of(SEED), **NOTES})
    kinds = [event["type"] for event in told]
    assert kinds[:2] == ["queued", "begun"] and kinds[-1] == "done" and kinds.count("note") == 8
    begun, done = told[1], told[-1]
    assert begun["boundary"] == pytest.approx(5.5, abs=1e-3) and begun["read_notes"] == 12
    assert begun["random_seed"] == 3 and begun["settings"]["temperature"] == 1.0 and begun["new_part"] == 1
    assert (done["reason"], done["notes"]) == ("length", 8)
    assert [event["index"] for event in of_kind(told, "note")] == list(range(8))
    take = server.ask("GET", f"/v1/takes/{done['take']}").json
    assert take["state"] == "done" and take["notes"] == notes_of(told) and take["seed"] == begun["seed"]
    heard = midi_file.read(made_by(server, weights, done["take"])).performance
    new = sorted(heard.take(heard.part == 1), key=lambda note: (note.onset, note.pitch))
    rows = sorted(notes_of(told), key=lambda row: (row[0], row[2]))
    assert [note.pitch for note in new] == [row[2] for row in rows]
    assert [note.onset for note in new] == pytest.approx([row[0] for row in rows], abs=1e-3)


def test_the_same_request_gives_the_same_notes_and_is_what_the_command_line_makes(
    server: Running, weights: Path
) -> None:
    one, other = (server.events({"midi_base64": base64_of(SEED), **NOTES}) for _ in range(2))
    assert notes_of(one) == notes_of(other)
    (made,) = Continuer(weights).continue_(SEED, notes=8, seconds=600, random_seed=3)
    assert server.ask("GET", f"/v1/takes/{one[-1]['take']}.mid").body == made.to_bytes()


def test_midi_in_midi_out(server: Running) -> None:
    headers = MIDI | {"Accept": "audio/midi"}
    answer = server.ask("POST", "/v1/continuations?notes=8&random_seed=3&register=40,90", SEED, headers)
    assert answer.status == 200 and answer.headers["content-type"] == "audio/midi"
    facts = provenance_of(answer.body)
    assert facts is not None and facts.new_notes == 8 and facts.steering.register == (40, 90)
    assert server.ask("GET", f"/v1/takes/{answer.headers['x-take']}.mid").body == answer.body
    server.ask("POST", "/v1/continuations?nots=8", SEED, headers).problem(422, "nots")
    server.ask("POST", "/v1/continuations?notes=eight", SEED, headers).problem(422, "notes")
    server.ask("POST", "/v1/continuations", SEED, MIDI | {"Accept": "text/html"}).problem(406, "audio/midi")


def test_server_sent_events(server: Running) -> None:
    asked = {"midi_base64": base64_of(SEED), **NOTES}
    answer = server.ask("POST", "/v1/continuations", asked, {"Accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.body.decode().split("\n\n") if line]
    assert len(lines) == len(server.events(asked)) and all(line.startswith("data: {") for line in lines)


def test_several_takes_of_one_reading(server: Running) -> None:
    seed = server.seed()
    told = server.events({"seed": seed, **NOTES, "takes": 3})
    takes = {event["number"]: event["take"] for event in of_kind(told, "begun")}
    assert sorted(takes) == [0, 1, 2]
    notes = {n: [e["note"] for e in of_kind(told, "note") if e["take"] == take] for n, take in takes.items()}
    assert notes[0] == notes_of(server.events({"seed": seed, **NOTES}))
    assert notes[0] != notes[1] != notes[2] and all(len(rows) == 8 for rows in notes.values())


def test_a_branch_goes_on_from_any_note(server: Running, weights: Path) -> None:
    whole = server.events({"seed": server.seed(), **NOTES})
    parent = whole[-1]["take"]
    branch = server.events({"parent": {"take": parent, "note": 4}, **NOTES, "random_seed": 9})
    begun = of_kind(branch, "begun")[0]
    assert begun["parent"] == {"take": parent, "note": 4}
    seed = server.ask("GET", f"/v1/seeds/{begun['seed']}").json
    assert len(seed["notes"]) == 12 + 5 and seed["parts"][-1] == "Pulse88"
    assert begun["boundary"] == pytest.approx(notes_of(whole)[4][0], abs=1e-3)
    assert begun["read_notes"] == 17
    assert min(note[0] for note in notes_of(branch)) >= begun["boundary"] - 1e-3
    made_by(server, weights, branch[-1]["take"])
    # A branch of a branch, and a fresh take of the same seed.
    again = server.events({"parent": {"take": branch[-1]["take"]}, **NOTES, "random_seed": 10})
    assert of_kind(again, "begun")[0]["read_notes"] == 25
    made_by(server, weights, again[-1]["take"])
    fresh = server.events({"parent": {"take": parent, "note": -1}, **NOTES})
    assert notes_of(fresh) == notes_of(whole)
    answer = server.ask("POST", "/v1/continuations", {"parent": {"take": parent, "note": 8}})
    answer.problem(422, "8 new notes, the last is 7")


def test_a_branch_is_the_same_without_the_parents_state(server: Running) -> None:
    parent = server.events({"seed": server.seed(), **NOTES})[-1]["take"]
    asked = {"parent": {"take": parent, "note": 5}, **NOTES}
    with_state = server.events(asked)
    server.service.memory.snapshots.forget(parent)
    take = server.service.memory.takes.get(parent)
    server.service.memory.snapshots.forget(f"{take.seed.id} 128")
    assert notes_of(server.events(asked)) == notes_of(with_state)


def test_a_range_of_the_seed(server: Running) -> None:
    told = server.events({"seed": server.seed(), **NOTES, "seed_range": [1.9, 4.2]})
    begun = of_kind(told, "begun")[0]
    assert begun["read_notes"] == 5 and begun["boundary"] == pytest.approx(4.0, abs=1e-3)
    seed = server.ask("GET", f"/v1/seeds/{begun['seed']}").json
    assert [row[0] for row in seed["notes"]] == pytest.approx([0.5 * i for i in range(9)], abs=1e-3)
    answer = server.ask("POST", "/v1/continuations", {"seed": server.seed(), "seed_range": [1.6, 1.9]})
    answer.problem(422, "no note begins in 1.6 to 1.9 s")


def test_takes_come_back_from_their_files(server: Running) -> None:
    told = server.events({"seed": server.seed(), **NOTES})
    for part in ("whole", "new"):
        midi = server.ask("GET", f"/v1/takes/{told[-1]['take']}.mid?part={part}").body
        answer = server.ask("POST", "/v1/takes", midi, MIDI)
        assert answer.status == 201, answer.body
        again = answer.json
        assert (again["state"], again["random_seed"], again["new_part"]) == ("done", 3, 1)
        moved = again["boundary"] - told[1]["boundary"]
        assert [note[2:4] for note in again["notes"]] == [note[2:4] for note in sorted(notes_of(told))]
        onsets = [note[0] + moved for note in sorted(notes_of(told))]
        assert [note[0] for note in again["notes"]] == pytest.approx(onsets, abs=2e-3)
        on = server.events({"parent": {"take": again["take"], "note": 3}, **NOTES})
        assert of_kind(on, "begun")[0]["read_notes"] == 16 and len(notes_of(on)) == 8
    assert server.ask("GET", f"/v1/takes/{again['take']}.mid").status == 200
    server.ask("POST", "/v1/takes", SEED, MIDI).problem(422, "no settings of pulse88", "/v1/seeds")


def test_files(server: Running) -> None:
    take = server.events({"seed": server.seed(), **NOTES})[-1]["take"]
    with wave.open(io.BytesIO(server.ask("GET", f"/v1/takes/{take}.wav").body)) as file:
        whole = file.getnframes()
    with wave.open(io.BytesIO(server.ask("GET", f"/v1/takes/{take}.wav?part=new").body)) as file:
        assert file.getframerate() == 48_000 and 0 < file.getnframes() < whole
    assert server.ask("GET", f"/v1/takes/{take}.png").body.startswith(b"\x89PNG")
    alone = midi_file.read(server.ask("GET", f"/v1/takes/{take}.mid?part=new").body).performance
    assert len(alone) == 8 and set(alone.part.tolist()) == {0}
    server.ask("GET", f"/v1/takes/{take}.mp3").problem(422, "kind")
    server.ask("GET", f"/v1/takes/{take}.mid?part=half").problem(422, "part")
    assert server.ask("DELETE", f"/v1/takes/{take}").status == 204
    server.ask("GET", f"/v1/takes/{take}.mid").problem(404)


def test_settings_reach_the_music(server: Running) -> None:
    settings = {"notes": 30, "register": [60, 71], "in_key": True, "liveliness": 1}
    told = server.events({"seed": server.seed(), "settings": settings, "random_seed": 1})
    begun = of_kind(told, "begun")[0]
    assert (begun["settings"]["temperature"], begun["settings"]["top_p"]) == (1.3, 0.995)
    assert begun["key"].split()[0] in {name.split()[0] for name in NAMES}
    assert all(60 <= note[2] <= 71 for note in notes_of(told))
    told = server.events({"seed": server.seed(), "settings": {"end_within": 3}, "random_seed": 1})
    assert told[-1]["reason"] == "end" and told[-1]["notes"] > 0
    assert all(note[0] <= begun["boundary"] + 3 for note in notes_of(told))
    told = server.events({"seed": server.seed(), "settings": {"seconds": 2.5}, "random_seed": 1})
    assert told[-1]["reason"] == "length" and told[-1]["seconds"] <= 2.5


def test_the_best_of_several_is_one_of_them(server: Running, weights: Path) -> None:
    seed = server.seed()
    told = server.events({"seed": seed, "settings": {"notes": 8, "best_of": 3}, "random_seed": 3})
    choice = told[-1]["choice"]
    assert len(choice["points"]) == 3 and choice["points"][choice["candidate"]] == min(choice["points"])
    assert "points off" in choice["why"]
    takes = server.events({"seed": seed, **NOTES, "takes": 3})
    begun = next(e for e in of_kind(takes, "begun") if e["number"] == choice["candidate"])
    assert notes_of(told) == [e["note"] for e in of_kind(takes, "note") if e["take"] == begun["take"]]
    shares = [event["share"] for event in of_kind(told, "progress")]
    assert shares == sorted(shares) and shares[-1] == 1.0
    made_by(server, weights, told[-1]["take"])


def test_leaving_stops_the_making_and_what_is_made_stays(server: Running) -> None:
    with server.stream({"seed": server.seed(), "settings": {"notes": 4000}, "random_seed": 3}) as stream:
        first = [next(stream) for _ in range(6)]
    take = first[0]["take"]
    server.wait(lambda: server.ask("GET", f"/v1/takes/{take}").json["state"] == "done", "the take to stop")
    told = server.ask("GET", f"/v1/takes/{take}").json
    assert told["reason"] == "stopped" and 0 < len(told["notes"]) < 4000
    assert server.ask("GET", f"/v1/takes/{take}.mid").status == 200
    began = time.monotonic()
    assert server.ask("GET", "/v1/examples").status == 200
    server.events({"seed": server.seed(), **NOTES})
    assert time.monotonic() - began < 60, "the worker went on with what nobody wanted"


def test_deleting_a_take_under_way_ends_its_stream(server: Running) -> None:
    with server.stream({"seed": server.seed(), "settings": {"notes": 4000}, "random_seed": 3}) as stream:
        take = next(stream)["take"]
        next(event for event in stream if event["type"] == "note")
        assert server.ask("DELETE", f"/v1/takes/{take}").status == 204
        assert [event["reason"] for event in stream if event["type"] == "done"] == ["stopped"]


def test_samples_and_the_soundfont(server: Running) -> None:
    told = server.ask("GET", "/v1/samples").json
    assert told["pitches"][0] == 21 and told["layers"] == [48, 100]
    heard = {}
    for layer in told["layers"]:
        answer = server.ask("GET", told["url"].format(layer=layer, pitch=61))
        assert "immutable" in answer.headers["cache-control"]
        with wave.open(io.BytesIO(answer.body)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (told["rate"], 1, 2)
            heard[layer] = max(abs(v) for v in memoryview(file.readframes(12_000)).cast("h"))
    assert heard[100] > 1.5 * heard[48] > 300
    server.ask("GET", told["url"].format(layer=48, pitch=62)).problem(404, "/v1/samples")
    font = server.ask("GET", "/v1/soundfont")
    assert font.body[:4] == b"RIFF"
    again = server.ask("GET", "/v1/soundfont", headers={"If-None-Match": font.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


def test_a_seed_of_one_note_and_one_without_any(server: Running) -> None:
    one = midi_file.to_bytes(a_seed(1))
    assert len(notes_of(server.events({"midi_base64": base64_of(one), **NOTES}))) == 8
    answer = server.ask("POST", "/v1/seeds", {"notes": []})
    answer.problem(422, "play at least one")


def test_originality_is_told_where_there_is_an_index(weights: Path, tmp_path: Path) -> None:
    (known,) = Continuer(weights).continue_(SEED, notes=100, seconds=600, random_seed=3)
    index = tmp_path / "index.npz"
    overlap_index.build([("the very same", known.new.onset, known.new.pitch)], every=4).write(index)
    with running(weights, index=index) as server:
        told = server.events({"midi_base64": base64_of(SEED), "settings": {"notes": 100}, "random_seed": 3})
        found = told[-1]["originality"]
        assert found["piece"] == "the very same" and found["longest"] > 50 and "the very same" in found["sentence"]
        assert server.ask("GET", f"/v1/takes/{told[-1]['take']}").json["originality"] == found
        other = server.events({"midi_base64": base64_of(SEED), "settings": {"notes": 100}, "random_seed": 4})
        assert other[-1]["originality"]["longest"] < 50
