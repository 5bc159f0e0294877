"""The driver of a search: a configuration and a space in, the best configuration out."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

from pyarrow.fs import FileSelector
from ray import tune
from ray.tune import ResumeConfig
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipeline.checks.capacity import TRIAL_CPUS, Capacity, search_capacity
from pipeline.checks.nodes import alive_nodes, check_nodes
from pipeline.checks.storage import check_storage
from pipeline.cluster import connect
from pipeline.config.identity import fingerprint, result_settings
from pipeline.config.models import RunConfig
from pipeline.data.read import read_labels
from pipeline.data.shards import validate_shards
from pipeline.errors import ConfigError, RunFailed
from pipeline.plan import choose_mode
from pipeline.runs import load_or_ingest
from pipeline.storage import absolute
from pipeline.tracking import RunRef, open_run, tracking_uri
from pipeline.training.run_folder import SUMMARY, RunFolder
from pipeline.tuning.logbook import Logbook
from pipeline.tuning.record import write_search
from pipeline.tuning.result import rows
from pipeline.tuning.schedule import SCHEDULERS, asha, interval, population, proposer, rungs, sampled
from pipeline.tuning.space import SCORES, Space, check_points, configured, first_points
from pipeline.tuning.trial import TrialJob, run_trial

SEARCH, TRIALS, TUNE = "search.json", "trials", "tune"  # in the folder of a search
PBT_KEPT = 4  # rounds of population based training
RETRIES = 1  # of a trial whose actor was lost with its node
ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a search as it ends a run: at once, to go on later
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the logbook and MLflow have all that they would write
    "TUNE_GLOBAL_CHECKPOINT_S": "5",  # between two saves of Tune's state: what a kill can cost in knowledge
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a line with the reason is enough
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output of Tune can be silenced, the new one prints tables all the same
}
Say = Callable[[str], None]


def search(
    config: RunConfig,
    space: Space,
    *,
    label: str = "run",
    trials: int = 16,
    schedule: str = "asha",
    concurrent: int | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Search to the end, or go on where an earlier call with the same arguments stopped.

    Parameters
    ----------
    config : RunConfig
        What trials start from, and what is not searched. `resources` are those of each trial.
    space : Space
    label : str
        First part of the search's name where the configuration gives none: usually the preset.
    trials : int
    schedule : str
        One of SCHEDULERS.
    concurrent : int, optional
        Trials at a time; as many as fit when absent.
    say : callable
        Takes the lines of progress.

    Returns
    -------
    dict
        The summary, as it lies in summary.json of the search's folder.

    Raises
    ------
    ConfigError, DataError
        For what can be known beforehand; nothing has been started then.
    RunFailed
        When no trial came to anything.
    """
    if schedule not in SCHEDULERS:
        raise ConfigError(f"there is no scheduler {schedule!r}; take one of {', '.join(SCHEDULERS)}")
    identity = described(config, space, trials, schedule)
    base = named(config, f"{label}-{space.name}", identity)
    check_storage(base.storage)
    manifest = load_or_ingest(base, say)
    cheap = configured(base, space.settings, origin=f"SETTINGS of space {space.name!r}")
    check_points(cheap, space, manifest)
    folder = claim(base, identity | {"images": manifest.source.digest})
    if (summary := folder.read(SUMMARY)) is not None:
        say(f"search {base.name} is already finished; a new one needs another name (--set name=...)")
        return concluded(summary)
    validate_shards(base.data.path)
    check_objectives(cheap, space)
    scheduler, proposals = scheduling(cheap, space, schedule, trials)
    connect()
    check_nodes(base)
    nodes = [node["Resources"] for node in alive_nodes()]
    room = search_capacity(cheap, choose_mode(cheap, manifest)[0], nodes, trials, concurrent)
    check_population(schedule, trials, room)
    parent = open_parent(base, folder, space)
    job = TrialJob(
        trial_base_config(cheap, room, schedule), space, manifest, f"{folder.path}/{TRIALS}", parent.run_id, label
    )
    say(opening(job, room, trials, schedule))
    logbook = Logbook(space, job.config.optim.epochs, trials, scheduler, say)
    found = run_trials(job, folder, trials, room, logbook, proposals)
    summary = write_search(config, job, folder, parent, rows(found, logbook.entries, job.config.optim.epochs))
    return concluded(summary)


def described(config: RunConfig, space: Space, trials: int, schedule: str) -> dict[str, Any]:
    """All that decides what a search does, as plain values: two calls that share it are one search."""
    facts = {"settings": result_settings(config), **space.described(), "trials": trials, "schedule": schedule}
    return dict(json.loads(json.dumps(facts)))


def named(config: RunConfig, label: str, identity: dict[str, Any]) -> RunConfig:
    """The configuration with the search's name, and with places that mean the same in every process."""
    digest = hashlib.sha256(json.dumps([fingerprint(config), identity], sort_keys=True).encode()).hexdigest()[:8]
    storage = absolute(config.storage)
    return config.model_copy(
        update={
            "name": config.name or f"{label}-{digest}",
            "storage": storage,
            "data": config.data.model_copy(update={"path": absolute(config.data.path)}),
            "tracking": config.tracking.model_copy(update={"uri": tracking_uri(config.tracking.uri, storage)}),
        }
    )


