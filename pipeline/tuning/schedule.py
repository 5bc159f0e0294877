"""Who is trained next, who is stopped early, and who takes over from whom."""

from __future__ import annotations

import math
import random
from typing import Any

from optuna.samplers import TPESampler
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Categorical, Domain

from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError
from pipeline.tuning.space import Point, Space, bounds

SCHEDULERS = ("asha", "pbt", "none")
REDUCTION = 3  # ASHA: of the trials that come to a rung, one in so many goes on
PBT_ROUNDS = 10  # in a run; after each, the worst trials take over from the best
STARTUP = 10  # points that Optuna draws at random before it models, in a search of 30 trials or more
START_FROM, CHECKPOINT = "start_from", "checkpoint"
# What another trial's checkpoint, and the schedules of a run, must find unchanged.
FIXED = ("model.", "data.", "method.num_", "method.bank_size", "optim.epochs", "optim.warmup", "optim.batch")


def rungs(config: RunConfig, space: Space) -> list[int]:
    """Epochs after which ASHA compares. The first lies a ninth of the run beyond the longest warm-up of the space:
    trials show what they are worth when the prototype loss has been at work, and all must have had some of it."""
    epochs, warmups = config.optim.epochs, space.values("optim.warmup_epochs") or [config.optim.warmup_epochs]
    first = int(max(warmups)) + math.ceil(epochs / REDUCTION**2)
    return [rung for k in range(epochs) if (rung := first * REDUCTION**k) < epochs]


def asha(config: RunConfig, space: Space) -> TrialScheduler:
    """Asynchronous successive halving by epoch; none where there is nothing to compare by, or no time to.

    Not by Tune's own count of reports, which begins anew when a trial is resumed. No rung lies at the last epoch: a
    trial that is stopped there could not end in order.
    """
    stages = rungs(config, space)
    if len(space.objectives) > 1 or not stages:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        grace_period=stages[0],
        max_t=stages[-1] + 1,  # Tune rounds the number of rungs down
        reduction_factor=REDUCTION,
        stop_last_trials=False,
    )


def proposer(config: RunConfig, space: Space, first: list[Point], trials: int) -> OptunaSearch:
    """Optuna's TPE, which takes several objectives as well."""
    startup = min(STARTUP, math.ceil(trials / 3))
    sampler = TPESampler(seed=config.seed, n_startup_trials=startup, multivariate=True, constant_liar=True)
    if len(space.objectives) == 1:
        return OptunaSearch(points_to_evaluate=first, sampler=sampler)
    metrics, modes = (list(part) for part in zip(*space.objectives, strict=True))
    return OptunaSearch(metric=metrics, mode=modes, points_to_evaluate=first, sampler=sampler)


class HandingOn(PopulationBasedTraining):
    """Population based training of trials that start Ray Train.

    Their checkpoints never reach Tune, and Tune's own way finds none to exploit. But each report names the newest one
    (`CHECKPOINT`), and here a trial that takes over gets that name in its settings (`START_FROM`), for its workers to
    load. The whole population runs at once, so nobody is ever paused for another's turn; and whoever has come to the
    last of the `epochs` neither takes nor gives.
    """

    def __init__(self, epochs: int, **settings: Any) -> None:
        super().__init__(time_attr="epoch", log_config=False, **settings)
        self.epochs = epochs

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """As Tune's, without pauses."""
        decision = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if decision == TrialScheduler.PAUSE else decision

    def _checkpoint_or_exploit(
        self, trial: Trial, tune_controller: Any, upper_quantile: list[Trial], lower_quantile: list[Trial]
    ) -> None:
        better = [other for other in upper_quantile if other.last_result.get(CHECKPOINT) and not self._at_end(other)]
        if trial not in lower_quantile or self._trial_state[trial].last_train_time >= self.epochs or not better:
            return
        source = random.choice(better)
        settings, _ = self._get_new_config(trial, source)
        tune_controller.pause_trial(trial, should_checkpoint=False)  # it is started again at once
        trial.set_config(settings | {START_FROM: source.last_result[CHECKPOINT]})
        self._trial_state[trial].last_perturbation_time = self._trial_state[source].last_perturbation_time

    def _at_end(self, trial: Trial) -> bool:
        return trial.last_result["epoch"] >= self.epochs


def population(config: RunConfig, space: Space) -> HandingOn:
    """Population based training by epoch."""
    if len(space.objectives) > 1:
        raise ConfigError("population based training takes one objective; choose --scheduler none")
    if fixed := [key for key in space.domains if key.startswith(FIXED)]:
        raise ConfigError(
            f"population based training changes settings in the middle of a run, and {', '.join(fixed)} cannot be "
            "changed there; take them out of the space, or choose --scheduler asha"
        )
    return HandingOn(
        config.optim.epochs,
        perturbation_interval=interval(config),
        burn_in_period=config.optim.warmup_epochs,
        hyperparam_mutations={key: _steps(domain) for key, domain in space.domains.items()},
        custom_explore_fn=lambda point: (
            point | {key: _clipped(space.domains[key], point[key]) for key in space.domains}
        ),
    )


def interval(config: RunConfig) -> int:
    """Epochs between two takeovers."""
    return max(1, config.optim.epochs // PBT_ROUNDS)


def _steps(domain: Domain) -> Any:
    """What Tune perturbs: it would multiply the members of a choice by a factor, and steps through a list instead."""
    return domain.categories if isinstance(domain, Categorical) else domain


def _clipped(domain: Domain, value: Any) -> Any:
    """A perturbed value, put back into its domain."""
    if isinstance(domain, Categorical):
        return value
    low, high = bounds(domain)
    return min(max(value, low), high)


def sampled(config: RunConfig, first: list[Point]) -> BasicVariantGenerator:
    """Points drawn at random, for a population to start from."""
    return BasicVariantGenerator(points_to_evaluate=first, random_state=config.seed)
