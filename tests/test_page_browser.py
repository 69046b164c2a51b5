"""The page in a real browser on a real server: a session as a musician has it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pulse88 import midi_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "page"))

from browser import CONTROLS, DRAW, FOCUS, LISTEN, Visit, chromium, server  # noqa: E402

CAROL = (ROOT / "examples" / "carol" / "seed.mid").read_bytes()
MOTIF = (ROOT / "examples" / "motif" / "seed.mid").read_bytes()
LENGTHS = {5: 0, 20: 3}  # seconds → step of the length control


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(browser: Any) -> Iterator[str]:
    with server() as found:
        yield found


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def begin(**context: Any) -> Visit:
        visits.append(Visit(browser, address, **context))
        return visits[-1]

    yield begin
    for each in visits:
        each.check()
        each.close()


def rows(notes: list[dict[str, float]]) -> np.ndarray:
    """Notes of the page, [N, 3]: onset in ms, pitch, velocity, in the order that MIDI files are read in."""
    found = np.array([[round(1000 * n["onset"]), n["pitch"], n["velocity"]] for n in notes], np.float64)
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def same_notes(data: bytes, notes: list[dict[str, float]], origin: float = 0.0) -> None:
    heard = midi_file.read(data).performance
    there = np.stack((np.round(1000 * (heard.onset + origin)), heard.pitch, heard.velocity), axis=-1)
    ours = rows(notes)
    assert there.shape == ours.shape
    assert sorted(there[:, 1]) == sorted(ours[:, 1])
    assert np.abs(np.sort(there[:, 0]) - np.sort(ours[:, 0])).max() <= 3  # ms; MIDI files count in ticks


def test_a_session_from_a_dropped_file_to_downloads(visit: Callable[..., Visit]) -> None:
    musician = visit(accept_downloads=True)
    page = musician.page
    assert page.locator("#welcome").is_visible()
    musician.begin(CAROL, "My carol.mid")
    assert page.locator("#piece-name").input_value() == "My carol"
    assert "67 notes" in page.locator("#seed-facts").inner_text()

    # Continue: 20 s of music come note by note, and are played while they come.
    musician.set_range("length", LENGTHS[20])
    page.locator("#details > summary").click()
    page.locator("#random-seed").fill("1")
    page.locator("#continue").click()
    musician.until("pulse88.measures.clickToSound.length")
    took = musician("[pulse88.measures.clickToNote[0], pulse88.measures.clickToSound[0]]")
    assert took[0] < took[1] < 10_000  # whatever the machine does beside; benchmarks/page.py measures
    counts = set()
    musician.until("pulse88.roll.onsets.length > 69")
    musician(LISTEN)
    while musician("pulse88.piece.isMaking"):
        counts.add(musician("pulse88.roll.onsets.length"))
        page.wait_for_timeout(60)
    assert len(counts) > 3, "the notes are drawn as they come"
    assert musician("pulse88.player.playing")
    musician.until("window.loudest > 0.005")
    musician("clearInterval(window.hearing)")
    musician.made()
    first = musician("pulse88.piece.session.order[0]")
    take = musician("(id) => ({ ...pulse88.piece.take(id), notes: pulse88.piece.notes[id] })", first)
    seconds = take["notes"][-1]["onset"] - take["boundary"]
    assert 10 < seconds <= 20 and take["reason"] == "length" and take["randomSeed"] == 1

    # Space pauses, the arrows seek.
    page.keyboard.press("Space")
    assert not musician("pulse88.player.playing")
    musician("pulse88.player.seek(7)")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowLeft")
    assert abs(musician("pulse88.player.position") - 3) < 0.01
    page.keyboard.press("Space")
    musician.until("pulse88.player.playing && pulse88.player.position > 3.2")
    page.keyboard.press("Space")

    # Branch: a click on the 11th new note, and from there on.
    musician.set_range("length", LENGTHS[5])
    page.locator("#random-seed").fill("")
    page.mouse.click(*musician.note_place(67 + 10))
    page.locator("#note-continue").click()
    musician.until("pulse88.piece.session.order.length === 2")
    musician.made()
    second = musician("pulse88.piece.session.selected")
    branch = musician("(id) => pulse88.piece.take(id)", second)
    kept = branch["from"] - 67
    assert branch["parent"] == first and kept >= 11  # a chord's notes stay together
    heard = musician("pulse88.piece.heard().notes")
    assert (
        rows(heard[: 67 + kept]).tolist()
        == rows(musician("pulse88.piece.session.seed.notes") + take["notes"][:kept]).tolist()
    )
    assert all(n["onset"] >= branch["boundary"] for n in heard[67 + kept :]) and len(heard) > 67 + kept

    # Undo is instant, and redo.
    page.keyboard.press("Control+z")
    assert musician("pulse88.piece.session.order") == [first]
    assert musician("pulse88.roll.onsets.length") == 67 + len(take["notes"])
    page.keyboard.press("Control+Shift+z")
    assert musician("pulse88.piece.session.order") == [first, second]

    # Keep and name it; after a reload all is there.
    page.locator(".lane").nth(2).get_by_label("Keep Take 2").click()
    page.get_by_label("Download, rename or delete Take 2").click()
    page.locator("#menu-name").fill("Evening")
    page.locator("#menu-name").press("Enter")
    before = musician("[pulse88.piece.session.order, pulse88.piece.heard().notes]")
    page.wait_for_timeout(500)
    page.reload()
    musician.until("document.body.dataset.mode === 'piece'")
    assert musician("[pulse88.piece.session.order, pulse88.piece.heard().notes]") == before
    kept_take = musician("(id) => pulse88.piece.take(id)", second)
    assert (kept_take["name"], kept_take["kept"]) == ("Evening", True)
    assert page.locator(".lane.chosen strong").inner_text() == "Evening"

    # Downloads, whole and only new, hold what is seen.
    page.get_by_label("Download, rename or delete Evening").click()
    files = {}
    for part in ("whole", "new"):
        page.locator(f"input[name=part][value={part}]").check(force=True)
        for kind in ("mid", "wav", "png") if part == "whole" else ("mid",):
            with page.expect_download() as download:
                page.locator(f"[data-kind={kind}]").click()
            assert download.value.suggested_filename.startswith("My carol - Evening")
            files[kind, part] = Path(download.value.path()).read_bytes()
    notes = musician("pulse88.piece.heard().notes")
    same_notes(files["mid", "whole"], notes)
    same_notes(files["mid", "new"], notes[67 + kept :], branch["boundary"])
    assert files["wav", "whole"][:4] == b"RIFF" and files["png", "whole"][:4] == b"\x89PNG"


def test_several_takes_at_once_and_stopping(visit: Callable[..., Visit]) -> None:
    musician = visit()
    musician.begin(MOTIF)
    musician.page.locator("input[name=takes][value='2']").check(force=True)
    musician.set_range("length", 9)  # three minutes
    musician.page.locator("#continue").click()
    musician.until("pulse88.piece.session.order.every((id) => pulse88.piece.notes[id].length > 3)")
    assert musician.page.locator("#continue-word").inner_text() == "Stop"
    musician.page.locator("#continue").click()
    musician.made()
    takes = musician("Object.values(pulse88.piece.session.takes)")
    assert [take["reason"] for take in takes] == ["stopped"] * 2
    assert takes[0]["randomSeed"] == takes[1]["randomSeed"] and takes[0]["parent"] is takes[1]["parent"] is None
    one, other = (musician(f"pulse88.piece.notes['{take['id']}']") for take in takes)
    assert one != other
    # Again: another take from the same place.
    musician.page.locator("input[name=takes][value='1']").check(force=True)
    musician.set_range("length", LENGTHS[5])
    musician.page.locator("#again").click()
    musician.until("pulse88.piece.session.order.length === 3")
    musician.made()
    third = musician("pulse88.piece.take(pulse88.piece.session.selected)")
    assert (third["parent"], third["from"], third["boundary"]) == (None, 4, takes[0]["boundary"])
    musician.page.keyboard.press("[")
    musician.page.keyboard.press("[")
    assert musician("pulse88.piece.session.selected") == takes[0]["id"]
    # What a server has forgotten comes back from the file that the page keeps.
    servers = musician("Object.values(pulse88.piece.servers.takes)")
    for each in servers:
        assert musician("(id) => fetch(`/v1/takes/${id}`, { method: 'DELETE' }).then((r) => r.status)", each) == 204
    musician.expected.append("404")
    musician.page.keyboard.press("c")
    musician.until("pulse88.piece.session.order.length === 4")
    musician.made()
    new = musician("pulse88.piece.take(pulse88.piece.session.selected)")
    assert new["parent"] == takes[0]["id"] and new["from"] == 4 + len(one)
    assert musician("pulse88.piece.notes[pulse88.piece.session.selected].length") > 0
    # And without the file from the notes.
    last = musician("pulse88.piece.session.selected")
    heard = musician("pulse88.piece.heard().notes.length")
    forgotten = musician(
        "(id) => { delete pulse88.piece.files.takes[id]; return pulse88.piece.servers.takes[id]; }", last
    )
    assert musician("(id) => fetch(`/v1/takes/${id}`, { method: 'DELETE' }).then((r) => r.status)", forgotten) == 204
    musician.page.keyboard.press("c")
    musician.until("pulse88.piece.session.order.length === 5 && !pulse88.piece.isMaking")
    assert musician("pulse88.piece.heard().notes.length") > heard


def test_the_range_on_the_seed_says_what_is_read(visit: Callable[..., Visit]) -> None:
    musician = visit()
    musician.begin(CAROL)
    musician.page.get_by_label("What the model reads ends at").focus()
    for _ in range(3):
        musician.page.keyboard.press("PageDown")
    stop = musician("pulse88.piece.session.read.to")
    assert 20 < stop < 35
    read = musician("pulse88.piece.session.seed.notes").__len__(), musician("pulse88.piece.readCount()")
    assert read[1] < read[0] and f"reads {read[1]}," in musician.page.locator("#seed-facts").inner_text()
    musician.set_range("length", LENGTHS[5])
    musician.page.locator("#continue").click()
    musician.until("pulse88.piece.session.order.length === 1")
    musician.made()
    heard = musician("pulse88.piece.heard()")
    assert heard["owners"].count(None) == read[1]
    server_take = musician("fetch(`/v1/takes/${Object.values(pulse88.piece.servers.takes)[0]}`).then((r) => r.json())")
    assert abs(server_take["boundary"] - heard["notes"][read[1] - 1]["onset"]) < 1e-6


def test_without_sounds_the_servers_recording_is_played(visit: Callable[..., Visit]) -> None:
    musician = visit()
    musician.expected.append("Failed to load resource")
    musician.context.route("**/v1/samples*", lambda route: route.fulfill(status=503, body="{}"))
    musician.page.reload()
    musician.begin(MOTIF)
    musician.set_range("length", LENGTHS[5])
    musician.page.locator("#continue").click()
    musician.until("pulse88.piece.session.order.length === 1")
    musician.made()
    assert not musician("pulse88.player.playing")
    musician.page.keyboard.press("Space")
    musician.until("pulse88.player.recording && pulse88.player.position > 0.3")
    musician.page.keyboard.press("Space")
    assert not musician("pulse88.player.playing") and 0.3 < musician("pulse88.player.position") < 60


def answered(musician: Visit, phrase: tuple[int, ...], least: int) -> int:
    """Plays a phrase, again if its answer is shorter than so many notes; how many notes were played."""
    for played in range(1, 6):
        before = musician("pulse88.live.duet.notes.length")
        for pitch in phrase:
            musician(f"playMidi(0x90, {pitch}, 80)")
            musician.page.wait_for_timeout(120)
            musician(f"playMidi(0x80, {pitch}, 0)")
        try:
            musician.until(f"pulse88.live.duet.notes.length >= {before + least}", seconds=8)
        except AssertionError:
            continue
        heard = f"pulse88.live.duet.notes[{before + least - 2 if least > 1 else before}].onset + 0.1"
        musician.until(f"{heard} < performance.now() / 1000")
        return played * len(phrase)
    raise AssertionError(f"{phrase} was never answered by {least} notes")


def test_a_duet_on_a_midi_keyboard(visit: Callable[..., Visit]) -> None:
    musician = visit()
    page = musician.page
    page.locator("#duet").click()
    page.locator("#midi-connect").click()
    assert page.locator("#midi-connect").inner_text() == "Simulated keyboard"
    musician.until("pulse88.live.duet.turn === 'you'")
    played = answered(musician, (60, 64, 67, 72, 67, 64), least=3)
    assert musician("pulse88.live.recording.notes.length") == played
    assert page.locator("#duet-word").inner_text() == "Pulse88 answers"
    musician.until("pulse88.live.voices.length > 2 && pulse88.live.duet.latencies.length")
    # Play again, and it yields: what was to come is silent.
    musician("playMidi(0x90, 48, 90)")
    assert musician("pulse88.live.duet.turn") == "you"
    struck = musician("performance.now() / 1000")
    assert not musician("[...pulse88.sound.voices].some((voice) => voice.start > pulse88.sound.now)")
    musician.until("pulse88.live.voices.length === 0")
    page.wait_for_timeout(250)
    assert musician("pulse88.live.duet.notes.at(-1)?.onset ?? 0") < struck + 0.05
    musician("playMidi(0x80, 48, 0)")
    page.locator("#latency").click()
    said = page.locator("#latency-text").inner_text()
    assert re.search(r"first note of \d answers?: sent by the server after \d+ ms", said), said
    page.keyboard.press("Escape")
    # Other settings lose nothing of it, and what comes then belongs to it too.
    heard = musician("pulse88.live.played().notes.length")
    page.locator("#pause").select_option("0.4")
    musician.until("pulse88.live.earlier.length && pulse88.live.duet.turn === 'you'")
    assert musician("pulse88.live.played().notes.length") >= heard  # it may have answered the 48 by then
    later = answered(musician, (50, 57), least=1)
    # Kept, it is a piece with both hands' colours.
    page.locator("#dock-use").click()
    musician.until("document.body.dataset.mode === 'piece'")
    colours = musician("pulse88.piece.session.seed.notes.map((note) => note.model)")
    assert colours.count(False) == played + 1 + later
    assert colours.count(True) > heard - played - 1


def test_a_phrase_played_in_on_the_computers_keys(visit: Callable[..., Visit]) -> None:
    musician = visit()
    page = musician.page
    page.locator("#welcome-play").click()
    for key in "adgk":
        page.keyboard.down(key)
        page.wait_for_timeout(60)
        page.keyboard.up(key)
    box = page.locator("#piano button[data-pitch='62']").bounding_box()
    page.mouse.click(box["x"] + 5, box["y"] + box["height"] - 8)
    page.locator("#dock-use").click()
    musician.until("document.body.dataset.mode === 'piece'")
    assert musician("pulse88.piece.session.seed.notes.map((note) => note.pitch)") == [60, 64, 67, 72, 62]


def test_what_is_no_midi_file_gets_a_sentence(visit: Callable[..., Visit]) -> None:
    musician = visit()
    musician.expected.append("Failed to load resource")  # Chromium's own word on a status of 4xx
    for data, name in ((b"no music at all", "letter.mid"), (CAROL[:40], "half.mid"), (bytes(2_200_000), "huge.mid")):
        musician("document.getElementById('alert').hidden = true")
        musician.drop(data, name)
        musician.until("!document.getElementById('alert').hidden")
        said = musician.page.locator("#alert-text").inner_text()
        assert said[0].isupper() and said[-1] in ".?!" and len(said) > 20, said
        assert musician("document.body.dataset.mode") == "empty"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_phone_needs_no_scrolling_sideways(visit: Callable[..., Visit], scheme: str) -> None:
    musician = visit(width=390, height=844, color_scheme=scheme, has_touch=True, is_mobile=True)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert musician(fits)
    musician.page.locator("#examples button").first.tap()
    musician.until("document.body.dataset.mode === 'piece'")
    assert musician(fits)
    assert not offscreen(musician)
    musician.page.locator("#duet").tap()
    musician.until("document.body.dataset.mode === 'duet'")
    assert musician(fits) and not offscreen(musician)
    small = [name for name, _, _, height, tag in musician(CONTROLS) if tag != "INPUT" and height < 30]
    assert not small, "too small for a finger"


def offscreen(musician: Visit) -> list[str]:
    """Controls that reach out of a window of 390 pixels sideways; handles may by half their width."""
    return [name for name, left, right, _, _ in musician(CONTROLS) if right > 399 or left < -9]


def test_everything_has_a_name_for_screen_readers(visit: Callable[..., Visit]) -> None:
    """By the browser's own tree of accessibility, in every state of the page."""
    musician = visit()
    assert not musician.nameless()
    musician.begin(MOTIF)
    musician.set_range("length", LENGTHS[5])
    musician("document.querySelectorAll('.panel details').forEach((details) => (details.open = true))")
    musician.page.locator("#continue").click()
    musician.until("pulse88.piece.session.order.length === 1")
    musician.made()
    musician.page.get_by_label("Download, rename or delete Take 1").click()
    assert not musician.nameless()
    musician.page.keyboard.press("Escape")
    musician.page.locator("#help").click()
    assert not musician.nameless()
    musician.page.keyboard.press("Escape")
    musician.page.locator("#shelf").click()
    assert not musician.nameless()
    musician.page.keyboard.press("Escape")
    musician.page.locator("#duet").click()
    assert not musician.nameless()
    assert musician("document.getElementById('status').getAttribute('aria-live')") == "polite"


