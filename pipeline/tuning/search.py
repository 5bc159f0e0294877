"""The driver of a search: a configuration and a space in, the best configuration out."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pyarrow.fs import FileSelector
from ray import tune
from ray.tune import ResumeConfig
from ray.tune.experiment import Trial

from pipeline.backbone_features.build_cache import ensure_cache
from pipeline.backbone_features.cache import decides_features
from pipeline.checks.capacity import Capacity, search_capacity
from pipeline.checks.nodes import check_nodes, node_resources
from pipeline.cluster import connect
from pipeline.config.identity import derive_name, fingerprint, result_settings
from pipeline.config.loading import get_setting, with_settings
from pipeline.config.models import RunConfig
from pipeline.data.read import has_labels
from pipeline.data.shards import Manifest, validate_shards
from pipeline.errors import ConfigError, RunFailed
from pipeline.lease import hold
from pipeline.plan import make_plan
from pipeline.progress import Echo
from pipeline.runs.identity import SUMMARY, run_folder
from pipeline.runs.train import load_or_ingest, resolve
from pipeline.storage import Folder, check_writable
from pipeline.tracking import RECORD, RunRef, end_run, load_ref, open_run, spool_path, tracking_uri
from pipeline.training.precision import begun_precision, keep_precision
from pipeline.tuning.results import write_results
from pipeline.tuning.space import SCORES, Space, check_points, first_points
from pipeline.tuning.strategy import Strategy, make_strategy
from pipeline.tuning.trial import SearchJob, run_trial
from pipeline.tuning.trials import Trials

SEARCH, TRIALS, TUNE = "search.json", "trials", "tune"  # in the folder of a search
TRIAL_MEMORY = 1 << 20  # that its actor reserves: it must reserve something; part of a CPU could cost a worker its node
RETRIES = 1  # of a trial whose actor was lost with its node
TUNE_SWITCHES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our callback and MLflow have all that they would write
    "TUNE_GLOBAL_CHECKPOINT_S": "5",  # between two saves of Tune's state: what a kill can cost
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a line with the reason is enough
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output of Tune can be silenced, the new one prints tables all the same
}


def search(
    config: RunConfig,
    space: Space,
    *,
    label: str = "run",
    trials: int = 16,
    scheduler: str = "asha",
    concurrent: int | None = None,
    echo: Echo = print,
) -> dict[str, Any]:
    """Search to the end, or resume where an earlier call with the same arguments stopped.

    Parameters
    ----------
    config : RunConfig
        The base of all trials, with every setting that is not searched. `resources` are those of each trial.
    space : Space
    label : str
        First part of the search's name where the configuration gives none: usually the preset.
    trials : int
    scheduler : "asha" or "none"
    concurrent : int, optional
        Trials at a time; as many as fit when absent.
    echo : callable
        Takes the lines of progress.

    Returns
    -------
    dict
        The summary, as in summary.json of the search's folder.

    Raises
    ------
    ConfigError, DataError
        For errors found before anything starts.
    RunFailed
        When every trial failed.
    """
    identity = search_identity(config, space, trials, scheduler)
    config = resolve_search(config, f"{label}-{space.name}", identity)
    trial_config = with_settings(config, space.settings, f"SETTINGS of space {space.name}")
    for line in overruled(config, space):
        echo(line)
    strategy = make_strategy(scheduler, trial_config, space, trials, first_points(trial_config, space))
    check_writable(config.storage)
    manifest = load_or_ingest(config, echo)
    check_points(trial_config, space, manifest)
    with hold(run_folder(config).make()):
        folder = claim_search(config, identity | {"images": manifest.digest})
        if (summary := folder.read(SUMMARY)) is not None:
            echo(f"search {config.name} is already finished; to start a new one, give another name (--set name=...)")
            return successful(summary)
        check_objectives(trial_config, space)
        check_cache_shared(trial_config, space)
        plan = SearchPlan(config, trial_config, space, manifest, strategy, trials, label)
        return successful(run_search(plan, folder, concurrent, echo))


def overruled(config: RunConfig, space: Space) -> Iterator[str]:
    """A line for each setting of the configuration that the space's SETTINGS replace."""
    values = config.model_dump(mode="json")
    for key, value in space.settings.items():
        if (before := get_setting(values, key)) != value:
            yield (
                f"trials use {key}={value} instead of {before}, because SETTINGS in {space.file} has it; to use "
                f"{before}, change it there"
            )


