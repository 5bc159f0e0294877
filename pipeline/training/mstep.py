"""The M-step: one pass over the images, in which the networks learn from the pseudo-labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat

import torch
from torch import Tensor

from pipeline.data.loader import Batch
from pipeline.data.sampling import sampling_weights
from pipeline.keyed_random import Stream, normal
from pipeline.method.optimizer import set_learning_rates, step_if_finite
from pipeline.plan import is_balanced
from pipeline.training.halting import check_run_finite
from pipeline.training.run import Run

FINITE_STEPS = 50  # between two checks that losses and weights are finite: each waits for the device


def train_epoch(run: Run, between_steps: Callable[[Run], object] = lambda run: None) -> None:
    """The M-step: one pass over the images, or the rest of one that was interrupted.

    `between_steps` is called after every step but the last.
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
            between_steps(run)
    run.state.epochs_done, run.state.step = run.state.epochs_done + 1, 0


def epoch_batches(run: Run) -> Iterator[Batch]:
    """The remaining batches of the epoch; only the first one, repeated, when only computing is measured."""
    batches = run.feed.inputs.epoch(run.state.epochs_done, run.state.step, draw_weights(run))
    if run.job.config.profile.only != "compute":
        return batches
    return repeat(next(batches), run.job.plan.steps_per_epoch - run.state.step)


def take_step(run: Run, batch: Batch) -> None:
    """Do a training step, or only count it when the feed alone is measured."""
    if run.job.config.profile.only == "data":
        run.state.step += 1
    else:
        train_step(run, batch)


def draw_weights(run: Run) -> Tensor | None:
    """How often each own image is drawn in this epoch, by its pseudo-label; None when each is taken once."""
    config, pseudo = run.job.config, run.state.pseudo
    if not is_balanced(config, run.state.epochs_done):
        return None
    assert pseudo is not None
    return sampling_weights(pseudo.labels, pseudo.sizes(), config.optim.balance)


def train_step(run: Run, batch: Batch) -> None:
    """Views, losses, gradients, one move of the optimizer."""
    state, config, plan = run.state, run.job.config, run.job.plan
    at = state.epochs_done * plan.steps_per_epoch + state.step
    warmup = state.epochs_done < config.optim.warmup_epochs
    assert state.pseudo is not None
    set_learning_rates(state.optimizer, float(run.schedules.lr[at]), float(run.schedules.predictor_lr[at]))
    losses = run.step_model(
        *run.feed.views(batch.inputs, batch.keys, state.epochs_done),
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
        normal(config.seed, run.state.epochs_done, keys, stream, config.model.feature_size)
        for stream in (Stream.NOISE_A, Stream.NOISE_B)
    ]
    return config.method.latent_noise * torch.stack(draws)
