"""Scores without classes: by hand, against scikit-learn, and on clusters whose quality is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.metrics import silhouette_score
from torch import Tensor
from torch.nn.functional import one_hot

from pipeline.clustering.label_free import (
    LABEL_FREE_WEIGHTS,
    assignment_agreement,
    contingency_agreement,
    cosine_silhouette,
    label_free_score,
    prototype_margin,
)
from tests.helpers.workers import Workers


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_silhouette_by_hand() -> None:
    angles = torch.tensor([0.0, math.pi / 3, math.pi])  # cosine distances: 1/2 inside the pair, 2 and 3/2 across
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    expected = ((2 - 1 / 2) / 2 + (3 / 2 - 1 / 2) / (3 / 2) + 0) / 3
    assert cosine_silhouette(features, torch.tensor([0, 0, 1])) == pytest.approx(expected)


def test_silhouette_is_that_of_scikit_learn_and_blind_to_length() -> None:
    features, labels = noise(60, 8), torch.arange(60) % 5
    expected = silhouette_score(features.numpy(), labels.numpy(), metric="cosine")
    assert cosine_silhouette(features, labels) == pytest.approx(expected, abs=1e-12)
    assert cosine_silhouette(features * torch.arange(1, 61)[:, None], labels) == pytest.approx(expected, abs=1e-12)


def test_silhouette_where_the_definition_ends() -> None:
    features = noise(6, 3)
    assert cosine_silhouette(features, torch.zeros(6)) == -1
    assert cosine_silhouette(features, torch.arange(6)) == 0


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_rounding_of_a_collapsed_network_is_not_structure(precision: torch.dtype) -> None:
    features = (noise(1, 64) * (1 + torch.finfo(precision).eps / 2 * noise(200, 64).sign())).float()
    labels = (features[:, 0] > features[:, 0].mean()).long()
    assert len(labels.unique()) == 2
    assert cosine_silhouette(features, labels) == 0


def test_agreement_by_hand() -> None:
    # pairs put together by both: 1; by each: 2 and 1, of 6; so 1/3 by chance, and 3/2 at most
    assert assignment_agreement([0, 0, 1, 1], [0, 0, 1, 2]) == pytest.approx((1 - 1 / 3) / (3 / 2 - 1 / 3))


def test_agreement_asks_for_the_same_clusters_not_for_the_same_numbers() -> None:
    assert assignment_agreement([0, 0, 1, 2], [7, 7, 3, 5]) == 1


@pytest.mark.parametrize("shares", [(0.25, 0.25, 0.25, 0.25), (0.94, 0.02, 0.02, 0.02)])
def test_agreement_of_random_assignments_is_zero(shares: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.choice(4, 20_000, p=shares) for _ in range(2))
    assert assignment_agreement(first, second) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("other", [[0, 0, 0], [1, 1, 1], [0, 0, 1]])
def test_one_cluster_agrees_with_nothing(other: list[int]) -> None:
    assert assignment_agreement([0, 0, 0], other) == assignment_agreement(other, [0, 0, 0]) == 0


def test_agreement_from_counts_leaves_out_empty_clusters() -> None:
    table = csr_array([[2, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]])  # the same as by hand above
    assert contingency_agreement(table) == assignment_agreement([0, 0, 1, 1], [0, 0, 1, 2])
    assert contingency_agreement(csr_array([[3, 0], [0, 0]])) == 0
    assert contingency_agreement(csr_array([[2, 1], [0, 0]])) == 0


def test_margin_by_hand() -> None:
    features, centers = torch.tensor([[3.0, 0.0], [0.6, 0.8]]), torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert prototype_margin(features, centers) == pytest.approx((1 + 0.2) / 2)


def test_margin_of_equal_features_is_zero() -> None:
    assert prototype_margin(torch.ones(5, 3), torch.ones(2, 3)) == pytest.approx(0, abs=1e-6)


def _margin(rank: int, features: Tensor, centers: Tensor, cuts: list[int]) -> float:
    return prototype_margin(features[cuts[rank] : cuts[rank + 1]], centers)


@pytest.mark.parametrize("cuts", [[0, 10, 100], [0, 0, 100]])
def test_margin_is_the_same_on_two_workers(pair: Workers, cuts: list[int]) -> None:
    features, centers = noise(100, 6), noise(4, 6)
    expected = prototype_margin(features, centers)
    assert pair.run(_margin, features, centers, cuts) == [pytest.approx(expected, rel=1e-12)] * 2


PERFECT = dict.fromkeys(LABEL_FREE_WEIGHTS, 1.0)


def test_label_free_score_is_bounded() -> None:
    assert sum(LABEL_FREE_WEIGHTS.values()) == pytest.approx(1)
    assert label_free_score(PERFECT) == 1
    assert label_free_score(dict.fromkeys(PERFECT, 0.3)) == pytest.approx(0.3)
    assert label_free_score({**PERFECT, "acc": 0.0}) == 1  # what is no part does not count


@pytest.mark.parametrize("part", PERFECT)
def test_what_fails_on_one_count_fails(part: str) -> None:
    assert label_free_score(PERFECT | {part: 0.0}) == 0
    assert label_free_score(PERFECT | {part: -0.2}) == 0


def test_label_free_score_of_collapse_and_of_stable_but_lopsided_clusters() -> None:
    good = {"view_agreement": 0.8, "silhouette": 0.4, "size_entropy": 0.98, "estep_agreement": 0.95}
    features, labels = torch.ones(100, 4), torch.zeros(100)
    nothing = cosine_silhouette(features, labels), assignment_agreement(labels, labels)
    collapse = {"silhouette": nothing[0], "view_agreement": nothing[1], "estep_agreement": 1.0, "size_entropy": 0.0}
    assert label_free_score(collapse) == 0

    halves = {"view_agreement": 1.0, "silhouette": 0.9, "estep_agreement": 1.0, "size_entropy": math.log(2, 10)}
    outlier = PERFECT | {"size_entropy": -(0.99 * math.log(0.99, 10) + 0.01 * math.log(0.01, 10))}
    assert label_free_score(outlier) < label_free_score(halves) < label_free_score(good) - 0.1


def test_separated_clusters_score_higher_than_blurred_ones() -> None:
    labels = torch.arange(300) % 5
    clean, blurred = (one_hot(labels, 8) + scale * noise(300, 8) for scale in (0.1, 0.5))
    assert cosine_silhouette(clean, labels) > cosine_silhouette(blurred, labels) + 0.3
    centers = one_hot(torch.arange(5), 8).double()
    assert prototype_margin(clean, centers) > prototype_margin(blurred, centers) + 0.2
