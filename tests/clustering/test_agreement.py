"""Agreement of clusterings, against counts made by hand."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from pipeline.clustering.agreement import count_pairs, jaccard_of_best, majority, match_clusters, matched_to_first


def test_clusters_are_matched_one_to_one() -> None:
    assert match_clusters(csr_array([[0, 9], [8, 1]])).tolist() == [1, 0]
    assert match_clusters(csr_array([[5, 4, 0], [0, 4, 1]])).tolist() == [0, 1, -1]  # a cluster more
    assert match_clusters(csr_array([[5], [6], [1]])).tolist() == [1]


def test_the_jaccard_index_of_the_most_similar_cluster() -> None:
    table = csr_array([[6, 2], [0, 4], [0, 0]])
    np.testing.assert_allclose(jaccard_of_best(table), [6 / 8, 4 / 6, 0])


def test_the_cluster_of_most_clusterings_and_the_share_of_them() -> None:
    clusters = np.array([[0, 1, 2, 0], [0, 2, 1, -1], [1, 2, 0, -1]])
    winner, share = majority(clusters)
    assert winner.tolist() == [0, 2, 2, 0]  # where all differ the first counts, and -1 agrees with nothing
    np.testing.assert_allclose(share, [2 / 3, 2 / 3, 1 / 3, 1 / 3])


def test_pairs_of_clusters_are_counted() -> None:
    table = count_pairs(np.array([0, 0, 2, 2], np.int32), np.array([1, 1, 0, 1], np.int32))
    assert table.toarray().tolist() == [[0, 2], [0, 0], [1, 1]]


def test_clusterings_are_numbered_as_the_first() -> None:
    first = np.array([0, 0, 1, 1, 1, 2], np.int32)
    found = matched_to_first(np.stack([first, np.array([1, 1, 0, 0, 3, 2], np.int32), first]))
    assert found.dtype == np.int32  # a row for each member and a column for each image: it must not double
    assert found.tolist() == [[0, 0, 1, 1, 1, 2], [0, 0, 1, 1, -1, 2], [0, 0, 1, 1, 1, 2]]