def test_the_keyboard_reaches_everything_in_order(visit: Callable[..., Visit]) -> None:
    musician = visit()
    page = musician.page
    musician.begin(MOTIF)
    stops: list[str] = []
    musician("document.activeElement.blur()")
    for _ in range(60):
        page.keyboard.press("Tab")
        focus = musician(FOCUS)
        if focus is None or focus[0] in stops[:1]:
            break
        assert focus[1], f"{focus[0]} doesn't show its focus"
        stops.append(focus[0])
    wanted = [
        "skip",
        "piece-name",
        "open",
        "play-in",
        "duet",
        "shelf",
        "theme",
        "help",
        "roll",
        "rewind",
        "play",
        "volume",
    ]
    wanted += ["zoom-out", "zoom-fit", "zoom-in", "length", "liveliness", "continue", "lane-pick"]
    assert [stop for stop in stops if stop in wanted] == wanted
    # By keyboard alone: the third note marked, and continued from.
    musician.set_range("length", LENGTHS[5])
    page.locator("#roll").focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert "Enter continues from here" in page.locator("#roll").get_attribute("aria-valuetext")
    page.keyboard.press("Enter")
    musician.until("pulse88.piece.session.order.length === 1")
    musician.made()
    assert musician("pulse88.piece.take(pulse88.piece.session.selected).from") == 3


def test_calm_and_quick(visit: Callable[..., Visit]) -> None:
    """5,000 notes are drawn within a frame; with little motion wanted, pages turn instead of gliding; themes stay."""
    musician = visit(reduced_motion="reduce", color_scheme="dark")
    musician.begin(CAROL)
    took = musician(DRAW)
    assert took[0] < 16.7 and took[1] < took[0]
    musician("""() => { const { roll } = pulse88; roll.follow = true; roll.moveTo(101, true); }""")
    still = musician("pulse88.roll.view.start")
    musician("pulse88.roll.moveTo(102, true)")
    assert musician("pulse88.roll.view.start") == still
    musician.page.locator("#theme").click()
    assert musician("getComputedStyle(document.documentElement).colorScheme") == "light"
    musician.page.reload()
    assert musician("getComputedStyle(document.documentElement).colorScheme") == "light"


def test_the_servers_policy_is_strict(visit: Callable[..., Visit]) -> None:
    musician = visit()
    policy = musician("fetch('/').then((r) => r.headers.get('Content-Security-Policy'))")
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
