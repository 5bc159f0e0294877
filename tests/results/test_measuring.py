"""Rows are trained until the time is up, continued, and recorded; one short row is trained in earnest."""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reproduce as cli
from benchmarks.results import measuring
from benchmarks.results.definitions import DataSet, Definitions, Row
from benchmarks.results.measuring import CALLS, Options, command, reproduce
from benchmarks.results.records import read_record
from pipeline.build import settle_images
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError, RunFailed
from pipeline.storage import Folder
from tests.helpers.runs import EPOCHS, SETTINGS
from tests.results.examples import FLOOR, definitions, history

# What `digpro train` does, without training: an epoch each tenth of a second, a save when it is interrupted, a summary
# at its end. A file fail-NAME or refuse-NAME makes the run of that name end as such a run does.
FAKE = """
import json, pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
preset, *overrides = sys.argv[1:]
settings = dict(override.split("=", 1) for override in overrides)
name = settings["name"]
if pathlib.Path(f"fail-{name}").exists():
    sys.exit("error: features have collapsed")
if pathlib.Path(f"refuse-{name}").exists():
    print("error: no manifest", file=sys.stderr)
    sys.exit(2)
folder = pathlib.Path(settings["storage"], name)
folder.mkdir(parents=True, exist_ok=True)
(folder / "overrides.json").write_text(json.dumps(overrides))
state = folder / "state.json"
done = json.loads(state.read_text()) if state.exists() else 0
with open("log", "a") as log:
    print(name, done, file=log)
try:
    while done < int(settings["optim.epochs"]):
        time.sleep(0.1)
        done += 1
except KeyboardInterrupt:
    state.write_text(json.dumps(done))
    sys.exit(130)
state.write_text(json.dumps(done))
(folder / "summary.json").write_text("{}")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where the training command is FAKE and a checkpoint is its state."""

    def newest(folder: str) -> dict[str, Any] | None:
        state = Path(folder, "state.json")
        epochs = json.loads(state.read_text()) if state.exists() else 0
        return {"history": history(*(0.1 * epoch for epoch in range(epochs + 1)))} if epochs else None

    def started(folder: Folder) -> tuple[RunConfig, None]:
        overrides = json.loads(Path(folder.path, "overrides.json").read_text())
        return settle_images(load_config("digits", overrides)), None

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "read_started_run", started)
    monkeypatch.setattr(
        measuring, "train_command", lambda preset, overrides: [sys.executable, "-c", FAKE, preset, *overrides]
    )
    monkeypatch.setattr(measuring, "newest_in", newest)
    monkeypatch.setitem(measuring.FLOORS, "pixels", lambda config: FLOOR)
    return tmp_path


def options(folder: Path, **more: Any) -> Options:
    return Options(records=folder / "records", **more)


def long_rows(epochs: int) -> Definitions:
    rows = (
        definitions().rows["ours"].model_copy(update={"settings": {"optim.epochs": epochs, "optim.warmup_epochs": 0}})
    )
    return definitions().model_copy(update={"rows": {"ours": rows}})


def test_a_row_stops_in_time_continues_and_is_not_repeated(fake: Path) -> None:
    rows, calls = long_rows(40), []
    for _ in range(6):
        assert reproduce(["ours"], rows, options(fake, deadline=time.monotonic() + 1.5), lambda: calls.append(1)) == 0
    record = read_record(fake / "records", "ours")
    assert record is not None
    seed = record.seeds[0]
    assert (seed.status, seed.epochs, seed.planned) == ("finished", 40, 40)
    starts = [int(line.split()[1]) for line in (fake / "log").read_text().splitlines()]
    assert len(starts) >= 2
    assert starts[0] == 0
    assert all(later > earlier for earlier, later in itertools.pairwise(starts))
    assert len(seed.calls) == len(starts)
    assert record.floor == FLOOR
    assert len(calls) == 6


