"""What each Ray Train worker runs: the EM loop, top to bottom."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device
from torch import Tensor, nn

from pipeline.alarms import RULES, Alarm, all_alarms, judge, new_alarms, skipped_steps
from pipeline.build import build_run_optimizer, build_run_schedules, data_parallel
from pipeline.clustering.label_free import LABEL_FREE_WEIGHTS, label_free_score
from pipeline.clustering.scores import class_table, contingency_scores
from pipeline.collectives import all_sum, from_rank_zero, rank, world_size
from pipeline.data.loader import Batch, Inputs
from pipeline.data.read import read_labels
from pipeline.data.sampling import sampling_weights
from pipeline.errors import CheckpointError, Diverged
from pipeline.features.inputs import FeatureSource
from pipeline.inference.embedding import write_features
from pipeline.keyed_random import Stream, normal
from pipeline.method.digpro import StepLosses
from pipeline.method.optimizer import set_learning_rates, step_if_finite
from pipeline.method.schedules import Schedules
from pipeline.plan import has_estep, is_balanced
from pipeline.tracking import RunWriter, spool_path
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.checkpoint import (
    RESTORE,
    TrainState,
    load_weights,
    mean_over_workers,
    read_agreed,
    read_other_run,
    restore,
    save_state,
)
from pipeline.training.estep import encode_all, estimate, mean_over_views
from pipeline.training.feed import open_feed
from pipeline.training.health import non_finite, rank_spread
from pipeline.training.job import Job
from pipeline.training.monitors import Monitors, make_monitors, monitor_metrics
from pipeline.training.precision import settle_job
from pipeline.training.probe import Probe, Views, label_free_metrics
from pipeline.training.profile import StepProfiler
from pipeline.training.progress import Reporter
from pipeline.training.rollback import HALTING, Halt, read_rollbacks
from pipeline.training.threads import use_given_cpus
from pipeline.training.timing import EpochTimer

SYNC, ASYNC = CheckpointUploadMode.SYNC, CheckpointUploadMode.ASYNC
LOSSES = tuple("loss" if name == "total" else f"loss_{name}" for name in StepLosses._fields)
URGENT_STEPS = 10  # between two checks for preemptions and requests: each is a barrier, and the notice is 30 s
FINITE_STEPS = 50  # between two checks that losses and weights are finite: each waits for the device


@dataclass
class Run:
    """All that one worker holds."""

    job: Job
    inputs: Inputs
    views: Views
    preprocess: Callable[[Tensor], Tensor]
    probe: Probe | None
    """None when label-free metrics are switched off."""
    labels: np.ndarray[Any, Any] | None
    """True classes (own rows,), -1 where unknown; None on all workers when no image has one."""
    state: TrainState
    step_model: nn.Module
    schedules: Schedules
    timer: EpochTimer
    reporter: Reporter
    profiler: StepProfiler | None = None
    """None when no steps are recorded."""
    monitors: Monitors | None = None
    """None when monitors are switched off, or no image has a class."""
    preempted_nodes: list[str] = field(default_factory=list)
    """Nodes whose preemption has been answered by a checkpoint."""


def train_worker(settings: dict[str, Job]) -> dict[str, Any]:
    """Run or resume one training run, `settings["job"]`; returns the last epoch's metrics, or what halted it."""
    run = build_run(settings["job"])
    try:
        with run.reporter:
            train(run)
    except Halt as halt:
        return halt.returned()
    if run.profiler:
        run.profiler.stop()
    return run.state.history[-1]


def train(run: Run) -> None:
    """All epochs that are left."""
    if not resume(run):
        run_estep(run)
        finish_epoch(run)
    while run.state.epoch < run.job.config.optim.epochs:
        train_epoch(run)
        if has_estep(run.job.config, run.state.epoch):
            run_estep(run)
        finish_epoch(run)


def build_run(job: Job) -> Run:
    """Model, data and bookkeeping of this worker."""
    keep_freed_memory()
    use_given_cpus()
    device = get_device()
    job = settle_job(job, device)
    config, plan = job.config, job.plan
    feed = open_feed(job, device)
    own = feed.inputs.own
    labels = read_labels(config.data.path, own.start, own.stop)
    optimizer = build_run_optimizer(config, feed.model)
    return Run(
        job=job,
        inputs=feed.inputs,
        views=feed.views,
        preprocess=feed.preprocess,
        probe=feed.probe,
        labels=labels,
        state=TrainState(feed.model, optimizer, zero_losses(device), backbone=feed.backbone),
        step_model=data_parallel(feed.model),
        schedules=build_run_schedules(config, plan.steps_per_epoch),
        timer=EpochTimer(device),
        reporter=Reporter(open_writer(job), job.board) if rank() == 0 else Reporter(),
        profiler=StepProfiler(job.folder, config.profile.steps) if config.profile.steps else None,
        monitors=make_monitors(labels, own, config, device),
    )


