"""Which points are proposed, and which trials are stopped early."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from optuna.samplers import TPESampler
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError, did_you_mean
from pipeline.tuning.space import SearchPoint, Space

REDUCTION = 3  # ASHA: one in so many of the trials that reach a rung continues
STARTUP = 10  # points that Optuna draws at random before it models, in a search of 30 trials or more


@dataclass(frozen=True)
class Strategy:
    """How a search is carried out.

    Attributes
    ----------
    scheduler : TrialScheduler
        Of Ray Tune.
    proposals : OptunaSearch
        Where Ray Tune takes the points from.
    sentence : str
        What happens to poor trials, as a clause.
    """

    scheduler: TrialScheduler
    proposals: OptunaSearch
    sentence: str


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
        For an unknown name.
    """
    if scheduler not in SCHEDULERS:
        raise ConfigError(
            f"unknown scheduler {scheduler!r}{did_you_mean(scheduler, SCHEDULERS)}; give one of {', '.join(SCHEDULERS)}"
        )
    return SCHEDULERS[scheduler](config, space, trials, first)


def every_trial_to_its_end(config: RunConfig, space: Space, trials: int, first: list[SearchPoint]) -> Strategy:
    """Optuna proposes, and no trial is stopped."""
    return Strategy(FIFOScheduler(), make_proposer(config, space, trials, first), "no trial is stopped early")


def successive_halving(config: RunConfig, space: Space, trials: int, first: list[SearchPoint]) -> Strategy:
    """Optuna proposes, and ASHA compares by epoch; with several objectives, or too few epochs, it stops none.

    Tune's own count of reports is not used, because it begins again when a trial is resumed. No rung is at the last
    epoch, because a trial that is stopped there could not end in order.
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
    sentence = f"poor trials are stopped after epoch {' or '.join(map(str, epochs))}"
    return Strategy(scheduler, make_proposer(config, space, trials, first), sentence)


def rungs(config: RunConfig, space: Space) -> list[int]:
    """Epochs after which ASHA compares.

    The first is a ninth of the run after the longest warm-up of the space: trials differ only once the prototype loss
    has had an effect, so all must have trained with it for a while.
    """
    epochs, warmups = config.optim.epochs, space.values("optim.warmup_epochs") or [config.optim.warmup_epochs]
    first = int(max(warmups)) + math.ceil(epochs / REDUCTION**2)
    return [rung for k in range(epochs) if (rung := first * REDUCTION**k) < epochs]


def make_proposer(config: RunConfig, space: Space, trials: int, first: list[SearchPoint]) -> OptunaSearch:
    """Optuna's TPE, which also supports several objectives."""
    startup = min(STARTUP, math.ceil(trials / 3))
    sampler = TPESampler(seed=config.seed, n_startup_trials=startup, multivariate=True, constant_liar=True)
    if len(space.objectives) == 1:
        return OptunaSearch(points_to_evaluate=first, sampler=sampler)
    metrics, modes = (list(part) for part in zip(*space.objectives, strict=True))
    return OptunaSearch(metric=metrics, mode=modes, points_to_evaluate=first, sampler=sampler)


SCHEDULERS: dict[str, Callable[[RunConfig, Space, int, list[SearchPoint]], Strategy]] = {
    "asha": successive_halving,
    "none": every_trial_to_its_end,
}
