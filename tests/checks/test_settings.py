"""What is known to fail is refused before any worker starts, with the setting to change."""

from __future__ import annotations

import pytest

from pipeline.checks.settings import check_settings
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError
from tests.helpers.manifests import manifest


def config(*overrides: str) -> RunConfig:
    return load_config("digits", list(overrides))


def test_a_run_that_fits_passes() -> None:
    check_settings(config("optim.batch_size=8", "resources.workers=3"), manifest(100))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method.num_clusters=101"], r"num_clusters=101 exceeds the 100 images"),
        (
            ["method.bank_size=5", "method.num_groups=null"],
            r"bank_size=5 is less than the 10 groups.*raise it to several times 10",
        ),
        (["method.bank_size=30", "method.num_groups=40"], r"bank_size=30 is less than the 40 groups"),
        (["optim.batch_size=101"], r"batch_size=101 exceeds the 100 images"),
        (["optim.batch_size=7", "resources.workers=4"], r"batch_size=7 gives each of 4 workers fewer than 2 images"),
        (
            ["resources.workers=4", "data.shuffle_window=60"],
            r"resources\.workers=4 is more than the 3 lanes of a shuffle window of 60 images with row groups of up to "
            r"20, .*data\.shuffle_window=160 or more",
        ),
    ],
)
def test_numbers_that_cannot_go_together_are_named(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_settings(config("optim.batch_size=32", *overrides), manifest(100, groups=(20,) * 5))


@pytest.mark.parametrize("batch", [31, 32])
@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_any_number_of_workers_shares_any_batch(batch: int, mode: str) -> None:
    mine = [f"data.mode={mode}", "resources.workers={min: 1, max: 15}"]
    check_settings(config(f"optim.batch_size={batch}", *mine), manifest(100))
