"""What each Ray Train worker runs: the EM loop, top to bottom."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device
from torch import Tensor, nn

from pipeline.build import build_model, build_run_optimizer, build_run_schedules, build_views, data_parallel
from pipeline.clustering.label_free import LABEL_FREE_WEIGHTS, label_free_score
from pipeline.clustering.scores import clustering_scores
from pipeline.collectives import all_sum, rank, world_size
from pipeline.config.models import RunConfig
from pipeline.data.loader import Batch, Images
from pipeline.data.read import read_labels
from pipeline.data.shards import Manifest
from pipeline.data.streaming import worker_images
from pipeline.data.views import TwoViews
from pipeline.errors import Diverged
from pipeline.keyed_random import normal
from pipeline.method.optimizer import set_learning_rates
from pipeline.method.schedules import Schedules
from pipeline.plan import cluster_count, steps_per_epoch
from pipeline.tracking import RunWriter
from pipeline.training.checkpoint import TrainState, read_handed_on, read_newest, restore
from pipeline.training.checkpoint import save as save_state
from pipeline.training.estep import all_features, estimate, rank_spread
from pipeline.training.probe import Probe, objectives, read_probe
from pipeline.training.progress import Reporter
from pipeline.training.run_folder import RunFolder
from pipeline.training.timing import Ledger

SYNC, ASYNC = CheckpointUploadMode.SYNC, CheckpointUploadMode.ASYNC
LOSSES = ("loss_instance", "loss_prototype", "loss_group", "loss")
NOISE_STREAMS = (2, 3)  # the views draw from streams 0 and 1
PREEMPTION_STEPS = 10  # between two looks for announced preemptions: a look is a barrier, a warning comes 30 s ahead


@dataclass
class Run:
    """All that one worker holds."""

    config: RunConfig
    manifest: Manifest
    images: Images
    views: TwoViews
    probe: Probe | None
    """None when label-free objectives are switched off."""
    labels: np.ndarray[Any, Any] | None
    """True classes (N,), on rank 0 of a labelled set."""
    state: TrainState
    step_model: nn.Module
    schedules: Schedules
    steps: int
    """Per epoch."""
    ledger: Ledger
    reporter: Reporter
    leaving: list[str] = field(default_factory=list)
    """Nodes whose preemption has been answered by a checkpoint."""


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Run or resume one training run; returns the last epoch's metrics.

    `job` is what `pipeline.training.trainer` hands over: the configuration and manifest as plain values, the data
    mode, and where to report to.
    """
    run = build_run(job)
    with run.reporter:
        if not resume(run, job["start_from"]):
            run_estep(run)
            finish_epoch(run)
        while run.state.epoch < run.config.optim.epochs:
            train_epoch(run)
            if run.state.epoch % run.config.estep.every == 0 or run.state.epoch == run.config.optim.epochs:
                run_estep(run)
            finish_epoch(run)
    return run.state.history[-1]


def build_run(job: dict[str, Any]) -> Run:
    """Model, data and bookkeeping of this worker."""
    config, manifest = RunConfig.model_validate(job["config"]), Manifest.model_validate(job["manifest"])
    device = get_device()
    model = build_model(config, cluster_count(config, manifest), device)
    steps = steps_per_epoch(config, manifest)
    losses = torch.zeros(len(LOSSES), dtype=torch.float64, device=device)
    return Run(
        config=config,
        manifest=manifest,
        images=worker_images(job["mode"], config, manifest, device),
        views=build_views(config, manifest),
        probe=read_probe(config, manifest, device),
        labels=read_labels(config.data.path) if rank() == 0 else None,
        state=TrainState(model, build_run_optimizer(config, model), losses),
        step_model=data_parallel(model),
        schedules=build_run_schedules(config, steps),
        steps=steps,
        ledger=Ledger(),
        reporter=Reporter(open_writer(job, config), job["board"]) if rank() == 0 else Reporter(),
    )


