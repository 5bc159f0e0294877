"""What of a clustering is shown: chosen by numbers, within limits."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.report import choice
from pipeline.report.choice import (
    Assignments,
    ClusterTotals,
    contact_sheets,
    count_classes,
    count_images,
    judge_pairs,
    largest_clusters,
    listed_outliers,
    near_pairs,
)


def images(cluster: list[int], similarity: list[float], margin: list[float], **more: list[float]) -> Assignments:
    count = len(cluster)
    return Assignments(
        path=[f"{number}.png" for number in range(count)],
        cluster=np.array(cluster),
        runner_up=np.zeros(count, np.int64),
        similarity=np.array(similarity, np.float32),
        margin=np.array(margin, np.float32),
        outlier=np.array(more.get("outlier", [0.0] * count), np.float32),
        label=np.array(more["label"]) if "label" in more else None,
    )


def test_a_sheet_has_the_typical_images_and_those_at_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "CONTACTS", 6)
    monkeypatch.setattr(choice, "SMALLEST_SHEET", 3)
    table = images([1, 0, 1, 1, 0, 1], [0.9, 0.5, 0.7, 0.8, 0.6, 0.1], [0.01, 0.4, 0.2, 0.3, 0.5, 0.25])
    zero, one, empty = contact_sheets(table, np.array([0, 1, 2]))
    assert (zero.typical.tolist(), zero.border.tolist()) == ([4, 1], [])
    assert one.typical.tolist() == [0, 3]
    assert one.border.tolist() == [2]  # of the others the least margin; image 0 is typical already
    assert empty.images.tolist() == []


@pytest.mark.parametrize(("clusters", "size"), [(2, 72), (1000, 12), (2000, 6)])
def test_more_clusters_have_smaller_sheets(clusters: int, size: int) -> None:
    count = clusters * 80
    table = images([n % clusters for n in range(count)], [0.5] * count, [0.1] * count)
    sheets = contact_sheets(table, np.arange(clusters))
    assert {len(sheet.images) for sheet in sheets} == {size}
    assert sum(len(sheet.images) for sheet in sheets) <= choice.CONTACTS


def test_the_largest_clusters_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "CLUSTERS", 2)
    assert largest_clusters(np.bincount([3, 3, 0, 1, 1, 1], minlength=5)).tolist() == [1, 3]


def test_outliers_are_those_above_the_limit_the_farthest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    table = images([0] * 4, [0.5] * 4, [0.1] * 4, outlier=[4.0, 3.4, 9.0, 5.0])
    assert listed_outliers(table).tolist() == [2, 3, 0]
    monkeypatch.setattr(choice, "OUTLIERS", 2)
    assert listed_outliers(table).tolist() == [2, 3]


def test_a_pair_is_found_once_whoever_is_whose_neighbour() -> None:
    neighbours = np.array([[1, 2], [0, 2], [1, 0]])
    similarity = np.array([[0.999, 0.5], [0.999, 0.995], [0.995, 0.5]])
    pairs, cosines = near_pairs(neighbours, similarity)
    assert pairs.tolist() == [[0, 1], [1, 2]]
    assert cosines.tolist() == [0.999, 0.995]


def test_the_pixels_tell_copies_from_what_belongs_together() -> None:
    pictures = np.zeros((3, 2, 4, 4, 3), np.uint8)
    pictures[0, 1] = 255  # as different as can be, although the features are equal
    pictures[1, 1] = 5
    judged = judge_pairs(np.array([[0, 1], [2, 3], [4, 5]]), np.array([1.0, 0.999, 0.998]), pictures)
    assert [(pair.first, pair.likeness) for pair in judged] == [(4, "identical"), (2, "alike")]
    assert [pair.likeness for pair in judge_pairs(np.array([[0, 1]]), np.ones(1), None)] == ["not compared"]


def test_classes_are_counted_where_they_are_known() -> None:
    table = images([0, 0, 1, 1], [0.5] * 4, [0.1] * 4, label=[2, 2, -1, 0])
    assert [tuple(row) for row in count_classes(table).tolist()] == [(0, 1, 1), (2, 0, 2)]
    assert count_classes(images([0], [0.5], [0.1])).tolist() == []


def test_totals_of_parts_add_up_to_those_of_all_images() -> None:
    cluster, label = [0, 2, 2, 2, 0, 2], [1, 1, 0, 1, -1, 0]
    values = [0.5, 0.25, 0.5, 0.75, 1.0, 0.5]

    def part(rows: slice) -> ClusterTotals:
        shown = images(
            cluster[rows], values[rows], values[rows], outlier=[9.0, 1.0, 9.0, 3.5, 9.0, 4.0][rows], label=label[rows]
        )
        return count_images(shown, 3)

    found = part(slice(0, 3)).plus(part(slice(3, 6)))
    assert found.images == 6
    assert found.sizes.tolist() == [2, 0, 4]
    assert found.outliers.tolist() == [2, 0, 2]
    assert found.similarity.tolist() == found.margin.tolist() == [1.5, 0, 2.0]
    assert found.classes.tolist() == [[0, 2, 2], [1, 0, 1], [1, 2, 2]]
    assert found.majority(0) == (1, 1.0)
    assert found.majority(1) is None
    assert found.majority(2) == (0, 0.5)  # the lower number of a tie
