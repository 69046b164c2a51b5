from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pulse88
from command_line import bad, good, run
from pulse88 import midi_file
from pulse88.config import TINY, SamplingConfig, help_of
from pulse88.continuation import provenance_of
from pulse88.engine import weights as weights_file
from pulse88.notes import Note, Performance, Tempo
from pulse88.provenance import ContinueConfig, Provenance
from pulse88.vocabulary import FINE

CONFIG = replace(TINY, max_positions=640)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights_file.save(path, weights_file.random_tensors(CONFIG, 1), weights_file.metadata_of(CONFIG, FINE))
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with seed.mid, in which the commands run."""
    rng = np.random.default_rng(0)
    onset = np.cumsum(rng.uniform(0.05, 0.4, 30))
    midi_file.write(
        Performance(
            onset=onset,
            duration=np.full(30, 0.3),
            pitch=rng.permutation(np.arange(40, 80))[:30],
            velocity=rng.integers(30, 100, 30),
            part=np.zeros(30),
            pedal_time=np.array([1.0, 2.0, onset[-1]]),
            pedal_value=np.array([127, 0, 127]),
            pedal_part=np.zeros(3),
            tempos=(Tempo(0.0, 97.0),),
        ),
        tmp_path / "seed.mid",
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def new_notes(path: Path) -> Performance:
    made_by = Provenance.found_in(midi_file.read_texts(path))
    assert made_by is not None
    whole = midi_file.read(path).performance
    return whole.take(whole.part == made_by.new_part)


def test_continue_writes_seed_and_continuation_to_this_folder(weights: Path, folder: Path) -> None:
    said = good("continue", "seed.mid", "--weights", weights, "--notes", "12", "--random-seed", "1")
    made = folder / "seed-continued.mid"
    assert len(new_notes(made)) == 12
    assert len(midi_file.read(made).performance) == 42
    assert said.startswith("Wrote seed-continued.mid: 12 new notes, ")
    assert "notes/s" in said
    assert "random seed" not in said
    assert sorted(p.name for p in folder.iterdir()) == ["seed-continued.mid", "seed.mid"]


def test_all_outputs_and_takes(weights: Path, folder: Path) -> None:
    (folder / "deep").mkdir()
    said = good(
        *("continue", "seed.mid", "-o", "deep/x.mid", "--wav", "x.wav", "--png", "deep/y.png", "--weights", weights),
        *("--seconds", "20", "--takes", "2", "--random-seed", "7", "--temperature", "0.9", "--top-p", "0.9"),
        *("--min-p", "0.01", "--top-k", "50", "--seed-notes", "20"),
    )
    assert said.count("Wrote") == 2
    for take in (1, 2):
        assert (folder / f"x-take{take}.wav").read_bytes()[:4] == b"RIFF"
        assert (folder / f"deep/y-take{take}.png").read_bytes()[1:4] == b"PNG"
        made_by = Provenance.found_in(midi_file.read_texts(folder / f"deep/x-take{take}.mid"))
        assert made_by is not None
        assert made_by.sampling == SamplingConfig(temperature=0.9, top_p=0.9, top_k=50, min_p=0.01)
        assert (made_by.take, made_by.random_seed, made_by.until_end) == (take - 1, 7, False)
        assert len(made_by.seed_ids) == 20 * 4
    alone = good(
        *("continue", "seed.mid", "-o", "one.mid", "--weights", weights, "--seconds", "20", "--random-seed", "7"),
        *("--temperature", "0.9", "--top-p", "0.9", "--min-p", "0.01", "--top-k", "50", "--seed-notes", "20"),
    )
    assert "one.mid" in alone
    assert (folder / "one.mid").read_bytes() == (folder / "deep/x-take1.mid").read_bytes()


def test_threads_change_no_byte(weights: Path, folder: Path) -> None:
    asked = ("continue", "seed.mid", "--weights", weights, "--notes", "6", "--random-seed", "3", "--takes", "4")
    good(*asked, "-o", "one.mid")
    good(*asked, "-o", "two.mid", "--threads", "2")
    for take in range(1, 5):
        assert (folder / f"one-take{take}.mid").read_bytes() == (folder / f"two-take{take}.mid").read_bytes()


def test_only_new_leaves_the_seed_out(weights: Path, folder: Path) -> None:
    good("continue", "seed.mid", "--only-new", "--notes", "9", "--weights", weights, "--png", "a.png", "--wav", "a.wav")
    assert len(midi_file.read(folder / "seed-continued.mid").performance) == 9


def test_a_fresh_random_seed_is_told_and_gives_the_same_bytes(weights: Path, folder: Path) -> None:
    said = good("continue", "seed.mid", "--weights", weights, "--notes", "8", "-o", "a.mid")
    random_seed = said.split("The random seed was ")[1].split(":")[0]
    good("continue", "seed.mid", "--weights", weights, "--notes", "8", "-o", "b.mid", "--random-seed", random_seed)
    assert (folder / "a.mid").read_bytes() == (folder / "b.mid").read_bytes()


@pytest.mark.parametrize("only_new", [[], ["--only-new"]])
def test_replay_makes_the_same_bytes(weights: Path, folder: Path, only_new: list[str]) -> None:
    good("continue", "seed.mid", "--weights", weights, "--notes", "20", "--takes", "2", "-o", "a.mid", *only_new)
    for arguments, made in ((["-o", "again.mid"], "again.mid"), ([], "a-take2-replayed.mid")):
        said = good("replay", "a-take2.mid", "--weights", weights, *arguments)
        assert said == f"Wrote {made}: the same bytes as a-take2.mid.\n"
        assert (folder / made).read_bytes() == (folder / "a-take2.mid").read_bytes()


def test_replay_says_when_the_bytes_differ(weights: Path, folder: Path) -> None:
    good("continue", "seed.mid", "--weights", weights, "--notes", "20", "-o", "a.mid")
    edited, report = midi_file.read("a.mid")
    softer = replace(edited, velocity=np.maximum(edited.velocity // 2, 1))
    midi_file.write(softer, "b.mid", texts=midi_file.read_texts("a.mid"), part_names=report.parts)
    assert "b-replayed.mid is not the same as b.mid" in bad("replay", "b.mid", "--weights", weights)
    assert len(new_notes(folder / "b-replayed.mid")) == 20


def test_replay_refuses_other_weights(weights: Path, folder: Path) -> None:
    good("continue", "seed.mid", "--weights", weights, "--notes", "3", "-o", "a.mid")
    other = folder / "other.safetensors"
    weights_file.save(other, weights_file.random_tensors(CONFIG, 2), weights_file.metadata_of(CONFIG, FINE))
    assert "a.mid was made with other weights" in bad("replay", "a.mid", "--weights", other)
    assert "carries no pulse88 settings" in bad("replay", "seed.mid", "--weights", weights)


def test_replay_names_another_engine_where_the_files_own_is_missing(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good("continue", "seed.mid", "--weights", weights, "--notes", "3", "-o", "a.mid", "--engine", "numpy")
    made_by = Provenance.found_in(midi_file.read_texts("a.mid"))
    assert made_by is not None
    heard, report = midi_file.read("a.mid")
    midi_file.write(heard, "b.mid", texts=[replace(made_by, engine="native").to_text()], part_names=report.parts)

    def not_built() -> None:
        raise ImportError("the native engine was not built")

    monkeypatch.setattr("pulse88.engine.native.library", not_built)
    assert "not built: --engine numpy" in bad("replay", "b.mid", "--weights", weights)
    assert "the same bytes" in good("replay", "b.mid", "--weights", weights, "--engine", "numpy")


def test_render_and_show(weights: Path, folder: Path) -> None:
    good("continue", "seed.mid", "--weights", weights, "--notes", "20", "--random-seed", "0", "--png", "made.png")
    assert good("render", "seed.mid", "seed.wav").startswith("Wrote seed.wav: ")
    assert (folder / "seed.wav").read_bytes()[:4] == b"RIFF"
    assert good("show", "seed.mid", "seed.png") == "Wrote seed.png: 30 notes.\n"
    good("show", "seed-continued.mid", "shown.png")
    from matplotlib.image import imread

    plain, shown = imread("seed.png"), imread("shown.png")
    made = imread("made.png")
    assert plain.shape[2] == 4
    # Of the same music the same picture but for its title, and in more colours than the seed alone.
    assert np.mean(np.any(made != shown, axis=2)) < 0.02
    assert hues(shown) > hues(plain)


def hues(image: np.ndarray) -> int:
    """How many strong hues, in steps of 60 degrees, are in a picture."""
    from matplotlib.colors import rgb_to_hsv

    hue, saturation, value = rgb_to_hsv(image[..., :3].reshape(-1, 3)).T
    strong = hue[(saturation > 0.3) & (value > 0.3)]
    return int((np.bincount((strong * 6).astype(int) % 6, minlength=6) > 50).sum())


def test_show_draws_what_carries_damaged_settings(folder: Path) -> None:
    performance = midi_file.read("seed.mid").performance
    midi_file.write(performance, "odd.mid", texts=["pulse88 {}"])
    result = run("show", "odd.mid", "odd.png")
    assert result.exit_code == 0
    assert "odd.mid: damaged pulse88 settings" in result.stderr


def test_tokens_prints_a_table_of_events() -> None:
    melody = [Note(0.0, 1.0, 60, 80), Note(0.5, 0.25, 64, 127), Note(0.5, 0.25, 21, 1)]
    midi_file.write(Performance.from_notes(melody), "m.mid")
    header, *rows = good("tokens", "m.mid").splitlines()
    assert header.split() == ["event", "time", "delta", "pitch", "duration", "velocity", "ids"]
    cells = [row.split() for row in rows]
    assert [c[3] for c in cells] == ["C4", "A0", "E4"]
    assert [c[0] for c in cells] == ["0", "1", "2"]
    assert float(cells[1][1]) == pytest.approx(0.5, rel=0.1)
    assert float(cells[2][2]) == 0
    assert [int(c[7]) for c in cells] == [32 + 60 - 21, 32, 32 + 64 - 21]
    published = good("tokens", "m.mid", "--grid", "published")
    assert published != good("tokens", "m.mid")
    assert "no time grid 'x', there are fine, published" in bad("tokens", "m.mid", "--grid", "x", code=2)


def test_sharp_keys_have_names() -> None:
    midi_file.write(Performance.from_notes([Note(0, 1, 54, 80), Note(1, 1, 108, 80)]), "m.mid")
    assert [row.split()[3] for row in good("tokens", "m.mid").splitlines()[1:]] == ["F#3", "C8"]


def test_info_tells_what_would_play(weights: Path) -> None:
    said = dict(row.split(maxsplit=1) for row in good("info", "--weights", weights).splitlines())
    assert said["sha256"] == weights_file.read(weights).sha256
    assert said["engine"] in ("numpy", "native")
    assert said["layers"].startswith("3 (6 Gated DeltaNet, 2 attention)")
    assert int(said["parameters"].replace(",", "")) == sum(
        array.size for array in weights_file.random_tensors(CONFIG, 0).values()
    )
    assert pulse88.__version__ in said["versions"]


def test_verbose_tells_what_was_changed(weights: Path) -> None:
    result = run("continue", "seed.mid", "--weights", weights, "--notes", "3", "-v")
    assert "engine" in result.stderr
    assert "30 piano notes" in result.stderr
    assert not run("continue", "seed.mid", "--weights", weights, "--notes", "3", "--engine", "numpy").stderr


def test_version() -> None:
    assert good("--version") == f"pulse88, version {pulse88.__version__}\n"


def test_options_say_the_sentences_of_the_configurations() -> None:
    text = " ".join(good("continue", "--help").split())
    for config, names in ((SamplingConfig, ("temperature", "top_p", "top_k")), (ContinueConfig, ("seconds", "takes"))):
        for name in names:
            assert "--" + name.replace("_", "-") in text
            assert help_of(config, name) in text


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["nope.mid"], 1, "nope.mid: there is no such file"),
        (["empty.mid"], 1, "empty.mid: "),
        (["."], 1, "folder"),
        (["seed.mid", "-o", "seed.mid"], 2, "seed.mid is the file to read"),
        (["seed.mid", "-o", "./seed.mid", "--takes", "1"], 2, "is the file to read"),
        (["seed.mid", "--wav", "seed.mid"], 2, "is the file to read"),
        (["seed.mid", "-o", "a", "--png", "a"], 2, "a is named twice"),
        (["seed.mid", "-o", "none/a.mid"], 1, "there is no folder none"),
        (["seed.mid", "--top-p", "2"], 2, "top_p must be in (0, 1], not 2.0"),
        (["seed.mid", "--seconds", "-3"], 2, "seconds must be above 0"),
        (["seed.mid", "--notes", "many"], 2, "many"),
        (["seed.mid", "--seed-notes", "1000"], 1, "seed_notes must be at most 159"),
        (["seed.mid", "--random-seed", "-1"], 1, "random seed must be in 0"),
        (["seed.mid", "--engine", "abacus"], 1, "unknown engine 'abacus'"),
        (["seed.mid", "--weights", "none.safetensors"], 1, "none.safetensors: there is no such weights file"),
        (["seed.mid", "--weights", "seed.mid"], 1, "seed.mid is no usable weights file"),
        (["seed.mid", "--seconds", "1e-9", "--random-seed", "0"], 1, "no new note begins within 1e-09 s"),
        (["seed.mid", "--notes", "2", "--wav", "a.wav", "--soundfont", "none.sf2"], 1, "none.sf2"),
    ],
)
def test_errors_are_one_sentence_and_leave_nothing_half_written(
    weights: Path, folder: Path, arguments: list[str], code: int, problem: str
) -> None:
    (folder / "empty.mid").write_bytes(b"")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    said = bad("continue", "--weights", weights, *arguments, code=code)
    assert problem in said
    assert "Traceback" not in said
    assert all(path.read_bytes() == before[path.name] for path in folder.iterdir() if path.name in before)
    assert {path.name for path in folder.iterdir()} - set(before) <= {"seed-continued.mid"}


def test_missing_default_weights_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pulse88.continuation.WEIGHTS_NAME", "no-such.safetensors")
    assert "--weights" in bad("continue", "seed.mid")


def test_an_existing_output_is_replaced_whole(weights: Path, folder: Path) -> None:
    (folder / "seed-continued.mid").write_bytes(b"old" * 100_000)
    good("continue", "seed.mid", "--weights", weights, "--notes", "3")
    assert len(new_notes(folder / "seed-continued.mid")) == 3


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, **options
    )


LOADED = "import sys; print(*sorted(m for m in {wanted!r} if m in sys.modules), file=sys.stderr)"
HEAVY = ("torch", "matplotlib", "midirenderer", "symusic", "mido", "pretty_midi")


def loaded_after(code: str) -> list[str]:
    """Which heavy modules a fresh interpreter holds after the code."""
    result = python("-c", code + "\n" + LOADED.format(wanted=("numpy", *HEAVY)))
    assert result.returncode == 0, result.stderr
    return result.stderr.splitlines()[-1].split()


def test_the_import_and_the_help_load_nothing_heavy() -> None:
    assert loaded_after("import pulse88") == []
    assert loaded_after("from pulse88.cli import main; main(['--help'], standalone_mode=False)") == []
    assert loaded_after("from pulse88.cli import main; main(['continue', '--help'], standalone_mode=False)") == []


def test_continue_loads_neither_torch_nor_what_it_was_not_asked_for(weights: Path) -> None:
    command = ["continue", "seed.mid", "--weights", str(weights), "--notes", "2"]
    assert loaded_after(f"from pulse88.cli import main; main({command}, standalone_mode=False)") == ["numpy"]


def test_no_progress_bar_in_a_pipe(weights: Path) -> None:
    command = ["continue", "seed.mid", "--weights", str(weights), "--notes", "4", "--engine", "numpy"]
    result = python("-m", "pulse88", *command)
    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout.startswith("Wrote")


def test_a_progress_bar_on_a_terminal(weights: Path) -> None:
    pty = pytest.importorskip("pty", reason="pseudo-terminals are a Unix thing")
    ours, theirs = pty.openpty()
    result = subprocess.run(
        [sys.executable, "-m", "pulse88", "continue", "seed.mid", "--weights", str(weights), "--notes", "4"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=60,
    )
    os.close(theirs)
    said = os.read(ours, 100_000).decode()
    os.close(ours)
    assert result.returncode == 0
    assert "playing on" in said and "100%" in said and "4 notes" in said


def test_a_closed_pipe_is_left_quietly() -> None:
    many = Performance.from_notes([Note(i * 0.1, 0.1, 60, 80) for i in range(20_000)])
    midi_file.write(many, "long.mid")
    process = subprocess.Popen(
        [sys.executable, "-m", "pulse88", "tokens", "long.mid"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().split()[0] == b"event"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_ctrl_c_keeps_finished_takes_and_nothing_half_written(weights: Path, folder: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pulse88", "continue", "seed.mid", "--weights", str(weights)),
            *("--notes", "150", "--takes", "1000", "-o", "a.mid"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A process that was started in the background without a terminal has Ctrl-C switched off, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not (folder / "a-take1.mid").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Stopped." in said and "Traceback" not in said
    names = {path.name for path in folder.iterdir()} - {"seed.mid"}
    assert "a-take1.mid" in names
    assert names == {f"a-take{n + 1}.mid" for n in range(len(names))}
    for name in names:
        assert len(new_notes(folder / name)) == 150


def test_public_names() -> None:
    assert {name for name in pulse88.__all__ if name != "__version__"} == set(pulse88._HOMES)
    for name in pulse88.__all__:
        assert getattr(pulse88, name) is not None
    assert dir(pulse88) == sorted(pulse88.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pulse88.no_such_name  # type: ignore[attr-defined]


def test_continue_stays_where_it_is_told_to_and_ends_in_time(weights: Path, folder: Path) -> None:
    asked = ("--register", "60", "72", "--density", "0", "4", "--in-key", "--end-within", "5", "--random-seed", "1")
    told = run("continue", "seed.mid", "-o", "out.mid", *asked, "--weights", str(weights))
    assert told.exit_code == 0, told.output
    heard = midi_file.read(folder / "out.mid").performance
    made_by = provenance_of(folder / "out.mid")
    assert made_by is not None and made_by.steering.density == (0, 4) and made_by.steering.pitch_classes
    new = heard.take(heard.part == made_by.new_part)
    assert len(new) and new.pitch.min() >= 60 and new.pitch.max() <= 72
    assert set((new.pitch % 12).tolist()) <= set(made_by.steering.pitch_classes)
    assert new.onset[-1] <= made_by.boundary + 5
    told = run("continue", "seed.mid", "--register", "72", "60", "--weights", str(weights))
    assert told.exit_code == 2 and "lower first" in told.output
