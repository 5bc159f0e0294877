"""Which points are proposed, which trials are stopped early, and which take over from others."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from optuna.samplers import TPESampler
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Categorical, Domain

from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError, did_you_mean
from pipeline.ray_private import TakeoverHooks
from pipeline.tuning.space import SearchPoint, Space, bounds

REDUCTION = 3  # ASHA: of the trials that come to a rung, one in so many continues
PBT_ROUNDS = 10  # in a run; after each, the worst trials take over from the best
PBT_KEPT = 4  # rounds for which a checkpoint is kept: a trial that takes over may take as long to start
STARTUP = 10  # points that Optuna draws at random before it models, in a search of 30 trials or more
START_FROM = "start_from"  # among a trial's settings: the checkpoint that it took over
CHECKPOINT = "checkpoint"  # among the metrics of a report: the newest checkpoint
# What another trial's checkpoint, and the schedules of a run, must find unchanged: sections and settings.
FIXED_SECTIONS = ("model", "data")
FIXED_SETTINGS = (
    "method.num_clusters",
    "method.num_groups",
    "method.bank_size",
    "optim.epochs",
    "optim.warmup_epochs",
    "optim.batch_size",
)


@dataclass(frozen=True)
class Strategy:
    """How a search is carried out.

    Attributes
    ----------
    scheduler : TrialScheduler
        Of Ray Tune.
    proposals : searcher or generator
        Where Ray Tune takes the points from.
    sentence : str
        What happens to poor trials, as a clause.
    all_at_once : bool
        Whether all trials must run at the same time.
    checkpoints : dict
        Settings of the section `checkpoint` that trials must have.
    """

    scheduler: TrialScheduler
    proposals: Any
    sentence: str
    all_at_once: bool = False
    checkpoints: dict[str, Any] = field(default_factory=dict)


def make_strategy(scheduler: str, config: RunConfig, space: Space, trials: int, first: list[SearchPoint]) -> Strategy:
    """The strategy of this name.

    Parameters
    ----------
    scheduler : str
        One of SCHEDULERS.
    config : RunConfig
        Of the trials.
    space : Space
    trials : int
    first : list of dict
        Points that are tried before all others.

    Raises
    ------
    ConfigError
        For an unknown name, or a space that the scheduler cannot search.
    """
    if scheduler not in SCHEDULERS:
        raise ConfigError(
            f"unknown scheduler {scheduler!r}{did_you_mean(scheduler, SCHEDULERS)}; give one of {', '.join(SCHEDULERS)}"
        )
    return SCHEDULERS[scheduler](config, space, trials, first)


def every_trial_to_its_end(config: RunConfig, space: Space, trials: int, first: list[SearchPoint]) -> Strategy:
    """Optuna proposes, and no trial is stopped."""
    return Strategy(FIFOScheduler(), make_proposer(config, space, trials, first), "none is stopped early")


def successive_halving(config: RunConfig, space: Space, trials: int, first: list[SearchPoint]) -> Strategy:
    """Optuna proposes, and ASHA compares by epoch; it stops none where there is nothing to compare by, or no time to.

    Not by Tune's own count of reports, which begins again when a trial is resumed. No rung is at the last epoch: a
    trial that is stopped there could not end in order.
    """
    epochs = rungs(config, space)
    if len(space.objectives) > 1 or not epochs:
        return every_trial_to_its_end(config, space, trials, first)
    scheduler = ASHAScheduler(
        time_attr="epoch",
        grace_period=epochs[0],
        max_t=epochs[-1] + 1,  # Tune rounds the number of rungs down
        reduction_factor=REDUCTION,
        stop_last_trials=False,
    )
    sentence = f"poor ones are stopped after epoch {' or '.join(map(str, epochs))}"
    return Strategy(scheduler, make_proposer(config, space, trials, first), sentence)


def rungs(config: RunConfig, space: Space) -> list[int]:
    """Epochs after which ASHA compares. The first is a ninth of the run after the longest warm-up of the space: trials
    differ once the prototype loss has been at work, and all must have had some of it."""
    epochs, warmups = config.optim.epochs, space.values("optim.warmup_epochs") or [config.optim.warmup_epochs]
    first = int(max(warmups)) + math.ceil(epochs / REDUCTION**2)
    return [rung for k in range(epochs) if (rung := first * REDUCTION**k) < epochs]


def make_proposer(config: RunConfig, space: Space, trials: int, first: list[SearchPoint]) -> OptunaSearch:
    """Optuna's TPE, which takes several objectives as well."""
    startup = min(STARTUP, math.ceil(trials / 3))
    sampler = TPESampler(seed=config.seed, n_startup_trials=startup, multivariate=True, constant_liar=True)
    if len(space.objectives) == 1:
        return OptunaSearch(points_to_evaluate=first, sampler=sampler)
    metrics, modes = (list(part) for part in zip(*space.objectives, strict=True))
    return OptunaSearch(metric=metrics, mode=modes, points_to_evaluate=first, sampler=sampler)


