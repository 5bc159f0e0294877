"""Trains the missing runs of rows, and records what they reached."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import hardware
from benchmarks.results.definitions import Definitions, Row
from benchmarks.results.floors import FLOORS
from benchmarks.results.page import plus_minus
from benchmarks.results.records import (
    SCORES,
    Call,
    Record,
    furthest,
    read_record,
    seed_result,
    spread,
    with_seed,
    write_record,
)
from benchmarks.results.training import Ended, run_until, train_command
from pipeline.config.identity import result_settings
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError, RunFailed
from pipeline.provenance import git_commit
from pipeline.runs.identity import SUMMARY, read_started_run, run_folder
from pipeline.runs.train import resolve
from pipeline.storage import Folder
from pipeline.training.checkpoint import newest_in

ROOT = Path(__file__).parents[2]
CODE = ("pipeline", "benchmarks")  # folders that decide a result, unlike the pages that a command writes
CALLS = "calls.json"  # in the folder of a run: the calls that trained it
REFUSED = 2  # exit status of a command that started nothing


@dataclass(frozen=True)
class Options:
    """What the command line says about the runs.

    Attributes
    ----------
    sources : dict
        Where the images of a data set come from, as `digpro ingest` takes it.
    settings : list of str
        Overrides that do not decide a result, such as resources.workers=1.
    deadline : float, optional
        Of `time.monotonic`.
    note : str
        Shown beside the wall time.
    records : Path
        The folder of the records.
    """

    seeds: int = 1
    sources: dict[str, str] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    deadline: float | None = None
    note: str = ""
    records: Path = ROOT / "docs" / "results"


def reproduce(rows: list[str], definitions: Definitions, options: Options, after_each: Callable[[], None]) -> int:
    """Train the missing runs of the rows and record them; returns the command's exit status.

    Rows take turns seed by seed, so that they can be compared early. Unfinished runs share the time until the deadline
    equally, so that their curves can be compared. `after_each` is called whenever a record has changed.
    """
    turns = [
        (name, definitions.row(name), seed) for seed in range(options.seeds) for name in definitions.with_bases(rows)
    ]
    finished = [run_folder(config_of(*turn, options)).read(SUMMARY) is not None for turn in turns]
    status, stopped = 0, False
    for place, turn in enumerate(turns):
        ended = measure(*turn, with_share(options, max(finished[place:].count(False), 1)))
        after_each()
        if ended.stopped:
            stopped = True
        elif ended.status:
            status = 1
        if ended.stopped == "interrupt":
            status = 130
            break
    if stopped:
        print("stopped; the same command continues", flush=True)
    return status


def with_share(options: Options, runs: int) -> Options:
    """The options of one of so many runs, with an equal share of the time that is left."""
    if options.deadline is None:
        return options
    now = time.monotonic()
    return replace(options, deadline=now + max(options.deadline - now, 0.0) / runs)


def measure(name: str, row: Row, seed: int, options: Options) -> Ended:
    """Train one seed of a row as far as there is time, and record where it stands."""
    config = config_of(name, row, seed, options)
    folder = run_folder(config)
    ended = Ended(0, 0.0)
    if folder.read(SUMMARY) is not None:
        check_same_settings(folder, config)
    else:
        if options.deadline is not None and options.deadline <= time.monotonic():
            return Ended(0, 0.0, "deadline")
        print(f"{name}, seed {seed}", flush=True)
        ended = run_until(train_command(row.preset, overrides_of(name, row, seed, options)), options.deadline)
        check_started(ended, name, row, folder)
        remember_call(folder, ended, options.note)
    record = record_seed(name, row, seed, config, ended, options)
    print(f"{name}: {score_line(record)}", flush=True)
    return ended


def config_of(name: str, row: Row, seed: int, options: Options) -> RunConfig:
    """The configuration of one run."""
    return resolve(load_config(row.preset, overrides_of(name, row, seed, options)), row.preset)


def overrides_of(name: str, row: Row, seed: int, options: Options) -> list[str]:
    """The settings of one run, later ones winning."""
    source = [f"data.source={options.sources[row.data]}"] if row.data in options.sources else []
    own = [f"name={name}-seed{seed}", f"seed={seed}", f"data.path=data/{row.data}", "storage=runs/results"]
    return [*row.overrides, *own, *source, *options.settings]


def check_same_settings(folder: Folder, config: RunConfig) -> None:
    """ConfigError when a finished run was made with other settings than the row has now."""
    before, now = row_settings(read_started_run(folder)[0]), row_settings(config)
    if changed := [f"{key} was {before[key]}, is {value}" for key, value in now.items() if before[key] != value]:
        raise ConfigError(
            f"{folder.path} holds a run with other settings: {'; '.join(changed)}. Move it away to measure the row anew"
        )


def check_started(ended: Ended, name: str, row: Row, folder: Folder) -> None:
    """RunFailed when the run was refused: there is nothing to record then."""
    if ended.status == REFUSED:
        raise RunFailed(
            f"row {name} was refused ({ended.reason}). If its images are missing, give --source {row.data}=SOURCE; if "
            f"{folder.path} holds a run with other settings, move it away"
        )


def remember_call(folder: Folder, ended: Ended, note: str) -> None:
    """Add a call to the journal in the run's folder."""
    before = (folder.read(CALLS) or {"calls": []})["calls"]
    now = datetime.now(UTC).strftime("%Y-%m-%d")
    call = Call(date=now, seconds=round(ended.seconds, 1), commit=code_commit(), hardware=hardware(), note=note)
    folder.make().write(CALLS, {"calls": [*before, call.model_dump()]})