@dataclass(frozen=True)
class SearchPlan:
    """A search that has passed its checks.

    Attributes
    ----------
    config : RunConfig
        As given, with the search's name and absolute paths.
    trial_config : RunConfig
        The same with the space's settings, which trials vary.
    trials : int
        How many there are in all.
    """

    config: RunConfig
    trial_config: RunConfig
    space: Space
    manifest: Manifest
    strategy: Strategy
    trials: int
    label: str


def run_search(plan: SearchPlan, folder: Folder, concurrent: int | None, echo: Echo) -> dict[str, Any]:
    """Run the trials and write the results; returns the summary."""
    validate_shards(plan.config.data.path)
    capacity = connect_and_measure(plan, concurrent)
    parent = open_parent_run(plan.config, folder, plan.space)
    job = SearchJob(
        config=limit_trial(plan.trial_config, capacity),
        space=plan.space,
        manifest=plan.manifest,
        feature_cache=shared_cache(plan, folder, echo),
        trials_path=folder.file(TRIALS),
        parent_run=parent.run_id,
        label=plan.label,
    )
    echo(first_message(job, plan.strategy, plan.trials, capacity))
    observer = Trials(plan.space, job.config.optim.epochs, plan.trials, plan.strategy.scheduler, echo)
    try:
        ended = run_tune(job, folder, plan.strategy, observer, capacity)
    except KeyboardInterrupt:
        end_interrupted_runs(job, folder, parent, observer.numbers.keys() - observer.ended)
        raise
    return write_results(plan.config, job, folder, parent, observer.rows(ended))


def end_interrupted_runs(job: SearchJob, folder: Folder, parent: RunRef, trials: Iterable[str]) -> None:
    """Set MLflow's runs of an interrupted search, and of those `trials` that have not ended, to KILLED."""
    for trial in trials:
        home = job.folder(trial)
        if home.read(RECORD) is not None:
            end_run(load_ref(home, job.config.tracking.uri), spool_path(home), "KILLED")
    end_run(parent, spool_path(folder), "KILLED")


def search_identity(config: RunConfig, space: Space, trials: int, scheduler: str) -> dict[str, Any]:
    """Everything that decides what a search does, as plain values: two calls with the same values are one search."""
    facts = {"settings": result_settings(config), **space.as_dict(), "trials": trials, "schedule": scheduler}
    return dict(json.loads(json.dumps(facts)))


def resolve_search(config: RunConfig, label: str, identity: dict[str, Any]) -> RunConfig:
    """The configuration with the search's name, and with places that mean the same in every process."""
    digest = hashlib.sha256(json.dumps([fingerprint(config), identity], sort_keys=True).encode()).hexdigest()[:8]
    name = config.name or derive_name(label, digest)
    config = resolve(config.model_copy(update={"name": name}), label)
    if not config.tracking.enabled:
        return config
    tracking = config.tracking.model_copy(update={"uri": tracking_uri(config.tracking.uri, config.storage)})
    return config.model_copy(update={"tracking": tracking})


def claim_search(config: RunConfig, identity: dict[str, Any]) -> Folder:
    """The folder of a search, new or already used by the same search.

    Raises
    ------
    ConfigError
        When another search already has the name; the message says what differs.
    """
    folder = run_folder(config).make()
    before = folder.read(SEARCH) or {}
    started = before.keys() & {"started", "mlflow_run"}  # one that failed its checks does not keep the name
    if started and (changed := [key for key in identity if before["search"].get(key) != identity[key]]):
        raise ConfigError(
            f"search {config.name!r} in {config.storage} was started with a different value of {', '.join(changed)}. "
            "Give another name (--set name=...), or the values that it was started with"
        )
    folder.update(SEARCH, search=identity)
    return folder


def check_objectives(config: RunConfig, space: Space) -> None:
    """ConfigError for an objective that no trial could report."""
    if (scores := set(space.metrics) & set(SCORES)) and not has_labels(config.data.path):
        raise ConfigError(
            f"objective {', '.join(sorted(scores))} needs classes, and {config.data.path} has none; use label_free"
        )
    if "label_free" in space.metrics and config.estep.probe == 0:
        raise ConfigError("objective label_free needs estep.probe, which is 0; set it to its default, 512")