def zero_losses(device: torch.device) -> dict[str, Tensor]:
    """The sums of an epoch that has not begun."""
    return {name: torch.zeros((), dtype=torch.float64, device=device) for name in LOSSES}


def open_writer(job: Job) -> RunWriter:
    """MLflow's writer of this run."""
    return RunWriter(job.tracking, spool_path(job.folder), system_metrics=job.config.tracking.system_metrics)


def resume(run: Run) -> bool:
    """Continue from the newest sound checkpoint of this run; False when there is none."""
    reported = ray.train.get_all_reported_checkpoints()
    values = read_agreed([report.checkpoint for report in reversed(reported)])
    if values is None and reported:
        raise CheckpointError(
            f"none of the {len(reported)} checkpoints in {run.job.folder.path} can be read; {RESTORE}"
        )
    if values is None:
        if run.job.weights_from is not None:
            load_weights(run.state.model, read_other_run(run.job.weights_from))
        return False
    restore(run.state, values, run.inputs.own)
    workers = f"{world_size()} worker{'s' if world_size() > 1 else ''}"
    run.reporter.resumed(
        run.state.history, f"resumed after epoch {run.state.epoch}, step {run.state.step}, on {workers}"
    )
    run.timer.restart()
    return True


def train_epoch(run: Run, between_steps: Callable[[Run], None] | None = None) -> None:
    """The M-step: one pass over the images, or the rest of one that was interrupted.

    `between_steps` is called after every step but the last; by default it saves where that is due.
    """
    run.step_model.train()
    steps = run.job.plan.steps_per_epoch
    for batch in run.timer.timed(epoch_batches(run)):
        with run.timer.time("step", on_device=True):
            take_step(run, batch)
        if run.profiler:
            run.profiler.step()
        if run.state.step % FINITE_STEPS == 0 or run.state.step == steps:
            check_run_finite(run)
        if run.state.step < steps:
            (between_steps or save_inside_epoch)(run)
    run.state.epoch, run.state.step = run.state.epoch + 1, 0


def epoch_batches(run: Run) -> Iterator[Batch]:
    """The batches that the epoch still has; its first one again and again when only computing is measured."""
    batches = run.inputs.epoch(run.state.epoch, run.state.step, draw_weights(run))
    if run.job.config.profile.only != "compute":
        return batches
    return repeat(next(batches), run.job.plan.steps_per_epoch - run.state.step)


def take_step(run: Run, batch: Batch) -> None:
    """A training step; only counted when the feed alone is measured."""
    if run.job.config.profile.only == "data":
        run.state.step += 1
    else:
        train_step(run, batch)


def draw_weights(run: Run) -> Tensor | None:
    """How often each own image is drawn in this epoch, by its pseudo-label; None when each is taken once."""
    config, pseudo = run.job.config, run.state.pseudo
    if not is_balanced(config, run.state.epoch):
        return None
    assert pseudo is not None
    return sampling_weights(pseudo.labels, pseudo.sizes(), config.optim.balance)


def save_inside_epoch(run: Run) -> None:
    """A checkpoint when the configuration asks for one here, or when a node or the driver is about to go."""
    every = run.job.config.checkpoint.every_steps
    urgent = run.state.step % URGENT_STEPS == 0 and save_is_urgent(run)
    if urgent or (every and run.state.step % every == 0):
        check_run_finite(run)
        report(run, {"epoch": run.state.epoch, "step": run.state.step}, save=SYNC if urgent else ASYNC)


def save_is_urgent(run: Run) -> bool:
    """Whether a node or the driver is about to go. All workers agree."""
    return preemption_announced(run) or checkpoint_requested(run)


def preemption_announced(run: Run) -> bool:
    """Whether a further node of the workers is announced to go since the last check. All workers agree."""
    info = ray.train.get_preemption_info()
    before, run.preempted_nodes = run.preempted_nodes, info.preempted_node_ids if info else []
    return not set(run.preempted_nodes) <= set(before)


def checkpoint_requested(run: Run) -> bool:
    """Whether the driver, which is about to end, asks rank 0 for a checkpoint. All workers agree."""
    wanted = torch.tensor(float(run.reporter.checkpoint_requested()), device=run.state.model.groups.features.device)
    return bool(all_sum(wanted))


def check_run_finite(run: Run) -> None:
    """Halt, or raise Diverged, before what is not finite reaches a checkpoint; on all workers alike.

    Steps that were skipped have damaged nothing: without a level that halts, the run continues.
    """
    state, level = run.state, run.job.config.alarms.not_finite
    where = f"in epoch {state.epoch + 1}, at or before step {state.step}"
    damaged = non_finite(state.loss_sums, [*state.model.parameters(), *state.model.buffers()], where)
    reason = damaged or skipped_steps(int(state.skipped))
    if reason and level in HALTING:
        raise halt(run, Alarm(state.epoch + 1, "not_finite", reason))
    if damaged:
        raise Diverged(damaged)