def open_writer(job: dict[str, Any], config: RunConfig) -> RunWriter:
    """MLflow's writer of this run."""
    assert config.name is not None
    spool = RunFolder(config.storage, config.name).spool
    return RunWriter(job["tracking"], spool, system_metrics=config.tracking.system_metrics)


def resume(run: Run, start_from: str | None) -> bool:
    """Continue from the newest sound checkpoint of this run, or else from another run's; False when there is none."""
    reported = ray.train.get_all_reported_checkpoints()
    newest_first = [report.checkpoint for report in reversed(reported)]
    values = read_newest(newest_first)
    if values is None and start_from is not None:
        values = read_handed_on(start_from)
    if values is not None:
        restore(run.state, values)
        workers = f"{world_size()} worker{'s' if world_size() > 1 else ''}"
        run.reporter.resumed(
            run.state.history, f"resumed after epoch {run.state.epoch}, step {run.state.step}, on {workers}"
        )
    return values is not None


def train_epoch(run: Run) -> None:
    """The M-step: one pass over the images, or the rest of one that was interrupted."""
    run.step_model.train()
    batches = run.images.epoch(run.state.epoch, run.state.step)
    for batch in run.ledger.timed(batches):
        with run.ledger.time("step"):
            train_step(run, batch)
        if run.state.step < run.steps:
            save_inside_epoch(run)
    check_finite(run)
    run.state.epoch, run.state.step = run.state.epoch + 1, 0


def save_inside_epoch(run: Run) -> None:
    """A checkpoint when the configuration asks for one here, or when a node is about to be taken away."""
    every, leaving = run.config.checkpoint.every_steps, preemption_announced(run)
    if leaving or (every and run.state.step % every == 0):
        check_finite(run)
        report(run, {"epoch": run.state.epoch, "step": run.state.step}, save=SYNC if leaving else ASYNC)


def preemption_announced(run: Run) -> bool:
    """Whether another node of the workers is announced to go since the last look. All workers get the same answer."""
    if run.state.step % PREEMPTION_STEPS:
        return False
    info = ray.train.get_preemption_info()
    before, run.leaving = run.leaving, info.preempted_node_ids if info else []
    return not set(run.leaving) <= set(before)


def check_finite(run: Run) -> None:
    """Raise Diverged before what is not finite reaches a checkpoint, from which no restart could heal it."""
    losses = all_sum(run.state.loss_sums)
    with torch.no_grad():
        weights = torch.stack(torch._foreach_norm(list(run.state.model.parameters())))
    if not bool(torch.isfinite(losses).all() and torch.isfinite(weights).all()):
        sums = dict(zip(LOSSES, losses.tolist(), strict=True))
        raise Diverged(
            f"losses or weights are not finite in epoch {run.state.epoch + 1}, at or before step {run.state.step} "
            f"(sums of losses: {sums}); lower optim.lr, or use float32"
        )


def train_step(run: Run, batch: Batch) -> None:
    """Views, losses, gradients, one move of the optimizer."""
    state, method = run.state, run.config.method
    at = state.epoch * run.steps + state.step
    warmup = state.epoch < run.config.optim.warmup_epochs
    assert state.pseudo is not None
    set_learning_rates(state.optimizer, float(run.schedules.lr[at]), float(run.schedules.predictor_lr[at]))
    losses = run.step_model(
        *run.views(batch.images, batch.index, state.epoch),
        state.pseudo.labels[batch.index],
        target_momentum=float(run.schedules.target_momentum[at]),
        noise=None if warmup else latent_noise(run, batch.index),
        warmup=warmup,
        group_centers=group_reset(run, at + 1) if method.group_weight else None,
        rows=batch.rows,
    )
    state.optimizer.zero_grad()
    losses.total.backward()
    state.optimizer.step()
    state.loss_sums += torch.stack(losses).detach()
    state.step += 1


