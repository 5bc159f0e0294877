"""The rows of docs/results.md: every one can be trained, and faults in the file are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.results.definitions import load_definitions
from benchmarks.results.measuring import row_settings
from pipeline.config.loading import load_config
from pipeline.errors import ConfigError

ROWS = load_definitions().rows


@pytest.mark.parametrize("name", ROWS)
def test_each_row_is_a_configuration(name: str) -> None:
    row = ROWS[name]
    assert load_config(row.preset, [*row.overrides, f"name={name}-seed0"]).name == f"{name}-seed0"


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.difference])
def test_a_difference_changes_the_result_and_little_else(name: str) -> None:
    row, other = ROWS[name], ROWS[str(ROWS[name].like)]
    mine, base = (row_settings(load_config(r.preset, r.overrides)) for r in (row, other))
    assert 1 <= sum(mine[key] != base[key] for key in mine) <= 4


@pytest.mark.parametrize("name", [name for name in ROWS if name.endswith("reference")])
def test_the_reference_variants_differ_in_the_switch_alone(name: str) -> None:
    row, other = ROWS[name], ROWS[str(ROWS[name].like)]
    mine, base = (row_settings(load_config(r.preset, r.overrides)) for r in (row, other))
    assert {key: value for key, value in mine.items() if value != base[key]} == {"method.reference": True}


def write(path: Path, **rows: object) -> Path:
    path.write_text(yaml.safe_dump({"data_sets": {"digits": {"title": "digits"}}, "rows": rows}, sort_keys=False))
    return path


def test_a_row_takes_over_what_another_has(tmp_path: Path) -> None:
    first = {"data": "digits", "preset": "digits", "about": "first", "settings": {"seed": 1, "optim.lr": 0.5}}
    path = write(
        tmp_path / "rows.yaml",
        first=first,
        second={"like": "first", "about": "second", "settings": {"optim.lr": 0.25, "views.crop_scale": [0.5, 1]}},
        third={"like": "second", "difference": "another encoder", "settings": {"model.encoder": "tiny"}},
    )
    rows = load_definitions(path).rows
    assert rows["third"].overrides == ["seed=1", "optim.lr=0.25", "views.crop_scale=[0.5, 1]", "model.encoder=tiny"]
    assert rows["third"].data == "digits"
    assert rows["third"].description == "`second`, but another encoder"
    assert load_definitions(path).with_bases(["third", "first"]) == ["second", "third", "first"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"data": "digit", "preset": "digits", "about": "x"}, "data is 'digit'; did you mean 'digits'"),
        ({"data": "digits", "preset": "digits"}, "give either about or difference"),
        ({"data": "digits", "preset": "digits", "difference": "x"}, "give like"),
        ({"like": "frist", "about": "x"}, r"rows.mine.like is 'frist' \(known: other\)"),
        ({"like": "mine", "about": "x"}, "rows.mine.like is 'mine'"),
        ({"data": "digits", "preset": "digits", "about": "x", "floor": "sky"}, "floor is 'sky'; known: pixels"),
        ({"data": "digits", "preset": "digits", "about": "x", "setings": {}}, "rows.mine.setings: Extra inputs"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    other = {"data": "digits", "preset": "digits", "about": "x"}
    with pytest.raises(ConfigError, match=message):
        load_definitions(write(tmp_path / "rows.yaml", mine=row, other=other))


def test_an_unknown_row_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no row 'digit'; did you mean 'digits'"):
        load_definitions().row("digit")