def test_a_row_that_was_stopped_says_how_far_it_came(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(["ours"], long_rows(10_000), options(fake, deadline=time.monotonic() + 2), lambda: None) == 0
    record = read_record(fake / "records", "ours")
    assert record is not None
    assert record.seeds[0].status == "stopped"
    assert 0 < record.seeds[0].epochs < 100
    assert record.seeds[0].curves["epoch"] == list(range(record.seeds[0].epochs + 1))
    assert capsys.readouterr().out.endswith("stopped; the same command continues\n")


def test_rows_share_the_time_and_what_is_over_goes_to_the_others(fake: Path) -> None:
    """The first, of two epochs, is done after a second at most; the other two have the rest for themselves."""
    long = definitions().rows["ours"].model_copy(update={"settings": long_rows(10_000).rows["ours"].settings})
    short = long.model_copy(update={"settings": {**long.settings, "optim.epochs": 2}})
    rows = definitions().model_copy(update={"rows": {"short": short, "one": long, "other": long}})
    names, deadline = ["short", "one", "other"], time.monotonic() + 5
    assert reproduce(names, rows, options(fake, deadline=deadline), lambda: None) == 0
    records = {name: read_record(fake / "records", name) for name in rows.rows}
    epochs = {name: record.seeds[0].epochs for name, record in records.items() if record}
    assert epochs["short"] == 2
    assert 5 < epochs["one"] < 30
    assert 5 < epochs["other"] < 30


def test_when_the_time_is_up_nothing_more_is_started(fake: Path) -> None:
    assert reproduce(["ours"], long_rows(4), options(fake, deadline=time.monotonic() - 1), lambda: None) == 0
    assert not (fake / "log").exists()


def test_rows_take_turns_seed_by_seed_and_a_failed_one_stops_no_other(fake: Path) -> None:
    rows = definitions()
    short = {
        name: row.model_copy(update={"settings": long_rows(2).rows["ours"].settings}) for name, row in rows.rows.items()
    }
    rows = rows.model_copy(update={"rows": short})
    (fake / "fail-theirs-seed1").touch()
    assert reproduce(["theirs"], rows, options(fake, seeds=3, note="loaded"), lambda: None) == 1
    starts = [line.split()[0] for line in (fake / "log").read_text().splitlines()]
    assert starts == ["ours-seed0", "theirs-seed0", "ours-seed1", "ours-seed2", "theirs-seed2"]
    theirs = read_record(fake / "records", "theirs")
    assert theirs is not None
    assert [seed.status for seed in theirs.seeds.values()] == ["finished", "failed", "finished"]
    assert theirs.seeds[1].reason == "exit status 1: features have collapsed"
    assert theirs.seeds[0].calls[0].note == "loaded"
    assert json.loads((fake / "runs/results/theirs-seed0" / CALLS).read_text())["calls"][0]["commit"]


def test_the_command_of_a_row_makes_all_its_seeds(fake: Path) -> None:
    for seeds in (3, 1):
        reproduce(["ours"], long_rows(2), options(fake, seeds=seeds), lambda: None)
    record = read_record(fake / "records", "ours")
    assert record is not None
    assert record.command == "python -m benchmarks.reproduce ours --seeds 3"


def test_a_run_that_was_refused_is_no_result(fake: Path) -> None:
    (fake / "refuse-ours-seed2").touch()
    with pytest.raises(RunFailed, match=r"row ours was refused \(no manifest\).*--source digits=SOURCE"):
        reproduce(["ours"], long_rows(2), options(fake, seeds=3), lambda: None)
    record = read_record(fake / "records", "ours")
    assert record is not None
    assert list(record.seeds) == [0, 1]


def test_a_finished_run_of_other_settings_is_not_taken_for_the_row(fake: Path) -> None:
    reproduce(["ours"], long_rows(2), options(fake), lambda: None)
    with pytest.raises(ConfigError, match=r"ours-seed0 holds .* optim.epochs was 2, is 3. Move it away"):
        reproduce(["ours"], long_rows(3), options(fake), lambda: None)
    record = read_record(fake / "records", "ours")
    assert record is not None
    assert record.seeds[0].planned == 2


def test_the_command_names_no_place_of_this_machine() -> None:
    row = Row(data="uc-merced", preset="uc-merced", about="aerial photographs")
    given = Options(seeds=2, sources={"uc-merced": "/home/me"}, settings=["storage=/home/me", "resources.workers=1"])
    found = "python -m benchmarks.reproduce aerial --seeds 2 --source uc-merced=SOURCE --set resources.workers=1"
    assert command("aerial", row, given) == found
    assert command("digits", Row(data="digits", preset="digits", about="x"), Options()).endswith("digits --seeds 1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "digit=x"], "--source digit: give DATA=SOURCE, where DATA is one of: digits"),
        (["--source", "digits"], "--source digits: give DATA=SOURCE"),
        (["--set", "optim.lr=1"], r"--set optim.lr=1 changes what the row is; .* rows.yaml"),
        (["--seeds", "0"], "--seeds 0: give the number of seeds, 1 or more"),
        (["--set", "name=x"], "--set name=x changes what the row is"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cli.options_of(cli.argument_parser().parse_args(["ours", *arguments]), definitions())


def test_a_picture_needs_records_and_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give one row or more, then a file that ends in \.png"):
        cli.draw(["ours", "theirs"], definitions(), tmp_path)
    with pytest.raises(ConfigError, match="ours has no record yet"):
        cli.draw(["ours", str(tmp_path / "x.png")], definitions(), tmp_path)


@pytest.mark.chaos  # CI has its parts, with a training that is made up: this one takes a minute and a half
def test_a_short_row_is_trained_recorded_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNS", "STARTS"):
        monkeypatch.setattr(f"benchmarks.results.floors.{name}", 1)
    values = dict(setting.split("=", 1) for setting in SETTINGS)
    row = Row(data="digits", preset="digits", about="a short run", settings=values)
    rows = Definitions(data_sets={"digits": DataSet(title="digits")}, rows={"short": row})
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "differences.md").write_text("")
    here = [f"storage={tmp_path}/runs", f"data.path={tmp_path}/digits", "resources.workers=1", "tracking.enabled=false"]
    given = Options(settings=here, records=docs / "results")
    assert reproduce(["short"], rows, given, lambda: cli.write_pages(rows, docs)) == 0
    record = read_record(docs / "results", "short")
    assert record is not None
    seed = record.seeds[0]
    assert (seed.status, seed.epochs, len(seed.curves["acc"])) == ("finished", EPOCHS, EPOCHS + 1)
    assert seed.scores["acc"] > 0.2
    assert seed.seconds > seed.training_seconds > 0
    assert record.floor is not None
    assert 0.6 < record.floor.scores["acc"][0] < 0.9  # k-means on these pixels is known to have 0.79
    assert str(tmp_path) not in (docs / "results" / "short.json").read_text()
    assert f"| `short` | {EPOCHS} / {EPOCHS} | 1 |" in (docs / "results.md").read_text()