def code_commit() -> str | None:
    """The commit of the code; what a command writes into docs/ does not count as a change."""
    commit = git_commit()
    compare = ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", *CODE]
    changed = commit is not None and subprocess.run(compare, check=False).returncode != 0
    return commit if commit is None or changed else commit.removesuffix("-dirty")


def record_seed(name: str, row: Row, seed: int, config: RunConfig, ended: Ended, options: Options) -> Record:
    """Put what a run has reached into the row's record."""
    folder = run_folder(config)
    values = newest_in(folder.path) or {"history": []}
    status = "finished" if folder.read(SUMMARY) is not None else "stopped" if ended.stopped else "failed"
    calls = [Call.model_validate(call) for call in (folder.read(CALLS) or {"calls": []})["calls"]]
    reason = f"exit status {ended.status}: {ended.reason}" if status == "failed" else ""
    result = seed_result(values["history"], config.optim.epochs, status, reason, calls)
    before = read_record(options.records, name)
    seeds = max([options.seeds, *(known + 1 for known in (before.seeds if before else ()))])  # earlier calls count, too
    line = command(name, row, replace(options, seeds=seeds))
    record = with_seed(before, name, line, row_settings(config), seed, result)
    if record.floor is None and result.epochs:
        record = record.model_copy(update={"floor": FLOORS[row.floor](config)})
    write_record(options.records, record)
    return record


def row_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the result, without the seed."""
    return {key: value for key, value in result_settings(config).items() if key != "seed"}


def command(name: str, row: Row, options: Options) -> str:
    """The one command that makes a row, with a placeholder for where its images lie."""
    source = [f"--source {row.data}=SOURCE"] if load_config(row.preset).data.source is None else []
    resources = [f"--set {setting}" for setting in options.settings if setting.startswith("resources.")]
    return " ".join(["python -m benchmarks.reproduce", name, f"--seeds {options.seeds}", *source, *resources])


def score_line(record: Record) -> str:
    """What a row has reached so far."""
    seeds = furthest(record)
    if not seeds:
        return "no scores yet"
    scores = [f"{name.upper()} {plus_minus(spread([s.scores[name] for s in seeds]))}" for name in SCORES]
    return f"{'  '.join(scores)}  after {seeds[0].epochs:,} epochs, {len(seeds)} of {len(record.seeds)} seeds"
