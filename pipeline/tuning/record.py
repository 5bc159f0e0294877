"""What a search leaves: the best trial's results, a preset, the page, the summary, and order in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pipeline.config.models import RunConfig
from pipeline.report.search_page import page
from pipeline.runs import environment_facts, write_outcome
from pipeline.tracking import RunRef, RunWriter, register_model, tag_run
from pipeline.training.run_folder import SUMMARY, RunFolder
from pipeline.tuning.logbook import format_point
from pipeline.tuning.result import Row, best, pareto_front
from pipeline.tuning.space import configured
from pipeline.tuning.trial import TrialJob, open_record, trial_config

PAGE, PRESET = "search.html", "best.yaml"
MLFLOW_STATUS: dict[str, Any] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def write_search(
    config: RunConfig, job: TrialJob, folder: RunFolder, parent: RunRef, found: Sequence[Row]
) -> dict[str, Any]:
    """Write all that a search leaves; returns the summary, which is written last.

    `config` is the configuration as it was given, which the preset is made of.
    """
    chosen = best(found, job.space)
    outcome = model = None
    if chosen is not None:
        outcome = finish_best(chosen, job)
        model = register(chosen, job)
    for row in found:
        close(row, job, is_best=row is chosen)
    summary = summarise(job, folder, parent, found, chosen, outcome, model)
    with TemporaryDirectory() as local, RunWriter(parent, folder.spool) as writer:
        for row in found:
            writer.log({f"trial/{key}": value for key, value in row.last.items()}, step=row.number)
        files = {PAGE: page(f"Search {folder.name}", lead(summary), found, chosen, job.space)}
        if chosen is not None:
            files[PRESET] = preset(config, job, chosen, folder)
        for name, text in files.items():
            Path(local, name).write_text(text, encoding="utf-8")
            writer.artifact(Path(local, name))
            with folder.open_output(name) as stream:
                stream.write(text.encode())
    folder.write(SUMMARY, summary)
    return summary


def finish_best(row: Row, job: TrialJob) -> dict[str, Any]:
    """Pictures, assignments and model of the best trial, which becomes a finished run like any other; its summary."""
    config = trial_config(row.settings, job, row.trial)
    record = open_record(config, job, RunFolder(job.trials, row.trial))
    return write_outcome(config, job.manifest, RunFolder(job.trials, row.run), record)


def register(row: Row, job: TrialJob) -> str | None:
    """Make the best trial's model a version in MLflow's registry; returns its name and number."""
    record = open_record(trial_config(row.settings, job, row.trial), job, RunFolder(job.trials, row.trial))
    version = register_model(record, f"digpro-{job.label}", {"digpro.search": job.config.name or ""})
    return version and f"models:/digpro-{job.label}/{version}"


def close(row: Row, job: TrialJob, *, is_best: bool) -> None:
    """End the MLflow run of a trial: a trial that was stopped died without a word."""
    config = trial_config(row.settings, job, row.trial)
    record = open_record(config, job, RunFolder(job.trials, row.trial).make())
    RunWriter(record, RunFolder(job.trials, row.run).spool).finish(MLFLOW_STATUS[row.status])
    tags = {"status": row.status, "reason": row.reason, "number": str(row.number)} | (
        {"best": "true"} if is_best else {}
    )
    tag_run(record, {f"digpro.{key}": value for key, value in tags.items()})


def preset(config: RunConfig, job: TrialJob, chosen: Row, folder: RunFolder) -> str:
    """The best configuration as a file for `digpro train --preset`."""
    found = configured(config, chosen.point).model_copy(update={"name": None})
    goals = ", ".join(f"{metric} {chosen.last[metric]:.4f} ({mode})" for metric, mode in job.space.objectives)
    header = [
        f"The best configuration that the search {folder.name} found: trial {chosen.number}, {chosen.trial}.",
        f"Objective: {goals} after {chosen.epochs} epochs.",
        "Command: digpro train --preset best.yaml",
    ]
    if cheap := job.space.settings:
        header.append(f"The trials, and they alone, had {', '.join(f'{key}={value}' for key, value in cheap.items())}.")
    values = yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False)
    return "".join(f"# {line}\n" for line in header) + values


def lead(summary: dict[str, Any]) -> list[str]:
    """What the page begins with."""
    objectives = ", ".join(f"{metric} ({mode})" for metric, mode in summary["objectives"])
    trained, full, chosen = summary["epochs_trained"], summary["epochs_in_full"], summary["best"]
    best_is = (
        f"Best: trial {chosen['number']}, {format_point(chosen['point'])}." if chosen else "No trial came to anything."
    )
    saved = f"; run to their end they had trained {full:,}" if trained < full else ""
    return [
        f"Objective: {objectives}. {best_is}",
        f"{len(summary['trials'])} trials trained {trained:,} epochs{saved}.",
    ]


def summarise(
    job: TrialJob,
    folder: RunFolder,
    parent: RunRef,
    found: Sequence[Row],
    chosen: Row | None,
    outcome: dict[str, Any] | None,
    model: str | None,
) -> dict[str, Any]:
    """The search in figures: its best, its trials, what it cost, where things are."""
    outputs = {"summary": f"{folder.path}/{SUMMARY}", "page": f"{folder.path}/{PAGE}"}
    if outcome is not None:
        outputs |= {"preset": f"{folder.path}/{PRESET}", "best run": outcome["folder"]}
    return {
        "search": folder.name,
        "folder": folder.path,
        **job.space.described(),
        "best": None if chosen is None else chosen.summary(),
        "front": [row.number for row in pareto_front([row for row in found if row.status == "finished"], job.space)],
        "scores": outcome["scores"] if outcome else {},
        "trials": [row.summary() for row in found],
        "epochs_trained": sum(row.epochs for row in found),
        "epochs_in_full": len(found) * job.config.optim.epochs,
        "mlflow": {"uri": parent.uri, "run_id": parent.run_id, "model": model},
        "outputs": outputs | {"mlflow": parent.uri},
        "config": job.config.model_dump(mode="json"),
        **environment_facts(),
    }
