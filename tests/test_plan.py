"""What follows from configuration and manifest, and what cannot follow."""

from __future__ import annotations

import pickle

import pytest

from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError
from pipeline.plan import has_estep, make_plan
from tests.helpers.manifests import manifest


def config(*overrides: str) -> RunConfig:
    return load_config("digits", ["optim.batch_size=10", *overrides])


def test_the_number_of_clusters_is_the_setting_or_the_classes() -> None:
    assert make_plan(config("method.num_clusters=7"), manifest(classes=10)).num_clusters == 7
    assert make_plan(config("method.num_clusters=null"), manifest(classes=5)).num_clusters == 5


@pytest.mark.parametrize("classes", [0, 1])
def test_no_number_of_clusters_says_which_setting_gives_one(classes: int) -> None:
    with pytest.raises(ConfigError, match=rf"data/digits names {classes} classes; set method\.num_clusters"):
        make_plan(config("method.num_clusters=null"), manifest(classes=classes))


def test_more_clusters_than_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.num_clusters=101 exceeds the 100 images of data/digits; lower it"):
        make_plan(config("method.num_clusters=101"), manifest(100))


def test_an_epoch_has_whole_batches_only() -> None:
    plan = make_plan(config("optim.batch_size=30"), manifest(100))
    assert (plan.steps_per_epoch, plan.images_per_epoch) == (3, 90)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.batch_size=101 exceeds the 100 images of data/digits; lower it"):
        make_plan(config("optim.batch_size=101"), manifest(100))


def test_groups_are_as_many_as_clusters_unless_set() -> None:
    assert make_plan(config("method.num_groups=null", "method.num_clusters=7"), manifest()).num_groups == 7
    assert make_plan(config("method.num_groups=40"), manifest()).num_groups == 40


@pytest.mark.parametrize(
    ("overrides", "period"),
    [
        (["method.reset_every=5"], 5),
        (["method.reset_every=null", "method.num_groups=8"], 8),
        (["method.reset_every=5", "method.group_weight=0"], None),
    ],
)
def test_groups_are_reset_at_multiples_of_the_period(overrides: list[str], period: int | None) -> None:
    plan = make_plan(config(*overrides), manifest())
    assert plan.reset_every == period
    resets = [iteration for iteration in range(1, 17) if plan.resets_groups(iteration)]
    assert resets == ([] if period is None else [i for i in range(1, 17) if i % period == 0])


def test_groups_are_never_reset_before_the_first_iteration() -> None:
    plan = make_plan(config("method.reset_every=1"), manifest())
    assert [i for i in range(1, 5) if plan.resets_groups(i)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("overrides", "mode", "reason"),
    [
        ([], "resident", "the decoded images take 0.00 GiB per worker, within data.resident_limit_gb=4"),
        (["data.resident_limit_gb=1e-6"], "streaming", "over data.resident_limit_gb=1e-06"),
        (["data.mode=streaming"], "streaming", "as set by data.mode"),
    ],
)
def test_the_mode_follows_from_the_size(overrides: list[str], mode: str, reason: str) -> None:
    plan = make_plan(config(*overrides), manifest())
    assert plan.mode == mode
    assert reason in plan.mode_reason


def test_each_worker_keeps_its_share_of_the_images() -> None:
    """Of 100 images of 16 pixels, 76,800 bytes; the fewest workers of an elastic run have to have room."""
    limit = f"data.resident_limit_gb={30_000 / 2**30}"
    assert make_plan(config(limit, "resources.workers=3"), manifest()).mode == "resident"
    assert make_plan(config(limit, "resources.workers=2"), manifest()).mode == "streaming"
    assert make_plan(config(limit, "resources.workers={min: 2, max: 9}"), manifest()).mode == "streaming"


def test_the_order_does_not_depend_on_the_mode_or_the_workers() -> None:
    orders = [
        make_plan(config(f"data.mode={mode}", f"resources.workers={workers}"), manifest()).order
        for mode in ("resident", "streaming")
        for workers in (1, 3)
    ]
    assert orders == [orders[0]] * 4


@pytest.mark.parametrize(("size", "window"), [(32, 65_536), (224, (2 << 30) // (3 * 224 * 224))])
def test_the_shuffle_window_fits_a_memory(size: int, window: int) -> None:
    assert make_plan(config(f"data.image_size={size}"), manifest()).order.window == window
    assert make_plan(config(f"data.image_size={size}", "data.shuffle_window=77"), manifest()).order.window == 77


def test_a_plan_travels() -> None:
    plan = make_plan(config(), manifest())
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ([], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (["estep.every=3"], [3, 6, 9, 10]),
        (["estep.warmup_every=3"], [3, 6, 7, 8, 9, 10]),
        (["estep.warmup_every=20"], [7, 8, 9, 10]),  # the last of the warm-up gives the labels of the next epoch
        (["estep.every=3", "estep.warmup_every=2"], [6, 9, 10]),
    ],
)
def test_epochs_that_end_with_an_e_step(settings: list[str], epochs: list[int]) -> None:
    made = config("optim.epochs=10", "optim.warmup_epochs=7", "estep.warmup_every=1", *settings)
    assert [epoch for epoch in range(1, 11) if has_estep(made, epoch)] == epochs
