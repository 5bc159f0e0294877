"""Rungs and proposals, without Ray running."""

from __future__ import annotations

from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError
from pipeline.tuning.space import Space, contains
from pipeline.tuning.strategy import (
    Strategy,
    make_proposer,
    make_strategy,
    rungs,
)

ONE = Space("one", {"optim.lr": tune.loguniform(0.01, 1)})
TWO = Space("two", ONE.domains, objectives=[("loss", "min"), ("images_per_second", "max")])


def config(epochs: int, warmup: int = 1) -> RunConfig:
    return load_config("digits", [f"optim.epochs={epochs}", f"optim.warmup_epochs={warmup}"])


def strategy(scheduler: str, chosen: RunConfig, space: Space = ONE) -> Strategy:
    return make_strategy(scheduler, chosen, space, 4, [])


def test_an_unknown_scheduler_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown scheduler 'ash'; did you mean 'asha'\?; give one of asha, none"):
        strategy("ash", config(80))


@pytest.mark.parametrize(
    ("epochs", "warmup", "expected"),
    [
        (80, 8, [17, 51]),
        (1000, 50, [162, 486]),
        (1000, 200, [312, 936]),
        (9, 0, [1, 3]),
        (3, 1, [2]),
        (2, 1, []),
        (1, 0, []),
    ],
)
def test_rungs_are_after_the_warm_up_and_before_the_end(epochs: int, warmup: int, expected: list[int]) -> None:
    assert rungs(config(epochs, warmup), ONE) == expected


@pytest.mark.parametrize("domain", [tune.choice([4, 24, 8]), tune.randint(2, 25)])
def test_rungs_are_after_every_warm_up_of_the_space(domain: Any) -> None:
    assert rungs(config(80, 8), Space("warmups", {"optim.warmup_epochs": domain})) == [33]


@pytest.mark.parametrize("epochs", [9, 27, 28, 81, 82, 100, 243, 244, 1000])
def test_tune_has_the_rungs_that_are_announced(epochs: int) -> None:
    chosen = config(epochs, warmup=0)
    found = strategy("asha", chosen)
    assert isinstance(found.scheduler, ASHAScheduler)
    assert sorted(milestone for milestone, _ in found.scheduler._brackets[0]._rungs) == rungs(chosen, ONE)
    assert found.sentence == f"poor trials are stopped after epoch {' or '.join(map(str, rungs(chosen, ONE)))}"


@pytest.mark.parametrize(("scheduler", "epochs", "space"), [("asha", 80, TWO), ("asha", 1, ONE), ("none", 80, ONE)])
def test_nothing_is_stopped_early_where_there_is_nothing_to_compare_by(
    scheduler: str, epochs: int, space: Space
) -> None:
    found = strategy(scheduler, config(epochs, warmup=0), space)
    assert type(found.scheduler) is FIFOScheduler
    assert found.sentence == "no trial is stopped early"


def proposals(space: Space, seed: int) -> list[dict[str, Any]]:
    searcher = make_proposer(load_config("digits", [f"seed={seed}"]), space, 4, [{"optim.lr": 0.05}])
    goals = {} if len(space.objectives) > 1 else {"metric": "label_free", "mode": "max"}
    assert searcher.set_search_properties(goals.get("metric"), goals.get("mode"), dict(space.domains))
    return [searcher.suggest(str(number)) for number in range(4)]


@pytest.mark.parametrize("space", [ONE, TWO], ids=["one objective", "two"])
def test_the_first_points_come_first_and_the_rest_by_seed(space: Space) -> None:
    found = proposals(space, seed=0)
    assert found[0] == {"optim.lr": 0.05}
    assert all(contains(space.domains["optim.lr"], point["optim.lr"]) for point in found)
    assert found == proposals(space, seed=0)
    assert found != proposals(space, seed=1)
