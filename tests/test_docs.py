"""Documentation that is made from code agrees with the code, and what it names is there."""

from __future__ import annotations

import importlib
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.reproduce import pages
from benchmarks.results.definitions import load_definitions
from benchmarks.results.page import marked_rows
from pipeline.config.loading import preset_names, settings_table

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_of_settings_is_up_to_date() -> None:
    script = runpy.run_path(str(DOCS / "settings.py"))
    assert script["page"]() == (DOCS / "configuration.md").read_text(), "run: python docs/settings.py"


@pytest.mark.parametrize("file", ["results.md", "differences.md"])
def test_the_results_are_up_to_date(file: str) -> None:
    made = pages(load_definitions(), DOCS)[file]
    assert made == (DOCS / file).read_text(), "run: python -m benchmarks.reproduce --render"


def test_every_difference_that_has_a_row_shows_its_effect() -> None:
    rows = load_definitions().rows
    shown = marked_rows((DOCS / "differences.md").read_text())
    assert [name for name in shown if name not in rows or not rows[name].difference] == []
    assert {name for name, row in rows.items() if row.difference} - set(shown) == {"uc-merced-reference"}


def test_every_setting_is_used() -> None:
    """By a preset, or in a page other than the list of settings; alarms by their kinds."""
    presets = {key for name in preset_names() for key in dotted_keys(preset_values(name))}
    pages = "".join(page.read_text() for page in DOCS.glob("*.md") if page.name != "configuration.md")
    named = set(re.findall(r"[\w.]+", pages))
    settings = [key for key in settings_table() if key not in presets]
    assert [key for key in settings if not named & {key, key.removeprefix("alarms.")}] == []


def preset_values(name: str) -> dict[str, Any]:
    return yaml.safe_load((DOCS.parent / "pipeline" / "presets" / f"{name}.yaml").read_text())


def dotted_keys(values: dict[str, Any]) -> Iterator[str]:
    for section, below in values.items():
        yield from (f"{section}.{key}" for key in below)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_to_pages(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_names_of_code_are_there(page: Path) -> None:
    for dotted in set(re.findall(r"`(pipeline(?:\.\w+)+)[`(]", page.read_text())):
        module, _, name = dotted.rpartition(".")
        try:
            importlib.import_module(dotted)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), name), dotted


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_paths_of_files_are_there(page: Path) -> None:
    named = re.findall(r"`((?:pipeline|tests|docs)/[\w/.-]+)`", page.read_text())
    assert [path for path in named if not (DOCS.parent / path).exists()] == []
