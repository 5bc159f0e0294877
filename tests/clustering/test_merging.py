"""Merging clusters: by hand, on directions in a plane."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.clustering.merging import center_tree, cut, group_names, merge_jumps, merged_centers

DEGREES = [200.0, 0.0, 90.0, 210.0, 8.0]  # pairs 1 + 4 and 0 + 3, and 2 alone, which is nearer to 1 + 4


def centers(degrees: list[float], length: float = 1.0) -> Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return length * torch.stack([angles.cos(), angles.sin()], dim=1)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [(5, [0, 1, 2, 3, 4]), (4, [0, 1, 2, 3, 1]), (3, [0, 1, 2, 0, 1]), (2, [0, 1, 1, 0, 1]), (1, [0] * 5)],
)
def test_the_nearest_are_merged_first(groups: int, expected: list[int]) -> None:
    assert cut(center_tree(centers(DEGREES)), groups).tolist() == expected


def test_equal_merges_leave_the_number_that_was_asked_for() -> None:
    tree = center_tree(torch.eye(6))  # all merges at height 1
    assert [len(set(cut(tree, groups))) for groups in range(1, 7)] == [1, 2, 3, 4, 5, 6]


def test_jumps_by_hand() -> None:
    tree = center_tree(centers([0.0, 60.0, 180.0]))  # heights 1/2, and the mean of 2 and 3/2
    assert merge_jumps(tree) == pytest.approx([0, 7 / 4 - 1 / 2], abs=1e-6)


def test_the_jump_stands_where_clusters_are_left() -> None:
    assert int(merge_jumps(center_tree(centers(DEGREES))).argmax()) + 1 == 3


def test_the_length_of_a_centre_does_not_count() -> None:
    assert np.allclose(center_tree(centers(DEGREES)), center_tree(centers(DEGREES, 7.0)), atol=1e-6)


def test_the_centre_of_an_empty_cluster_is_as_far_as_a_right_angle() -> None:
    tree = center_tree(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert tree[:, 2].tolist() == [1.0]


def test_the_centre_of_a_group_is_the_mean_of_its_rows() -> None:
    parts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    merged = merged_centers(parts, torch.tensor([4, 1, 3]), np.array([0, 1, 1]))
    assert merged.tolist() == [[1.0, 0.0], [0.0, 2.5]]


def test_clusters_of_a_group_share_a_name_that_says_which_they_are() -> None:
    assert group_names(np.array([0, 1, 2, 0, 1])) == {0: "0+3", 1: "1+4", 2: "2", 3: "0+3", 4: "1+4"}


def test_one_centre_makes_no_tree() -> None:
    with pytest.raises(ValueError, match="centers has 1 row; give at least 2"):
        center_tree(centers([0.0]))
