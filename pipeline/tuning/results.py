"""What a search writes: the best trial's results, a preset, the page, the summary, and complete records in MLflow."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pipeline.cluster import cluster_facts
from pipeline.config.loading import with_settings
from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError
from pipeline.report.search_page import ShownSearch, search_page
from pipeline.runs.artifacts import write_artifacts
from pipeline.runs.identity import SUMMARY
from pipeline.storage import Folder
from pipeline.tracking import RunRef, RunWriter, end_run, register_model, spool_path, tag_run
from pipeline.training.job import Job
from pipeline.tuning.space import format_point
from pipeline.tuning.trial import SearchJob, ended_trial_run, trial_config, trial_job
from pipeline.tuning.trials import TrialRow, best_trial, pareto_front

PAGE, PRESET = "search.html", "best.yaml"
log = logging.getLogger(__name__)
MLFLOW_STATUS: dict[str, Any] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def write_results(
    config: RunConfig, search: SearchJob, folder: Folder, parent: RunRef, rows: Sequence[TrialRow]
) -> dict[str, Any]:
    """Write all results of a search; returns the summary, which is written last.

    Parameters
    ----------
    config : RunConfig
        As it was given, without the space's settings for trials; the preset is made from it.
    search : SearchJob
    folder : Folder
        Of the search.
    parent : RunRef
        MLflow's run of the search.
    rows : sequence of TrialRow
    """
    best, run, model = best_trial(rows, search.space), None, None
    for row in rows:
        end_trial_run(row, search, is_best=row is best)
    if best is not None:
        job = trial_job(best.point, search, best.trial, ended=True)
        run, model = write_artifacts(job, reopen=False), register_best(job, search)
    summary = summarise(search, folder, parent, rows, best, run, model)
    texts = page_text(search, summary, rows)
    if not texts:
        del summary["outputs"]["page"]
    if best is not None:
        texts[PRESET] = preset_text(config, search, best, folder.name)
    with RunWriter(parent, spool_path(folder)) as writer:
        for row in rows:
            writer.log({f"trial/{metric}": value for metric, value in row.last.items()}, step=row.number)
        write_texts(texts, folder, writer)
    folder.write(SUMMARY, summary)
    return summary


def register_best(job: Job, search: SearchJob) -> str | None:
    """Make the best trial's model a version in MLflow's registry; returns its URI, None when MLflow is unreachable."""
    name = f"digpro-{search.label}"
    version = register_model(job.tracking, name, {"digpro.search": search.config.name or ""})
    return version and f"models:/{name}/{version}"


def end_trial_run(row: TrialRow, search: SearchJob, *, is_best: bool) -> None:
    """End a trial's MLflow run, since a stopped trial cannot do so itself, and tag it with how the trial ended."""
    try:
        config = trial_config(row.point, search, row.trial)
    except ConfigError:  # the point is not a valid configuration, so the trial failed
        config = search.config
    tracking = ended_trial_run(config, search, row.trial)
    end_run(tracking, spool_path(search.folder(row.trial)), MLFLOW_STATUS[row.status], ended=row.ended)
    tags = {"status": row.status, "reason": row.reason, "number": str(row.number)}
    tag_run(tracking, {f"digpro.{key}": value for key, value in (tags | ({"best": "true"} if is_best else {})).items()})


def write_texts(texts: dict[str, str], folder: Folder, writer: RunWriter) -> None:
    """Write files into a folder and to MLflow."""
    with TemporaryDirectory() as local:
        for name, text in texts.items():
            Path(local, name).write_text(text, encoding="utf-8")
            writer.artifact(Path(local, name))
            with folder.open_output(name) as stream:
                stream.write(text.encode())


def preset_text(config: RunConfig, search: SearchJob, best: TrialRow, name: str) -> str:
    """The best configuration as a file for `digpro train --preset`."""
    found = with_settings(config, best.point, PRESET).model_copy(update={"name": None})
    goals = ", ".join(f"{metric} {best.last[metric]:.4f} ({mode})" for metric, mode in search.space.objectives)
    header = [
        f"The best configuration that the search {name} found: trial {best.number}, {best.trial}.",
        f"Objective: {goals} after {best.epochs} epochs.",
        "Command: digpro train --preset best.yaml",
    ]
    if cheap := search.space.settings:
        header.append(
            f"The trials, but not this file, had {', '.join(f'{key}={value}' for key, value in cheap.items())}."
        )
    values = yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False)
    return "".join(f"# {line}\n" for line in header) + values


def page_text(search: SearchJob, summary: dict[str, Any], rows: Sequence[TrialRow]) -> dict[str, str]:
    """The page by its name; without it, and with a warning, if it fails: a search must not lose its result to it."""
    try:
        return {PAGE: search_page(shown_search(search, summary, rows))}
    except Exception as error:  # of plotly or Optuna, for values that nobody has tried
        log.warning("the page of this search failed (%s: %s); report this as a bug", type(error).__name__, error)
        return {}


def shown_search(search: SearchJob, summary: dict[str, Any], rows: Sequence[TrialRow]) -> ShownSearch:
    """The search as its page shows it."""
    return ShownSearch(
        title=f"Search {summary['search']}",
        introduction=introduction(summary),
        objectives=search.space.objectives,
        distributions=search.space.distributions(),
        ranges=search.space.ranges(),
        trials=[row.shown() for row in rows],
        best=summary["best"] and summary["best"]["number"],
    )


def introduction(summary: dict[str, Any]) -> list[str]:
    """The first paragraphs of the page."""
    objectives = ", ".join(f"{metric} ({mode})" for metric, mode in summary["objectives"])
    trained, full, best = summary["epochs_trained"], summary["epochs_in_full"], summary["best"]
    result = f"Best: trial {best['number']}, {format_point(best['point'])}." if best else "No trial succeeded."
    saved = f"; without early stopping and failures it would have been {full:,}" if trained < full else ""
    return [
        f"Objective: {objectives}. {result}",
        f"{len(summary['trials'])} trials trained {trained:,} epochs{saved}.",
    ]


def summarise(
    search: SearchJob,
    folder: Folder,
    parent: RunRef,
    rows: Sequence[TrialRow],
    best: TrialRow | None,
    run: dict[str, Any] | None,
    model: str | None,
) -> dict[str, Any]:
    """The best trial (`run` is its own summary), all trials, the epochs they took, and where the outputs are."""
    outputs = {"summary": folder.file(SUMMARY), "page": folder.file(PAGE)}
    if run is not None:
        outputs |= {"preset": folder.file(PRESET), "best run": run["folder"]}
    return {
        "search": folder.name,
        "folder": folder.path,
        **search.space.as_dict(),
        "best": None if best is None else best.as_dict(),
        "front": [row.number for row in pareto_front([r for r in rows if r.status == "finished"], search.space)],
        "scores": run["scores"] if run else {},
        "trials": [row.as_dict() for row in rows],
        "epochs_trained": sum(row.epochs for row in rows),
        "epochs_in_full": len(rows) * search.config.optim.epochs,
        "mlflow": {"uri": parent.public_uri, "run_id": parent.run_id, "model": model},
        "outputs": outputs | parent.output,
        "config": search.config.model_dump(mode="json"),
        **cluster_facts(),
    }
