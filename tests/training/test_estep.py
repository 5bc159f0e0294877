"""The E-step: the same labels for every number of workers, and health figures that mean what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.collectives import RowRange, row_range
from pipeline.config.models import EStepConfig
from pipeline.data.shards import Manifest
from pipeline.training import estep
from pipeline.training.estep import encode_all, estimate
from pipeline.training.state import PseudoLabels
from tests.helpers.golden import assert_close
from tests.helpers.small_run import IMAGES, digits, small_run
from tests.helpers.workers import Workers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Manifest]:
    return digits(tmp_path_factory.mktemp("digits"))


def _estep(rank: int, data: tuple[Tensor, Manifest]) -> tuple[Tensor, PseudoLabels, dict[str, float]]:
    run = small_run(*data)
    features = encode_all(run.state.model, run.feed.inputs, run.feed.preprocess)
    return features, *estimate(features, run.feed.inputs.own, 10, run.job.config.estep, 0, None)


def test_workers_agree_with_one_process(pair: Workers, data: tuple[Tensor, Manifest]) -> None:
    features, pseudo, health = _estep(0, data)
    answers = pair.run(_estep, data)
    assert_close(torch.cat([part for part, _, _ in answers]), features, rtol=1e-5)
    assert torch.cat([found.labels for _, found, _ in answers]).equal(pseudo.labels)
    for _, _, found_health in answers:
        assert found_health == pytest.approx(health, rel=1e-4)


def test_a_worker_looks_up_its_own_images_and_refuses_others() -> None:
    pseudo = PseudoLabels(torch.tensor([4, 0, 2], dtype=torch.int32), torch.eye(5), RowRange(10, 13, 20))
    found = pseudo.of(torch.tensor([12, 10, 10]))
    assert found.dtype == torch.int64
    assert found.tolist() == [2, 4, 4]
    for other in (9, 13):
        with pytest.raises(IndexError):
            pseudo.of(torch.tensor([other]))


@pytest.mark.parametrize("rows", [IMAGES - 1, IMAGES + 1])
def test_blocks_with_other_rows_than_the_workers_are_an_error(data: tuple[Tensor, Manifest], rows: int) -> None:
    run = small_run(*data)
    index = torch.arange(rows) % IMAGES
    images = data[0]
    run.feed.inputs.blocks = lambda: iter([(images[index], index)])
    with pytest.raises(ValueError, match=f"{rows} images were read for the 200 rows 0 to 199 of 200; ingest"):
        encode_all(run.state.model, run.feed.inputs, run.feed.preprocess)


def clustered(
    features: Tensor, clusters: int, settings: EStepConfig, previous: PseudoLabels | None = None, **options: Any
) -> tuple[PseudoLabels, dict[str, float]]:
    """`estimate` on one worker, which owns all rows."""
    return estimate(features, row_range(len(features)), clusters, settings, 0, previous, **options)


def test_churn_counts_images_not_cluster_numbers() -> None:
    features = torch.nn.functional.one_hot(torch.tensor([0] * 6 + [1] * 6), 4).float()
    settings = small_run_settings()
    first, health = clustered(features, 2, settings)
    assert "label_churn" not in health
    swapped = PseudoLabels(1 - first.labels, first.centers.flip(0), first.own)
    assert clustered(features, 2, settings, swapped)[1]["label_churn"] == pytest.approx(0)
    moved = PseudoLabels(torch.cat([1 - first.labels[:3], first.labels[3:]]), first.centers, first.own)
    assert clustered(features, 2, settings, moved)[1]["label_churn"] == pytest.approx(0.25)


def small_run_settings() -> EStepConfig:
    return EStepConfig(restarts=2)


def test_spread_is_one_on_an_even_sphere_and_zero_when_collapsed() -> None:
    sphere = torch.nn.functional.normalize(torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    settings = small_run_settings()
    assert clustered(sphere, 2, settings)[1]["feature_spread"] == pytest.approx(1, abs=0.01)
    same = torch.ones(50, 4) / 2
    assert clustered(same, 2, settings)[1]["feature_spread"] == pytest.approx(0, abs=1e-3)


def test_very_many_clusters_are_found_in_two_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.nn.functional.normalize(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    monkeypatch.setattr(estep, "MANY_CLUSTERS", 9)
    found, _ = clustered(features, 9, small_run_settings())
    assert found.labels.unique().tolist() == list(range(9))
    assert found.others is not None
    assert len(found.others) == 0
    flat = clustered(features, 8, small_run_settings())[0]
    assert flat.others is not None
    assert len(flat.others) == 1


def test_centres_can_be_fitted_on_fewer_images() -> None:
    features = torch.nn.functional.normalize(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    inertia = [clustered(features, 5, EStepConfig(fit_rows=rows))[1]["inertia"] for rows in (None, 20)]
    assert inertia[0] < inertia[1]
