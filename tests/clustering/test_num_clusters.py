"""How many clusters: each criterion by hand or on clusters whose number is known, and what they say together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from pipeline.clustering.label_free import cosine_silhouette
from pipeline.clustering.num_clusters import (
    Recommendation,
    cluster,
    cluster_links,
    eigengap,
    gap_statistic,
    highest,
    modularity,
    neighbour_graph,
    neighbours_for,
    recommend,
    sharpest_bend,
    stability,
)

NUMBERS = range(4, 10)


def mixture(clusters: int, seed: int, *, rows: int = 300, size: int = 24, noise: float = 0.8) -> Tensor:
    """Unit rows around random directions, in clusters of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    centers = F.normalize(torch.randn(clusters, size, generator=generator), dim=1)
    shares = torch.linspace(1, 2, clusters)
    labels = torch.multinomial(shares, rows, replacement=True, generator=generator)
    return F.normalize(centers[labels] + noise * torch.randn(rows, size, generator=generator) / size**0.5, dim=1)


def two_triangles() -> sparse.csr_matrix:
    """Rows 0, 1, 2 and 3, 4, 5, each linked with each, and a bridge between 2 and 3."""
    links = np.zeros((6, 6))
    for a, b in [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (2, 3)]:
        links[a, b] = links[b, a] = 1
    return sparse.csr_matrix(links)


def curve(score: Callable[[Tensor, int], float], features: Tensor) -> int:
    return highest(NUMBERS, [score(features, number) for number in NUMBERS])


def gap(features: Tensor, number: int) -> float:
    return gap_statistic(features, cluster(features, number, 0).centers, references=2, seed=0)


@pytest.mark.parametrize(("clusters", "seed"), [(5, 0), (8, 1)])
def test_every_criterion_finds_the_number_of_clear_clusters(clusters: int, seed: int) -> None:
    features = mixture(clusters, seed)
    graphs = [neighbour_graph(features, neighbours_for(len(features), number)) for number in NUMBERS]
    labels = [cluster(features, number, 0).labels for number in NUMBERS]
    picks = {
        "silhouette": highest(NUMBERS, [cosine_silhouette(features, found) for found in labels]),
        "stability": curve(lambda rows, number: stability(rows, number, pairs=2, seed=0), features),
        "gap": sharpest_bend(NUMBERS, [gap(features, number) for number in NUMBERS]),
        "modularity": highest(NUMBERS, [modularity(graphs[2], found.numpy()) for found in labels]),
        "eigengap": highest(NUMBERS, list(map(eigengap, graphs, NUMBERS))),
    }
    assert picks == dict.fromkeys(picks, clusters)


def test_unstable_clusters_agree_by_chance_only() -> None:
    noise = F.normalize(torch.randn(300, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    assert stability(noise, 8, pairs=2, seed=0) < 0.2
    assert stability(mixture(8, 0), 8, pairs=2, seed=0) > 0.9


def test_the_gap_of_rows_without_clusters_is_small() -> None:
    flat = F.normalize(torch.rand(300, 24, generator=torch.Generator().manual_seed(1)) - 0.5, dim=1)
    assert abs(gap(flat, 8)) < 0.1
    assert gap(mixture(8, 0), 8) > 0.3


def test_the_neighbour_graph_links_the_nearest_in_both_directions() -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 2.0])
    graph = neighbour_graph(torch.stack([angles.cos(), angles.sin()], dim=1), 1)
    assert sorted(zip(*graph.nonzero(), strict=True)) == [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)]
    assert set(graph.data) == {1}


@pytest.mark.parametrize("noise", [0.3, 1.5])
def test_the_eigengap_is_that_of_the_dense_laplacian_in_one_part_or_in_three(noise: float) -> None:
    graph = neighbour_graph(mixture(3, 0, rows=1200, noise=noise), 5)
    assert connected_components(graph)[0] == (3 if noise < 1 else 1)
    dense = graph.toarray()
    degree = dense.sum(axis=1)
    values = np.linalg.eigvalsh(np.eye(1200) - dense / np.sqrt(np.outer(degree, degree)))
    assert [eigengap(graph, number) for number in range(1, 7)] == pytest.approx(np.diff(values)[:6], abs=1e-4)


def test_modularity_by_hand() -> None:
    graph = two_triangles()  # 7 links, of which 1 joins the triangles; each has half of the 14 ends
    assert cluster_links(graph, np.array([0, 0, 0, 1, 1, 1])).tolist() == [[6, 1], [1, 6]]
    assert modularity(graph, np.array([0, 0, 0, 1, 1, 1])) == pytest.approx(12 / 14 - 2 * 0.25)
    assert modularity(graph, np.zeros(6, int)) == pytest.approx(0)


def test_the_sharpest_bend_is_where_a_curve_rises_before_and_no_more_after() -> None:
    assert sharpest_bend([5, 6, 7, 8], [0.1, 0.2, 0.6, 0.65]) == 7
    assert sharpest_bend([5, 6, 7, 8], [0.9, 0.2, 0.3, 0.9]) == 7  # of the inner two, though neither is a bend


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([10, 10, 10, 10, 10], Recommendation(10, 1.0)),
        ([9, 10, 11, 20, 30], Recommendation(10, 0.6)),
        ([10, 11, 10, 20, 5], Recommendation(10, 0.6)),
        ([5, 10, 20, 30, 40], Recommendation(20, 0.2)),
        ([10, 11, 30, 31], Recommendation(11, 0.5)),
    ],
)
def test_most_votes_within_one_win_then_the_middle(votes: list[int], expected: Recommendation) -> None:
    assert recommend({str(place): vote for place, vote in enumerate(votes)}) == expected
