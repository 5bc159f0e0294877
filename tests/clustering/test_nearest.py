"""Nearest centres by hand, on ties, and chunk by chunk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from pipeline.clustering import nearest
from pipeline.clustering.nearest import center_margin, nearest_center


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_by_hand_with_rows_and_centers_of_any_length() -> None:
    centers = torch.tensor([[2.0, 0.0], [0.0, 0.1], [-9.0, 0.0]])
    found = nearest_center(torch.tensor([[3.0, 0.0], [0.6, 0.8], [-0.8, 0.6]]), centers)
    assert found.labels.tolist() == [0, 1, 2]
    torch.testing.assert_close(found.similarity, torch.tensor([1.0, 0.8, 0.8]))


def test_the_first_of_equal_centers_is_taken() -> None:
    centers = torch.eye(4).repeat(3, 1)
    assert nearest_center(torch.eye(4), centers).labels.tolist() == [0, 1, 2, 3]
    assert nearest_center(torch.ones(2, 4), centers).labels.tolist() == [0, 0]


def test_a_zero_row_or_center_has_similarity_zero() -> None:
    found = nearest_center(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [0.0, 0.0]]))
    assert found.similarity.tolist() == [0, 0]
    assert found.labels.tolist() == [0, 1]


def test_no_rows_give_no_labels() -> None:
    found = nearest_center(noise(0, 4), noise(3, 4))
    assert found.labels.shape == found.similarity.shape == (0,)
    assert found.labels.dtype == torch.int64
    assert center_margin(noise(0, 4), noise(3, 4)).shape == (0,)


@pytest.mark.parametrize("values", [1, 12, 37, 1 << 18])
def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    monkeypatch.setattr(nearest, "CHUNK_VALUES", values)
    features, centers = 3 * noise(40, 6), noise(5, 6)
    cosines = cosine_similarity(features[:, None], centers, dim=2)
    found = nearest_center(features, centers)
    assert found.labels.equal(cosines.argmax(dim=1))
    torch.testing.assert_close(found.similarity, cosines.amax(dim=1))
    best = cosines.sort(dim=1, descending=True).values
    torch.testing.assert_close(center_margin(features, centers), best[:, 0] - best[:, 1])
    covered = [rows.indices(40) for rows, _ in nearest.dot_chunks(features, centers)]
    assert [step for start, stop, _ in covered for step in range(start, stop)] == list(range(40))


def test_the_margin_to_a_single_center_is_an_error() -> None:
    with pytest.raises(ValueError, match="centers has 1 row; give at least 2"):
        center_margin(noise(3, 4), noise(1, 4))