def train_step(run: Run, batch: Batch) -> None:
    """Views, losses, gradients, one move of the optimizer."""
    state, config, plan = run.state, run.job.config, run.job.plan
    at = state.epoch * plan.steps_per_epoch + state.step
    warmup = state.epoch < config.optim.warmup_epochs
    assert state.pseudo is not None
    set_learning_rates(state.optimizer, float(run.schedules.lr[at]), float(run.schedules.predictor_lr[at]))
    losses = run.step_model(
        *run.views(batch.inputs, batch.keys, state.epoch),
        state.pseudo.of(batch.index),
        target_momentum=float(run.schedules.target_momentum[at]),
        noise=None if warmup else latent_noise(run, batch.keys),
        warmup=warmup,
        group_centers=state.model.bank_centers(seed=at + 1) if plan.resets_groups(at + 1) else None,
        rows=batch.rows,
    )
    state.optimizer.zero_grad()
    losses.total.backward()
    finite = step_if_finite(state.optimizer)
    state.skipped += ~finite
    for total, loss in zip(state.loss_sums.values(), losses, strict=True):
        total += torch.where(finite, loss.detach(), 0)
    state.step += 1


def latent_noise(run: Run, keys: Tensor) -> Tensor | None:
    """Noise (2, B, D) on the online features of both views, each image's own; None when it is switched off."""
    config = run.job.config
    if config.method.latent_noise == 0:
        return None
    draws = [
        normal(config.seed, run.state.epoch, keys, stream, config.model.feature_size)
        for stream in (Stream.NOISE_A, Stream.NOISE_B)
    ]
    return config.method.latent_noise * torch.stack(draws)


def run_estep(run: Run) -> None:
    """New pseudo-labels; their health, and their scores without and with classes, become metrics of the epoch."""
    state, job = run.state, run.job
    last = state.epoch == job.config.optim.epochs
    if last:  # what it finds is what the model says that the run leaves, which computes in float32; no step follows
        state.model.autocast = None
    with run.timer.time("estep"):
        features, metrics = estimate_labels(run)
    with run.timer.time("evaluate"):
        metrics |= score_labels(run, features, metrics)
    assert state.pseudo is not None
    if last:  # before the last checkpoint, so that who has that has these
        with run.timer.time("checkpoint"):
            write_features(job.folder, features, state.pseudo.centers, state.pseudo.own)
    if run.monitors:
        with run.timer.time("monitor"):
            metrics |= monitor_metrics(run.monitors, features, job.config, state.epoch)
    spread = {"group_rank_spread": rank_spread(state.model.groups.features)}
    state.history.append({"epoch": state.epoch, **metrics, **spread})


def estimate_labels(run: Run) -> tuple[Tensor, dict[str, float]]:
    """New pseudo-labels; returns the features (own rows, D) that they come from, and their health."""
    state, config, plan = run.state, run.job.config, run.job.plan
    features = encode_all(state.model, run.inputs, run.preprocess)
    state.pseudo, health = estimate(
        features,
        run.inputs.own,
        plan.num_clusters,
        config.estep,
        config.seed,
        state.pseudo,
        fitted=fitted_features(run, features),
    )
    return features, health


def fitted_features(run: Run, features: Tensor) -> Tensor | None:
    """What k-means fits its centres on in place of the features (own rows, D); None where it is these."""
    if not run.job.config.estep.fit_views:
        return None
    assert isinstance(run.inputs.source, FeatureSource)
    return mean_over_views(run.state.model, run.inputs.source, run.preprocess, features)


def score_labels(run: Run, features: Tensor, health: Mapping[str, float]) -> dict[str, float]:
    """Label-free metrics of the pseudo-labels of features (own rows, D), and scores where classes are known.

    On rank 0; other workers have none. The first E-step agrees with nothing, and so has no `label_free`.
    """
    found, scores = run.state.pseudo, dict[str, float]()
    assert found is not None
    if run.probe:
        scores = label_free_metrics(run.state.model, run.probe, features, found)
    if LABEL_FREE_WEIGHTS.keys() <= {*health, *scores}:
        scores["label_free"] = label_free_score({**health, **scores})
    if run.labels is not None:
        table = class_table(torch.as_tensor(run.labels, device=features.device), found.labels, len(found.centers))
        scores |= {} if table is None else contingency_scores(table)
    return scores


def finish_epoch(run: Run) -> None:
    """Complete the epoch's metrics, send them out, and save when it is time."""
    metrics = complete_epoch(run)
    run.reporter.epoch(metrics)
    raise_alarms(run)
    report(run, metrics, save=save_after_epoch(run))


