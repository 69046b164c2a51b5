"""Suites hold equal parameters, go through JSON, and refuse what is no comparison."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pulse88 import suites
from pulse88.config import PULSE88_40M, TINY, ModelConfig
from pulse88.engine.layout import parameter_count
from pulse88.suites import TOLERANCE, Row, Suite, row_config


@pytest.mark.parametrize("name", suites.SUITES)
def test_rows_of_every_suite_have_equal_parameters_and_names_of_their_own(name: str) -> None:
    suite = suites.load(name)
    base = suite.rows[0].parameters
    assert all(abs(row.parameters / base - 1) <= TOLERANCE for row in suite.rows)
    assert len({row.name for row in suite.rows}) == len(suite.rows)
    assert len({repr(row.config) + row.grid for row in suite.rows}) == len(suite.rows)


def test_design_asks_what_the_published_design_leaves_open() -> None:
    suite = suites.design()
    names = {row.name for row in suite.rows}
    assert len(names) >= 12
    assert {"gdn-only", "transformer", "parallel", "no-convolution", "no-gate", "rope-alone", "untied"} <= names
    assert sum(row.seeds >= 3 for row in suite.rows) >= 3
    assert 10e6 < suite.rows[0].parameters < 11e6


def test_the_base_at_full_width_is_the_released_model() -> None:
    (published, *_) = suites.design_40m().rows
    shape = replace(
        published.config.shape, dropout=PULSE88_40M.dropout, attention_dropout=PULSE88_40M.attention_dropout
    )
    assert shape == PULSE88_40M
    assert published.parameters == 40_784_528


def test_all_rows_see_the_same_windows() -> None:
    order = {"seed", "window", "batch_windows", "steps", "transpose_down", "transpose_up"}
    for suite in (suites.design(), suites.design_40m()):
        assert len({tuple(getattr(row.config, name) for name in sorted(order)) for row in suite.rows}) == 1


@pytest.mark.parametrize("name", suites.SUITES)
def test_a_suite_goes_through_json(name: str, tmp_path: Path) -> None:
    suite = suites.load(name)
    (tmp_path / "suite.json").write_text(json.dumps(suite.to_json()))
    assert suites.load(tmp_path / "suite.json") == suite


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    written = {
        "name": "mine",
        "model": {"d_model": 320, "gqa_num_heads": 4},
        "recipe": {"steps": 7},
        "rows": [
            {"name": "base", "asks": "the base"},
            {"name": "slower", "asks": "a lower rate", "recipe": {"learning_rate": 1e-4}, "seeds": 2},
        ],
    }
    (tmp_path / "mine.json").write_text(json.dumps(written))
    base, slower = suites.load(tmp_path / "mine.json").rows
    assert (base.config.shape.d_model, base.config.shape.output_logit_scale) == (320, 320**-0.5)
    assert (slower.config.steps, slower.config.learning_rate, slower.seeds) == (7, 1e-4, 2)
    assert base.config.optimizer == "muon"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": []}, "has no rows"),
        ({"rows": [{"name": "a"}]}, "KeyError 'asks'"),
        ({"rows": [{"name": "a", "asks": ""}] * 2}, "'a' must be one row's only"),
        ({"rows": [{"name": "../a", "asks": ""}]}, r"'\.\./a' must be"),
        ({"rows": [{"name": "a", "asks": "", "model": {"width": 3}}]}, "unknown settings of a model: width"),
        ({"rows": [{"name": "a", "asks": "", "recipe": {"rate": 3}}]}, "unknown settings of a recipe: rate"),
        ({"rows": [{"name": "a", "asks": "", "recipe": {"steps": 0}}]}, "steps must be positive"),
        ({"rows": [{"name": "a", "asks": "", "model": {"d_model": 0}}]}, "ZeroDivisionError"),
        ({"rows": [{"name": "a", "asks": "", "seeds": 1e999}]}, "OverflowError"),
        ({"rows": [{"name": "a", "asks": "", "model": {"d_model": 10**400}}]}, "OverflowError"),
    ],
)
def test_a_bad_suite_is_refused_with_its_file(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(json.dumps({"name": "bad", **change}))
    with pytest.raises(ValueError, match=words) as caught:
        suites.load(tmp_path / "bad.json")
    assert "bad.json" in str(caught.value)


def test_what_is_neither_a_suite_nor_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a suite"):
        suites.load("desing")


def test_unequal_parameters_are_no_comparison() -> None:
    gateless = replace(TINY, gdn_output_gate=False)
    rows = tuple(Row(name, "", row_config(shape, {"window": 64})) for name, shape in (("a", TINY), ("b", gateless)))
    with pytest.raises(ValueError, match=r"b has [\d,]+ parameters, -\d+\.\d% against"):
        Suite("unequal", rows)


def test_a_part_that_is_left_out_is_made_up_for() -> None:
    size = parameter_count(ModelConfig())
    found = suites.fitted(replace(ModelConfig(), gdn_output_gate=False), size)
    assert abs(parameter_count(found) / size - 1) < 0.01
    assert found.gdn_inner_dim > ModelConfig().gdn_inner_dim