class TakeoverScheduler(TakeoverHooks, PopulationBasedTraining):
    """Population based training of trials that start Ray Train.

    Their checkpoints never reach Tune, and Tune's own way finds none to exploit. But each report names the newest one
    (`CHECKPOINT`), and a trial that takes over gets that name in its settings (`START_FROM`), for its workers to load.
    The whole population runs at once, so no trial is paused to make room for another; and one that has come to the
    last of the `epochs` neither takes over nor is taken over from.
    """

    def __init__(self, epochs: int, **settings: Any) -> None:
        super().__init__(time_attr="epoch", log_config=False, **settings)
        self.epochs = epochs

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """As Tune's, without pauses."""
        decision = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if decision == TrialScheduler.PAUSE else decision

    def choose_source(self, trial: Trial, time: int, best: list[Trial]) -> Trial | None:
        """One of the best, by chance, that has a checkpoint and epochs left."""
        able = [
            other for other in best if other.last_result.get(CHECKPOINT) and other.last_result["epoch"] < self.epochs
        ]
        return random.choice(able) if able and time < self.epochs else None

    def settings_after(self, perturbed: dict[str, Any], source: Trial) -> dict[str, Any]:
        """The perturbed settings, and the checkpoint to start from."""
        return perturbed | {START_FROM: source.last_result[CHECKPOINT]}


def population(config: RunConfig, space: Space, trials: int, first: list[SearchPoint]) -> Strategy:
    """Points drawn at random, and population based training by epoch.

    Trials save whenever they are compared, so that there is always something recent to take over.
    """
    if len(space.objectives) > 1:
        raise ConfigError("population based training takes one objective; choose --scheduler none")
    if fixed := [key for key in space.domains if key.partition(".")[0] in FIXED_SECTIONS or key in FIXED_SETTINGS]:
        raise ConfigError(
            f"population based training changes settings in the middle of a run, and {', '.join(fixed)} cannot be "
            "changed there; remove them from the space, or choose --scheduler asha"
        )
    every = takeover_interval(config)
    scheduler = TakeoverScheduler(
        config.optim.epochs,
        perturbation_interval=every,
        burn_in_period=config.optim.warmup_epochs,
        hyperparam_mutations={key: _mutation(domain) for key, domain in space.domains.items()},
        custom_explore_fn=lambda point: point | {key: _clip(space.domains[key], point[key]) for key in space.domains},
    )
    return Strategy(
        scheduler,
        BasicVariantGenerator(points_to_evaluate=first, random_state=config.seed),
        f"the worst take over from the best every {every} epochs",
        all_at_once=True,
        checkpoints={"every_epochs": every, "every_steps": None, "keep": max(PBT_KEPT, config.checkpoint.keep)},
    )


def takeover_interval(config: RunConfig) -> int:
    """Epochs between two takeovers."""
    return max(1, config.optim.epochs // PBT_ROUNDS)


def _mutation(domain: Domain) -> Any:
    """What Tune perturbs: it would multiply the members of a choice by a factor, and steps through a list instead."""
    return domain.categories if isinstance(domain, Categorical) else domain


def _clip(domain: Domain, value: Any) -> Any:
    """A perturbed value, moved back into its domain."""
    if isinstance(domain, Categorical):
        return value
    low, high = bounds(domain)
    return min(max(value, low), high)


SCHEDULERS: dict[str, Callable[[RunConfig, Space, int, list[SearchPoint]], Strategy]] = {
    "asha": successive_halving,
    "pbt": population,
    "none": every_trial_to_its_end,
}