def complete_epoch(run: Run) -> dict[str, float]:
    """The epoch's metrics, with losses, rates and times; those of the next one start from zero."""
    state, config = run.state, run.job.config
    if state.history[-1]["epoch"] != state.epoch:  # an epoch without E-step
        state.history.append({"epoch": state.epoch})
    metrics = state.history[-1]
    if state.epoch:
        metrics |= mean_losses(run)
        metrics["steps_skipped"] = float(state.skipped)
        state.skipped.zero_()
        metrics["lr"] = float(run.schedules.lr[state.epoch * run.job.plan.steps_per_epoch - 1])
    metrics |= {f"seconds_{entry}": seconds for entry, seconds in run.timer.page().items()}
    if state.epoch:  # of the images that this process saw: a resumed epoch has fewer
        metrics["images_per_second"] = run.timer.batches * config.optim.batch_size / metrics["seconds_epoch"]
    run.timer.restart()
    return metrics


def save_after_epoch(run: Run) -> CheckpointUploadMode | None:
    """How the state is saved now that an epoch has ended; None where no save is due."""
    config, epoch = run.job.config, run.state.epoch
    if epoch == config.optim.epochs or save_is_urgent(run):
        return SYNC
    return ASYNC if epoch % config.checkpoint.every_epochs == 0 else None


def raise_alarms(run: Run) -> None:
    """Report what is wrong with the epoch, once for as long as it lasts, and halt where a level asks for it."""
    history, facts = run.state.history, run.job.alarm_facts
    found = judge(history, facts)
    if new := new_alarms(history, facts):
        tell(run, [f"warning: after epoch {alarm.epoch} {alarm.text}" for alarm in new])
    levels = run.job.config.alarms.levels
    if set(HALTING) & set(levels.values()):
        halting = sorted((a for a in found if levels[a.kind] in HALTING), key=lambda a: HALTING.index(levels[a.kind]))
        if agreed := agree(run, halting[0] if halting else None):
            raise halt(run, agreed)


def tell(run: Run, lines: list[str], *kinds: str) -> None:
    """Show lines, and tag MLflow's run with all kinds of alarm until now, those of a roll back too."""
    if rank() == 0:
        before = [rollback["kind"] for rollback in read_rollbacks(run.job.folder)]
        found = [alarm.kind for alarm in all_alarms(run.state.history, run.job.alarm_facts)]
        run.reporter.alarms(lines, dict.fromkeys([*before, *found, *kinds]))


def agree(run: Run, alarm: Alarm | None) -> Alarm | None:
    """Rank 0's alarm on every worker: it alone has the scores that are judged. Only the text is each worker's own."""
    kinds = ["", *RULES]
    number = torch.tensor(kinds.index(alarm.kind if alarm else ""), device=run.state.skipped.device)
    kind = kinds[int(from_rank_zero(number))]
    return Alarm(run.state.epoch, kind, alarm.text if alarm else "") if kind else None


def halt(run: Run, alarm: Alarm) -> Halt:
    """What to raise, after a line that says so."""
    level = run.job.config.alarms.levels[alarm.kind]
    tell(run, [f"alarms.{alarm.kind}={level} halts the run at epoch {alarm.epoch}: {alarm.text}"], alarm.kind)
    return Halt(level, alarm)


def mean_losses(run: Run) -> dict[str, float]:
    """Means over the epoch's steps that were not skipped, and over the workers; the sums start again from zero."""
    steps = max(run.job.plan.steps_per_epoch - int(run.state.skipped), 1)
    sums = mean_over_workers(run.state.loss_sums)
    for total in run.state.loss_sums.values():
        total.zero_()
    return {name: value / steps for name, value in sums.items()}


def report(run: Run, metrics: dict[str, Any], *, save: CheckpointUploadMode | None) -> None:
    """Hand the metrics, and a checkpoint where one is to be saved, to Ray Train; a barrier over the workers.

    ASYNC uploads while training continues, in the order of the reports. The last checkpoint of a run, and one that
    must be there before a node goes, are SYNC. So metrics alone are ASYNC too: they come after the uploads before them.
    """
    with run.timer.time("checkpoint"):
        ray.train.report(
            metrics,
            checkpoint=write_checkpoint(run) if save else None,
            checkpoint_upload_mode=save or ASYNC,
            delete_local_checkpoint_after_upload=True,
        )


def write_checkpoint(run: Run) -> Checkpoint | None:
    """The state in a temporary folder, on rank 0; all workers call it, for what is spread over them."""
    folder = tempfile.mkdtemp(dir=Path.cwd())  # Ray's session folder, which goes when the cluster goes
    save_state(run.state, run.job.config, Path(folder))
    if rank() == 0:
        return Checkpoint.from_directory(folder)
    Path(folder).rmdir()
    return None
