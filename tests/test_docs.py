"""Documentation that is made from code agrees with the code, and what it names is there."""

from __future__ import annotations

import importlib
import re
import runpy
from pathlib import Path

import pytest

from benchmarks.reproduce import pages
from benchmarks.results.definitions import load_definitions
from benchmarks.results.page import marked_rows

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