def claim(config: RunConfig, identity: dict[str, Any]) -> RunFolder:
    """The folder of a search, new or of the same one; ConfigError says what differs where another has the name."""
    assert config.name is not None
    folder = RunFolder.at(f"{config.storage}/{config.name}").make()
    before = folder.read(SEARCH) or {}
    started = "mlflow_run" in before  # without, it failed its checks
    if started and (changed := [key for key in identity if before["search"].get(key) != identity[key]]):
        raise ConfigError(
            f"search {config.name!r} in {config.storage} was started with other {', '.join(changed)}. Give another "
            "name (--set name=...), or what it had"
        )
    folder.update(SEARCH, search=identity)
    return folder


def check_objectives(config: RunConfig, space: Space) -> None:
    """ConfigError for an objective that no trial could report."""
    wanted = dict(space.objectives)
    if (scores := wanted.keys() & set(SCORES)) and read_labels(config.data.path) is None:
        raise ConfigError(
            f"objective {', '.join(sorted(scores))} needs classes, and {config.data.path} has none; take label_free"
        )
    if "label_free" in wanted and config.estep.probe == 0:
        raise ConfigError("objective label_free needs estep.probe, which is 0; take its default, 512")


def open_parent(config: RunConfig, folder: RunFolder, space: Space) -> RunRef:
    """MLflow's run of the search, whose children are the trials."""
    known = (folder.read(SEARCH) or {}).get("mlflow_run")
    ref = open_run(config, config.storage, folder.name, known, {"digpro.search": space.name})
    folder.update(SEARCH, mlflow_run=ref.run_id)
    return ref


def scheduling(config: RunConfig, space: Space, schedule: str, trials: int) -> tuple[TrialScheduler, Any]:
    """Ray Tune's scheduler, and where the points come from."""
    first = first_points(config, space)
    if schedule == "pbt":
        return population(config, space), sampled(config, first)
    return asha(config, space) if schedule == "asha" else FIFOScheduler(), proposer(config, space, first, trials)


def check_population(schedule: str, trials: int, room: Capacity) -> None:
    """A population trains all at once; ConfigError where it has no room."""
    if schedule == "pbt" and room.trials < trials:
        raise ConfigError(
            f"population based training runs all {trials} trials at once, and there is room for {room.trials}; lower "
            "--trials, resources.workers or resources.cpus_per_worker"
        )


def trial_base_config(config: RunConfig, room: Capacity, schedule: str) -> RunConfig:
    """The configuration that trials vary, with the resources of one.

    A population saves whenever it is compared, and keeps each save for PBT_KEPT rounds: as long may a trial take that
    starts again from another's.
    """
    pbt = {"every_epochs": interval(config), "every_steps": None, "keep": max(PBT_KEPT, config.checkpoint.keep)}
    saves = pbt if schedule == "pbt" else {}
    return config.model_copy(
        update={
            "resources": config.resources.model_copy(update={"cpus_per_worker": room.cpus, "gpus": room.gpus}),
            "checkpoint": config.checkpoint.model_copy(update=saves),
        }
    )


def opening(job: TrialJob, room: Capacity, trials: int, schedule: str) -> str:
    """The first line of a search."""
    most, goals = job.config.resources.worker_range.max, job.space.objectives
    each = f"{most} worker{'s' if most > 1 else ''} of {room.cpus:g} CPUs{' and a GPU' if room.gpus else ''}"
    how = "none is stopped early"
    if schedule == "pbt":
        how = f"the worst take over from the best every {interval(job.config)} epochs"
    elif schedule == "asha" and len(goals) == 1 and (stages := rungs(job.config, job.space)):
        how = f"poor ones are stopped after epoch {' or '.join(map(str, stages))}"
    return (
        f"search {job.config.name}: {trials} trials of {job.config.optim.epochs} epochs, "
        f"{min(room.trials, trials)} at a time, each with {each}; "
        f"{', '.join(f'{metric} ({mode})' for metric, mode in goals)}; {how}"
    )


def run_trials(
    job: TrialJob, folder: RunFolder, trials: int, room: Capacity, logbook: Logbook, proposals: Any
) -> list[Trial]:
    """Ray Tune's own run; it goes on from the state that an earlier one left in the folder."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "optuna"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the logbook tells it in fewer words

    def trial(settings: dict[str, Any]) -> None:
        run_trial(settings, job)

    metric, mode = job.space.objectives[0] if len(job.space.objectives) == 1 else (None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hints on Tune's options, and Optuna's on experimental ones
        analysis = tune.run(
            trial,
            name=TUNE,
            storage_path=folder.root,
            storage_filesystem=folder.files,
            config=dict(job.space.domains),
            num_samples=trials,
            metric=metric,
            mode=mode,
            search_alg=proposals,
            scheduler=logbook.scheduler,
            resources_per_trial={"cpu": TRIAL_CPUS},
            max_concurrent_trials=room.trials if isinstance(proposals, Searcher) else None,
            max_failures=RETRIES,
            raise_on_failed_trial=False,
            callbacks=[logbook],
            verbose=0,
            trial_dirname_creator=lambda trial: trial.trial_id,
            resume_config=ResumeConfig() if has_state(folder) else None,
        )
    return analysis.trials


def has_state(folder: RunFolder) -> bool:
    """Whether Tune has saved anything to go on from."""
    below = folder.files.get_file_info(FileSelector(f"{folder.root}/{TUNE}", allow_not_found=True))
    return any(info.base_name.startswith("experiment_state") for info in below)


def concluded(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary; RunFailed when it has no best trial."""
    if summary["best"] is None:
        reasons = dict.fromkeys(row["reason"] for row in summary["trials"])
        raise RunFailed(f"no trial of search {summary['search']} came to anything: {'; '.join(reasons)}")
    return summary
