"""Rungs, proposals and takeovers, without Ray running."""

from __future__ import annotations

from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from pipeline.config.loading import load_config, settings_table
from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError
from pipeline.tuning.schedulers import (
    CHECKPOINT,
    FIXED_SECTIONS,
    FIXED_SETTINGS,
    START_FROM,
    Strategy,
    TakeoverScheduler,
    make_proposer,
    make_strategy,
    rungs,
    takeover_interval,
)
from pipeline.tuning.space import Space, contains

ONE = Space("one", {"optim.lr": tune.loguniform(0.01, 1)})
TWO = Space("two", ONE.domains, objectives=[("loss", "min"), ("images_per_second", "max")])


def config(epochs: int, warmup: int = 1) -> RunConfig:
    return load_config("digits", [f"optim.epochs={epochs}", f"optim.warmup_epochs={warmup}"])


def strategy(scheduler: str, chosen: RunConfig, space: Space = ONE) -> Strategy:
    return make_strategy(scheduler, chosen, space, 4, [])


def test_an_unknown_scheduler_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown scheduler 'ash'; did you mean 'asha'\?; give one of asha, pbt, none"
    ):
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
    assert found.sentence == f"poor ones are stopped after epoch {' or '.join(map(str, rungs(chosen, ONE)))}"


@pytest.mark.parametrize(("scheduler", "epochs", "space"), [("asha", 80, TWO), ("asha", 1, ONE), ("none", 80, ONE)])
def test_nothing_is_stopped_early_where_there_is_nothing_to_compare_by(
    scheduler: str, epochs: int, space: Space
) -> None:
    found = strategy(scheduler, config(epochs, warmup=0), space)
    assert type(found.scheduler) is FIFOScheduler
    assert found.sentence == "none is stopped early"
    assert (found.all_at_once, found.checkpoints) == (False, {})


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


def test_a_population_saves_and_compares_ten_times() -> None:
    assert takeover_interval(config(80)) == 8
    assert takeover_interval(config(3)) == 1
    found = strategy("pbt", config(80))
    assert found.checkpoints == {"every_epochs": 8, "every_steps": None, "keep": 4}
    assert found.all_at_once
    assert found.sentence == "the worst take over from the best every 8 epochs"


@pytest.mark.parametrize(
    "key", ["method.bank_size", "method.num_groups", "optim.batch_size", "model.feature_size", "data.image_size"]
)
def test_what_cannot_change_in_mid_run_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"middle of a run, and {key} cannot"):
        strategy("pbt", config(80), Space("fixed", {key: tune.choice([16, 32]), **ONE.domains}))
    with pytest.raises(ConfigError, match="takes one objective"):
        strategy("pbt", config(80), TWO)


def test_what_cannot_change_in_mid_run_is_named_as_the_settings_are() -> None:
    assert set(FIXED_SETTINGS) <= settings_table().keys()
    assert set(FIXED_SECTIONS) <= {key.partition(".")[0] for key in settings_table()}


class Controller:
    """What a scheduler sees of Tune."""

    def __init__(self, trials: list[Any]) -> None:
        self.trials, self.paused, self.search_alg = trials, [], None

    def get_trials(self) -> list[Any]:
        return self.trials

    def pause_trial(self, trial: Any, should_checkpoint: bool) -> None:
        assert not should_checkpoint
        trial.status = "PAUSED"
        self.paused.append(trial)


class FakeTrial:
    def __init__(self, number: int, point: dict[str, Any]) -> None:
        self.number, self.config, self.status, self.experiment_tag = number, point, "RUNNING", ""
        self.last_result: dict[str, Any] = {"epoch": 0}
        keep = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        self.run_metadata = SimpleNamespace(checkpoint_manager=keep)

    def is_finished(self) -> bool:
        return False

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


def population_of(points: list[dict[str, Any]], space: Space = ONE) -> tuple[TakeoverScheduler, Controller]:
    scheduler = strategy("pbt", config(20, warmup=0), space).scheduler  # compares every 2 epochs
    assert isinstance(scheduler, TakeoverScheduler)
    scheduler.set_search_properties("label_free", "max")
    controller = Controller([FakeTrial(number, dict(point)) for number, point in enumerate(points)])
    for trial in controller.trials:
        scheduler.on_trial_add(controller, trial)
    return scheduler, controller


def report(scheduler: TakeoverScheduler, controller: Controller, trial: Any, epoch: int, score: float) -> str:
    result = {"epoch": epoch, "label_free": score, CHECKPOINT: f"/runs/{trial.number}/checkpoint_{epoch}"}
    decision = scheduler.on_trial_result(controller, trial, result)
    trial.last_result = result
    return decision


def test_the_worst_gets_the_bests_newest_checkpoint_and_a_new_point() -> None:
    scheduler, controller = population_of([{"optim.lr": 0.1}, {"optim.lr": 1.0}])
    poor, good = controller.trials
    assert report(scheduler, controller, good, 2, 0.9) == TrialScheduler.CONTINUE
    assert report(scheduler, controller, good, 3, 0.9) == TrialScheduler.CONTINUE
    assert report(scheduler, controller, poor, 2, 0.1) == TrialScheduler.NOOP
    assert controller.paused == [poor]
    assert poor.config[START_FROM] == "/runs/1/checkpoint_3"
    assert poor.config["optim.lr"] != 0.1
    assert contains(ONE.domains["optim.lr"], poor.config["optim.lr"])  # 1.0 * 1.2 is put back
    assert START_FROM not in good.config


def test_no_trial_waits_while_another_is_started_again() -> None:
    scheduler, controller = population_of([{"optim.lr": 0.1}, {"optim.lr": 0.2}])
    controller.trials[1].status = "PAUSED"
    assert report(scheduler, controller, controller.trials[0], 2, 0.5) == TrialScheduler.CONTINUE


def test_a_trial_at_its_end_neither_takes_over_nor_is_taken_over_from() -> None:
    scheduler, controller = population_of([{"optim.lr": 0.1}, {"optim.lr": 0.2}])
    poor, good = controller.trials
    report(scheduler, controller, good, 20, 0.9)
    assert report(scheduler, controller, poor, 2, 0.1) == TrialScheduler.CONTINUE
    scheduler, controller = population_of([{"optim.lr": 0.1}, {"optim.lr": 0.2}])
    poor, good = controller.trials
    report(scheduler, controller, good, 18, 0.9)
    assert report(scheduler, controller, poor, 20, 0.1) == TrialScheduler.CONTINUE
    assert controller.paused == []


def test_ray_has_what_takeovers_need() -> None:
    """The private names that `TakeoverHooks` uses."""
    for name in ("_checkpoint_or_exploit", "_get_new_config"):
        assert callable(getattr(PopulationBasedTraining, name))
    parameters = list(signature(PopulationBasedTraining._checkpoint_or_exploit).parameters)
    assert parameters == ["self", "trial", "tune_controller", "upper_quantile", "lower_quantile"]
    scheduler, controller = population_of([{"optim.lr": 0.1}])
    assert {"last_train_time", "last_score"} <= vars(scheduler._trial_state[controller.trials[0]]).keys()


def test_choices_are_stepped_through() -> None:
    space = Space("choices", {"method.reset_every": tune.choice([None, 30, 100])})
    scheduler, controller = population_of([{"method.reset_every": None}, {"method.reset_every": 30}], space)
    poor, good = controller.trials
    report(scheduler, controller, good, 2, 0.9)
    report(scheduler, controller, poor, 2, 0.1)
    assert poor.config["method.reset_every"] in (None, 30, 100)