def latent_noise(run: Run, index: Tensor) -> Tensor | None:
    """Noise (2, B, D) on the online features of both views, each image's own; None when it is switched off."""
    scale, size = run.config.method.latent_noise, run.config.model.feature_size
    if scale == 0:
        return None
    draws = [normal(run.config.seed, run.state.epoch, index, stream, size) for stream in NOISE_STREAMS]
    return scale * torch.stack(draws)


def group_reset(run: Run, iteration: int) -> Tensor | None:
    """Centres for the periodic reset of the groups, in iterations 2, 3, ... that are multiples of its period."""
    model = run.state.model
    period = run.config.method.reset_every or len(model.groups.features)
    return model.bank_centers(seed=iteration) if iteration > 1 and iteration % period == 0 else None


def run_estep(run: Run) -> None:
    """New pseudo-labels; their health, and their scores without and with classes, become metrics of the epoch."""
    state, clusters, previous = run.state, run.state.model.settings.num_clusters, run.state.pseudo
    with run.ledger.time("estep"):
        features = all_features(state.model, run.images, run.views, run.manifest.num_images)
        state.pseudo, health = estimate(features, clusters, run.config.estep, run.config.seed, previous)
    with run.ledger.time("evaluate"):
        if run.probe:
            health |= objectives(state.model, run.views, run.probe, features, state.pseudo, previous)
        if LABEL_FREE_WEIGHTS.keys() <= health.keys():  # the first E-step agrees with nothing
            health["label_free"] = label_free_score(health)
        scores = clustering_scores(run.labels, state.pseudo.labels.cpu()) if run.labels is not None else {}
    spread = {"group_rank_spread": rank_spread(state.model.groups.features)}
    state.history.append({"epoch": state.epoch, **health, **spread, **scores})


def finish_epoch(run: Run) -> None:
    """Complete the epoch's metrics, send them out, and save when it is time."""
    state, config = run.state, run.config
    if state.history[-1]["epoch"] != state.epoch:  # an epoch without E-step
        state.history.append({"epoch": state.epoch})
    metrics = state.history[-1]
    if state.epoch:
        metrics |= mean_losses(run)
        metrics["lr"] = float(run.schedules.lr[state.epoch * run.steps - 1])
    metrics |= {f"seconds_{entry}": seconds for entry, seconds in run.ledger.close().items()}
    if state.epoch:
        metrics["images_per_second"] = run.steps * config.optim.batch_size / metrics["seconds_epoch"]
    run.reporter.epoch(metrics)
    if state.epoch == config.optim.epochs:
        save: CheckpointUploadMode | None = SYNC
    else:
        save = ASYNC if state.epoch % config.checkpoint.every_epochs == 0 else None
    report(run, metrics, save=save)


def mean_losses(run: Run) -> dict[str, float]:
    """Means over the epoch and the workers."""
    means = all_sum(run.state.loss_sums) / (run.steps * world_size())
    run.state.loss_sums = torch.zeros_like(run.state.loss_sums)
    return dict(zip(LOSSES, means.float().tolist(), strict=True))


def report(run: Run, metrics: dict[str, Any], *, save: CheckpointUploadMode | None) -> None:
    """Hand the metrics, and a checkpoint where one is to be saved, to Ray Train; a barrier over the workers.

    ASYNC uploads while training goes on, in the order of the reports. The last checkpoint of a run, and one that
    must be there before a node goes, are SYNC.
    """
    with run.ledger.time("checkpoint"):
        ray.train.report(
            metrics,
            checkpoint=written(run) if save else None,
            checkpoint_upload_mode=save or SYNC,
            delete_local_checkpoint_after_upload=True,
        )


def written(run: Run) -> Checkpoint | None:
    """The state in a folder of this worker's own, on rank 0; all call it, for what is spread over the workers."""
    folder = tempfile.mkdtemp(dir=Path.cwd())  # Ray's session folder, which goes when the cluster goes
    save_state(run.state, run.config, Path(folder))
    if rank() == 0:
        return Checkpoint.from_directory(folder)
    Path(folder).rmdir()
    return None
