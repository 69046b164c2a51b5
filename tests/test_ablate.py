"""A suite is trained row by row, goes on where it was, and becomes one table."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pulse88[train]'")

from made_data import make_data  # noqa: E402
from pulse88 import ablate, suites, training_log  # noqa: E402
from pulse88.ablate import AblationError, Plan  # noqa: E402
from pulse88.cli import main  # noqa: E402
from pulse88.config import TINY  # noqa: E402
from pulse88.model import Pulse88  # noqa: E402
from pulse88.suites import Row, Suite, row_config  # noqa: E402
from pulse88.vocabulary import PUBLISHED  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The tiny suite, run in two parts."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_log, "has_tensorboard", lambda: False)
        for part in (2, 1):
            plan = Plan(suites.tiny(), data, out, {}, share=(part, 2))
            ablate.run(plan)
    ablate.write_tables(plan)
    return plan


@pytest.fixture(autouse=True)
def without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_log, "has_tensorboard", lambda: False)


def test_every_row_and_seed_has_its_figures(done: Plan) -> None:
    found = json.loads((done.out / "results.json").read_text())
    assert {name: len(results) for name, results in found.items()} == {"base": 2, "learned-alone": 2}
    for results in found.values():
        assert {result["seed"] for result in results} == {0, 1}
        for result in results:
            assert 5 < result["bits_per_note"] < 60
            assert result["decode_ms"] > 0
            assert result["tokens"] > 0
    seeds = [result["bits_per_note"] for result in found["base"]]
    assert seeds[0] != seeds[1]


def test_the_table_has_a_line_a_row_with_differences_and_commands(done: Plan) -> None:
    text = (done.out / "results.md").read_text()
    base, other = re.findall(r"^\| (base|learned-alone) \|.*$", text, re.M)
    assert (base, other) == ("base", "learned-alone")
    found = json.loads((done.out / "results.json").read_text())
    gap = sum(r["grid_free"] for r in found["learned-alone"]) / 2 - sum(r["grid_free"] for r in found["base"]) / 2
    assert f"{gap:+.3f} ± " in text
    assert "pulse88 ablate tiny --data DATA -o OUT --only learned-alone" in text
    assert (done.out / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_row_is_not_run_again(done: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate, "train", None)
    told: list[str] = []
    ablate.run(replace(done, share=(1, 1)), tell=told.append)
    assert len(told) == 4 and all(line.endswith("bits a note, found") for line in told)


def test_rows_of_one_seed_see_the_same_windows(done: Plan) -> None:
    losses = [
        [
            json.loads(line)["tokens"]
            for line in (done.out / row / "seed-1/log.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for row in ("base", "learned-alone")
    ]
    assert losses[0] == losses[1]


def test_a_result_of_another_configuration_is_refused(done: Plan) -> None:
    row = done.suite.rows[0]
    other = Suite("tiny", (replace(row, config=replace(row.config, learning_rate=0.5)),))
    with pytest.raises(AblationError, match=r"result\.json: of another configuration"):
        ablate.run(replace(done, suite=other, share=(1, 1)))


def test_a_damaged_result_names_its_file(done: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "base/seed-0"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{")
    with pytest.raises(AblationError, match=r"base/seed-0/result\.json: .*; delete it"):
        ablate.run(replace(done, out=tmp_path, share=(1, 1)))


def test_a_row_with_another_grid_needs_its_data(data: Path, tmp_path: Path) -> None:
    tiny = suites.tiny()
    gridded = replace(tiny.rows[1], grid="published")
    suite = Suite("grids", (tiny.rows[0], gridded))
    plan = Plan(suite, data, tmp_path, {}, seeds=1)
    assert [row.name for row, _ in plan.runs()] == ["base"]
    other = make_data(tmp_path / "other", PUBLISHED)
    plan = Plan(suite, data, tmp_path / "runs", {"published": other}, seeds=1)
    assert [plan.data_of(row) for row, _ in plan.runs()] == [data, other]


def test_shares_are_all_of_it_once(data: Path, tmp_path: Path) -> None:
    whole = Plan(suites.design(), data, tmp_path, {}).runs()
    parts = [Plan(suites.design(), data, tmp_path, {}, share=(k, 3)).mine() for k in (1, 2, 3)]
    assert sorted((row.name, seed) for part in parts for row, seed in part) == sorted((r.name, s) for r, s in whole)


def test_a_row_without_ends_is_compared_by_events(data: Path, tmp_path: Path) -> None:
    """The first row pays for EOS, the other doesn't: what it pays must not count for the other."""
    first, _ = suites.tiny().rows
    other = replace(first, name="no-ends", config=replace(first.config, ends=False))
    same = replace(first, name="same")
    plan = Plan(Suite("ends", (first, other, same)), data, tmp_path, {}, seeds=1)
    figures = {"base": (20.0, 0.5), "no-ends": (19.75, 0.0), "same": (20.25, 0.75)}
    for name, (bits, ends) in figures.items():
        result = {"key": "", "row": name, "seed": 0, "bits_per_note": bits, "grid_free": bits, "slots": {"ends": ends}}
        (tmp_path / name / "seed-0").mkdir(parents=True)
        (tmp_path / name / "seed-0" / "result.json").write_text(json.dumps(result))
    assert [line.against for line in ablate.lines_of(plan)] == [0.0, 0.25, 0.25]


def test_beyond_the_context_is_judged_where_there_is_no_table(data: Path, tmp_path: Path) -> None:
    base = suites.tiny().rows[0].config
    changes = {name: getattr(base, name) for name in ("window", "batch_windows", "micro_windows", "steps")}
    changes |= {"validate_every": 3, "checkpoint_every": 3, "precision": "fp32", "warmup_steps": 1}
    row = Row("free", "", row_config(replace(TINY, learned_positions=False), changes))
    plan = Plan(Suite("free", (row,)), data, tmp_path, {})
    ablate.run(plan)
    result = ablate.read_result(plan.folder(row, 0))
    assert result is not None and 5 < result["bits_beyond"] < 60


def test_the_state_is_counted_as_it_is() -> None:
    model = Pulse88(TINY)
    _, state = model(torch.zeros(1, 50, dtype=torch.long), model.zero_state())
    true = sum(v.numel() * 4 for layer in state.layers for mixer in layer for v in vars(mixer).values())
    assert ablate.state_bytes(model, 50) == true


def test_the_command(data: Path, done: Plan) -> None:
    def run(*arguments: Any) -> Any:
        return CliRunner().invoke(main, ["ablate", *map(str, arguments)])

    shown = run("tiny", "--show")
    assert [row["name"] for row in json.loads(shown.output)["rows"]] == ["base", "learned-alone"]
    table = run("tiny", "--data", data, "-o", done.out, "--only", "base")
    assert table.exit_code == 0, table.output
    assert "| learned-alone |" in table.output
    for arguments, words in (
        (("tiny",), "--data and --out are needed"),
        (("tinny", "--show"), "neither a suite"),
        (("tiny", "--data", data, "-o", done.out, "--only", "x"), "has no row x"),
        (("tiny", "--data", data, "-o", done.out, "--share", "3/2"), "share must be k/n"),
        (("tiny", "--data", data, "-o", done.out, "--other-data", "x"), "is not GRID=FOLDER"),
    ):
        bad = run(*arguments)
        assert bad.exit_code == 2 and words in " ".join(bad.output.split()), bad.output
