"""The pages, from made-up records."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.results.page import differences_page, duration, marked_rows, results_page, short
from benchmarks.results.picture import draw_rows, mean_curve, points
from benchmarks.results.records import Call, Record
from tests.results.examples import CALL, definitions, record, result

SETTINGS: dict[str, dict[str, object]] = {"ours": {"optim.epochs": 4}, "theirs": {"optim.epochs": 4}}


def lines(found: dict[str, Record], pictures: Path = Path("nowhere")) -> list[str]:
    return results_page(definitions(), found, SETTINGS, pictures).splitlines()


def test_a_row_has_its_scores_its_floor_and_all_it_takes_to_repeat_it() -> None:
    page = lines({"ours": record("ours", result(0.1, 0.2, 0.3, 0.4, 0.5), result(0.1, 0.2, 0.3, 0.4, 0.7))})
    floor = "0.700 / 0.750 / 0.600 (k-means on 16 x 16 pixels)"
    score = "0.600 ± 0.100"
    assert f"| `ours` | 4 / 4 | 2 | {score} | {score} | {score} | {floor} | 3.3 min | 250 |" in page
    command = "`python -m benchmarks.reproduce ours --seeds 2`"
    assert f"| `ours` | the preset | {command} | a processor, 2 cores | `012345678` |" in page
    assert "| *others* (a paper) |  |  |  | *0.500* |  |  |  |  |" in page
    assert "Not yet measured: `theirs`." in page


def test_a_row_that_is_not_finished_says_so() -> None:
    page = lines({"ours": record("ours", result(0.1, 0.2, 0.3, status="stopped"), result(0.1, 0.2, status="stopped"))})
    assert any(line.startswith("| `ours` | 2 / 4 | 1 of 2 | 0.300 | 0.300 | 0.300 |") for line in page)


def test_a_row_that_failed_stays() -> None:
    page = lines({"ours": record("ours", result(0.1, 0.2), result(0.1, status="failed", reason="diverged"))})
    assert any(line.startswith("| `ours` | 1 / 4 | 1 of 2; 1 failed | 0.200 |") for line in page)
    assert "- `ours`, seed 1, failed after 0 epochs: diverged" in page


def test_a_row_without_any_checkpoint_is_shown() -> None:
    failed = result(0.1, status="failed").model_copy(update={"scores": {}, "epochs": 0, "curves": {}})
    page = lines({"ours": record("ours", failed, floor=None)})
    assert any(line.startswith("| `ours` | 0 / 4 | 0 of 1; 1 failed | none | none | none |  |") for line in page)


def test_settings_that_have_changed_since_are_named() -> None:
    page = lines({"ours": record("ours", result(0.1, 0.2), settings={"optim.epochs": 9, "gone": 1})})
    assert "- `ours` was measured with other settings than it has now: `optim.epochs`." in page


def test_a_note_stands_beside_the_wall_time() -> None:
    loud = result(0.1, 0.2).model_copy(update={"calls": [CALL, CALL.model_copy(update={"note": "loaded machine"})]})
    assert any("| 6.7 min (loaded machine) |" in line for line in lines({"ours": record("ours", loud)}))


def test_effects_have_a_line_with_every_seed() -> None:
    pair = record("theirs", result(0.1, 0.5), result(0.1, 0.9)), record("ours", result(0.1, 0.6), result(0.1, 0.8))
    page = lines({found.row: found for found in pair})
    effect = "+0.000 ± 0.100"
    line = f"| `theirs` | `ours` | groups are raw | 1 / 4 | 2 | {effect} | {effect} | {effect} | -0.100, +0.100 |"
    assert line in page


def test_effects_are_put_into_the_table_of_differences() -> None:
    text = "| groups | <!-- effect: theirs -->anything<!-- end --> |\n| other | <!-- effect: ours -->x<!-- end --> |\n"
    assert marked_rows(text) == ["theirs", "ours"]
    pair = record("theirs", result(0.1, 0.5)), record("ours", result(0.1, 0.6, 0.7))
    page = differences_page(text, definitions(), {found.row: found for found in pair})
    measured = "ACC -0.100, NMI -0.100 ([`theirs`](results.md#effects), 1 seed, after 1 of 4 epochs)"
    assert page.splitlines()[0] == f"| groups | <!-- effect: theirs -->{measured}<!-- end --> |"
    assert page.splitlines()[1] == "| other | <!-- effect: ours -->not yet measured<!-- end --> |"
    assert differences_page(page, definitions(), {found.row: found for found in pair}) == page


def test_a_picture_is_shown_where_it_was_drawn(tmp_path: Path) -> None:
    found = {"ours": record("ours", result(0.1, 0.2, 0.3), result(0.1, 0.4))}
    assert not any(line.startswith("![") for line in lines(found, tmp_path))
    draw_rows(tmp_path / "curves.png", list(found.values()))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = lines(found, tmp_path)
    assert "![ours over epochs](curves.png)" in page
    assert "Drawn by `python -m benchmarks.reproduce --draw ours docs/curves.png`." in page


def test_a_mean_curve_ends_where_the_first_seed_does() -> None:
    seeds = [points(result(0.1, 0.2, 0.3).curves, "acc"), points(result(0.3, 0.4).curves, "acc")]
    assert mean_curve(seeds) == [(0, pytest.approx(0.2)), (1, pytest.approx(0.3))]
    assert points(result(0.1, 0.2).curves, "loss") == [(1, 1.0)]
    assert mean_curve([[]]) == []


@pytest.mark.parametrize(("seconds", "text"), [(42, "42 s"), (204, "3.4 min"), (7200, "2.0 h")])
def test_durations_are_said_as_a_reader_would(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_commit_is_shortened_and_keeps_its_mark() -> None:
    assert short("0123456789abcdef-dirty") == "`012345678` with changes"
    assert short(None) == "unknown"
    assert Call.model_validate(CALL.model_dump()) == CALL