def shared_cache(plan: SearchPlan, folder: Folder, echo: Echo) -> str | None:
    """Folder of the backbone features that all trials share, computed if missing; None without a frozen backbone."""
    if not plan.trial_config.model.freeze:
        return None
    shared, cache = ensure_cache(plan.trial_config, plan.manifest, echo, begun=begun_precision(folder))
    keep_precision(folder, cache.key.precision)
    return shared.path


def check_cache_shared(config: RunConfig, space: Space) -> None:
    """ConfigError for a space in which trials could not share cached backbone features."""
    if config.model.freeze and (varied := sorted(filter(decides_features, space.domains))):
        raise ConfigError(
            f"space {space.name} varies {', '.join(varied)}, but with model.freeze=true all trials share cached "
            "features that depend on this; remove it from the space"
        )


def connect_and_measure(plan: SearchPlan, concurrent: int | None) -> Capacity:
    """Connect to Ray, check its nodes, and find out how many trials fit at a time."""
    connect()
    check_nodes(plan.config)
    mode = make_plan(plan.trial_config, plan.manifest).mode
    return search_capacity(plan.trial_config, mode, node_resources(), plan.trials, concurrent)


def open_parent_run(config: RunConfig, folder: Folder, space: Space) -> RunRef:
    """MLflow's run of the search, whose children are the trials."""
    tracking = open_run(config, folder, tags={"digpro.search": space.name})
    folder.update(SEARCH, started=True)
    return tracking


def limit_trial(config: RunConfig, capacity: Capacity) -> RunConfig:
    """The configuration that trials vary, with the resources of one trial."""
    resources = {"cpus_per_worker": capacity.cpus, "gpus": capacity.gpus}
    return config.model_copy(update={"resources": config.resources.model_copy(update=resources)})


def first_message(job: SearchJob, strategy: Strategy, trials: int, capacity: Capacity) -> str:
    """What will happen, in a line."""
    workers = job.config.resources.worker_range.max
    gpu = " and a GPU" if capacity.gpus else ""
    each = f"{workers} worker{'s' if workers > 1 else ''} of {capacity.cpus:g} CPUs{gpu}"
    goals = ", ".join(f"{metric} ({mode})" for metric, mode in job.space.objectives)
    return (
        f"search {job.config.name}: {trials} trials of {job.config.optim.epochs} epochs, "
        f"{min(capacity.trials, trials)} at a time, each with {each}; {goals}; {strategy.sentence}"
    )


def run_tune(job: SearchJob, folder: Folder, strategy: Strategy, observer: Trials, capacity: Capacity) -> list[Trial]:
    """Run all trials by Ray Tune, or resume from the state that an earlier run left in the folder."""
    silence_tune()

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
            num_samples=observer.count,
            metric=metric,
            mode=mode,
            search_alg=strategy.proposals,
            scheduler=strategy.scheduler,
            resources_per_trial={"memory": TRIAL_MEMORY},
            max_concurrent_trials=capacity.trials,
            max_failures=RETRIES,
            raise_on_failed_trial=False,
            callbacks=[observer],
            verbose=0,
            trial_dirname_creator=lambda trial: trial.trial_id,
            resume_config=ResumeConfig() if has_state(folder) else None,
        )
    return list(analysis.trials)


def silence_tune() -> None:
    """Leave the terminal to our own lines; a user's own settings win."""
    for name, value in TUNE_SWITCHES.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "optuna"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def has_state(folder: Folder) -> bool:
    """Whether Tune has saved anything to resume from."""
    below = folder.files.get_file_info(FileSelector(f"{folder.root}/{TUNE}", allow_not_found=True))
    return any(info.base_name.startswith("experiment_state") for info in below)


def successful(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary of a search that has a best trial; RunFailed, with the reasons, when it has none."""
    if summary["best"] is None:
        reasons = dict.fromkeys(row["reason"] for row in summary["trials"])
        raise RunFailed(
            f"every trial of search {summary['search']} failed: {'; '.join(reasons)}. Change the space, and give "
            "another name (--set name=...)"
        )
    return summary
