"""A listening test: blind, offline, kept in the browser, and counted right whichever side a system was heard on."""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from made_corpus import piece
from pulse88 import listening, midi_file
from pulse88.cli import main
from pulse88.join import joined
from pulse88.listening import SCALES, common, excerpt, read_answers, results

sys.path.insert(0, str(Path(__file__).parent / "page"))

SYSTEMS = ("Amsel", "Drossel", "Fink")
HEAD = ["test", "listener", "kind", "item", "clips", "scale", "value"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three systems with two common prompts, and one that only the first has."""
    folder = tmp_path_factory.mktemp("systems")
    for number, system in enumerate(SYSTEMS):
        (folder / system).mkdir()
        for prompt in range(2 + (number == 0)):
            seed, new = piece(prompt, 20), piece(10 * number + prompt + 50, 30)
            whole = joined(seed, new, float(seed.onset[-1]), 1).without_overlaps()
            for take in (1, 2) if number == 1 else (1,):
                midi_file.write(whole, folder / system / f"prompt{prompt}-take{take}.mid", part_names=["Seed", "New"])
    return {system: folder / system for system in SYSTEMS}


@pytest.fixture(scope="module")
def made(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("test") / "page"
    asked = ["listen-test", *(f"{name}={folder}" for name, folder in folders.items()), "-o", str(page)]
    told = CliRunner().invoke(main, [*asked, "--seconds", "2", "--prompt-seconds", "1"])
    assert told.exit_code == 0, told.output
    assert "6 clips" in told.output and "page.key.json to yourself" in told.output
    return page


def inside(made: Path) -> dict[str, Any]:
    """What the page asks."""
    text = (made / "index.html").read_text()
    found = re.search(r'<script type="application/json" id="test">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    test: dict[str, Any] = json.loads(found[1])
    return test


def key_of(made: Path) -> Path:
    return made.with_name("page.key.json")


def test_prompts_that_all_have_are_compared_with_their_first_takes(folders: dict[str, Path]) -> None:
    found = common(folders)
    assert list(found) == ["prompt0", "prompt1"]
    assert found["prompt1"]["Drossel"].name == "prompt1-take1.mid"
    with pytest.raises(ValueError, match="two systems or more"):
        common({"Amsel": folders["Amsel"]})
    with pytest.raises(ValueError, match="no MIDI file has the same name"):
        common({"Amsel": folders["Amsel"], "nothing": folders["Amsel"].parent})


def test_nothing_in_the_page_says_whose_a_clip_is(made: Path) -> None:
    text = (made / "index.html").read_text()
    names = " ".join(path.name for path in made.rglob("*"))
    for secret in (*SYSTEMS, "prompt0", "prompt1"):
        assert secret not in text and secret not in names
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//|url\(|@import|fetch\(|XMLHttp", text)  # no network
    key = json.loads(key_of(made).read_text())
    assert sorted(clip["system"] for clip in key["clips"].values()) == sorted(SYSTEMS * 2)
    assert not [path for path in made.rglob("*key*")]


def test_every_pair_is_asked_on_every_prompt_and_all_clips_are_there(made: Path) -> None:
    test, clips = inside(made), json.loads(key_of(made).read_text())["clips"]
    pairs = [item for item in test["items"] if item["kind"] == "pair"]
    asked = {(clips[a]["prompt"], frozenset((clips[a]["system"], clips[b]["system"]))) for a, b in map(_clips, pairs)}
    both = itertools.combinations(SYSTEMS, 2)
    assert asked == {(p, frozenset(pair)) for pair in both for p in ("prompt0", "prompt1")}
    assert len(pairs) == 6
    rated = [item["clips"][0] for item in test["items"] if item["kind"] == "rating"]
    assert sorted(rated) == sorted(clips)
    assert all((made / path).read_bytes().startswith(b"RIFF") for path in test["audio"].values())
    assert [scale["name"] for scale in test["scales"]] == list(SCALES)
    assert {clips[_clips(item)[0]]["system"] for item in pairs} == set(SYSTEMS)  # not always the same one first


def _clips(item: dict[str, Any]) -> tuple[str, str]:
    first, second = item["clips"]
    return first, second


def test_the_same_test_comes_again_and_another_seed_makes_another(folders: dict[str, Path], tmp_path: Path) -> None:
    pages = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        listening.make(folders, tmp_path / name, seconds=1, prompt_seconds=0, random_seed=seed, pairs=False)
        pages.append((tmp_path / name / "index.html").read_bytes())
    assert pages[0] == pages[1] != pages[2]
    assert b'"pair"' not in json.dumps(inside(tmp_path / "a")["items"]).encode()


def test_ogg_is_ogg_and_small(folders: dict[str, Path]) -> None:
    music = excerpt(midi_file.read(folders["Amsel"] / "prompt0-take1.mid").performance)
    ogg = listening.sound(music, "ogg", None)
    assert ogg.startswith(b"OggS")
    assert len(ogg) < len(listening.sound(music, "wav", None)) / 4


def test_an_excerpt_is_around_the_join() -> None:
    seed, new = piece(1, 60), piece(2, 60)
    whole = joined(seed, new, float(seed.onset[-1]), 1).without_overlaps()
    join = float(whole.onset[whole.part == 1].min())
    heard = excerpt(whole, 2.0, 3.0)
    inside_it = (whole.onset >= join - 2) & (whole.onset < join + 3)
    assert len(heard) == int(inside_it.sum())
    assert heard.onset.max() < 5.0 and heard.end <= 5.01 + 1e-9
    assert np.allclose(heard.onset, np.sort(whole.onset[inside_it] - (join - 2)))
    alone = excerpt(new, 2.0, 3.0)
    assert alone.onset[0] == 0.0


def write_answers(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEAD, *rows])
    return path


def test_results_are_counted_whichever_side_a_system_was_on(made: Path, tmp_path: Path) -> None:
    """Amsel always wins and is rated 5, Drossel against Fink is a tie, and they are rated 2."""
    test, key = inside(made), key_of(made)
    clips = json.loads(key.read_text())["clips"]
    files = []
    for listener in ("x", "y"):
        rows = []
        for item in test["items"]:
            of = [clips[clip]["system"] for clip in item["clips"]]
            row = [test["id"], listener, item["kind"], item["id"], " ".join(item["clips"])]
            if item["kind"] == "pair":
                side = ("first", "second")[of.index("Amsel")] if "Amsel" in of else "none"
                rows.append([*row, "preference", side])
            else:
                rows += [[*row, scale, "5" if of == ["Amsel"] else "2"] for scale in SCALES]
        files.append(write_answers(tmp_path / f"{listener}.csv", rows))
    told = CliRunner().invoke(main, ["listen-results", str(key), *map(str, files), "-o", str(tmp_path / "t.md")])
    assert told.exit_code == 0, told.output
    assert told.output == (tmp_path / "t.md").read_text()
    assert "2 listeners, 2 prompts" in told.output
    assert "| Amsel | 16 | 5.00 (5.00–5.00) |" in told.output and "| Fink | 16 | 2.00 (2.00–2.00) |" in told.output
    assert "| Amsel against Drossel | 4 | 0 | 0 | 1.00 (1.00–1.00) |" in told.output
    assert "| Drossel against Fink | 0 | 4 | 0 | 0.50 (0.50–0.50) |" in told.output
    twice = read_answers(key, [*files, files[0]])
    assert results(key, twice) == told.output  # the same answers again count once


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"test": "0" * 16}, "of another test"),
        ({"clips": "ffff"}, "are not in the key"),
        ({"value": "6"}, "coherence can't be '6'"),
        ({"scale": "beauty"}, "beauty can't be"),
        ({"value": None}, "not a row of answers"),
    ],
)
def test_what_is_no_answer_is_refused(made: Path, tmp_path: Path, change: dict[str, str | None], problem: str) -> None:
    test = inside(made)
    item = next(item for item in test["items"] if item["kind"] == "rating")
    row = dict(zip(HEAD, [test["id"], "x", "rating", item["id"], item["clips"][0], "coherence", "3"], strict=True))
    changed = [value for value in (row | change).values() if value is not None]
    path = write_answers(tmp_path / "a.csv", [changed])
    with pytest.raises(ValueError, match=f"a.csv, line 2: .*{re.escape(problem)}"):
        read_answers(key_of(made), [path])
    with pytest.raises(ValueError, match="no answers"):
        read_answers(key_of(made), [write_answers(tmp_path / "none.csv", [])])


def test_names_without_folders_are_refused(tmp_path: Path) -> None:
    told = CliRunner().invoke(main, ["listen-test", "Amsel", "-o", str(tmp_path / "p")])
    assert told.exit_code == 2 and "is not NAME=FOLDER" in told.output


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from browser import chromium

    with chromium() as found:
        yield found


def test_a_listener_s_way_through_the_page(made: Path, browser: Any, tmp_path: Path) -> None:
    """From the file, without a server: answers, a reload in between, and a CSV that counts."""
    visit = browser.new_page()
    faults: list[str] = []
    visit.on("pageerror", lambda error: faults.append(str(error)))
    visit.on(
        "request", lambda request: None if request.url.startswith(("file:", "blob:")) else faults.append(request.url)
    )
    visit.goto((made / "index.html").as_uri())
    visit.click("#next")
    for turn in range(12):
        if turn == 5:
            visit.reload()
        assert visit.inner_text(".hint").startswith(f"{turn + 1} of 12.")
        assert visit.is_disabled("#next")
        kind = "pair" if visit.locator("audio").count() == 2 else "rating"
        assert (kind == "pair") == (turn < 6)
        for group in range(visit.locator("fieldset").count()):
            visit.locator("fieldset").nth(group).locator("label").first.click()
        visit.click("#next")
    with visit.expect_download() as download:
        visit.click("#download")
    download.value.save_as(tmp_path / "answers.csv")
    assert faults == []
    rows = read_answers(key_of(made), [tmp_path / "answers.csv"])
    assert len(rows) == 6 + 6 * len(SCALES)
    assert {row["value"] for row in rows} == {"first", "1"}
    assert "1 listeners, 2 prompts" in results(key_of(made), rows)
    visit.close()
