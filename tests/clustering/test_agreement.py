"""Agreement of clusterings, against counts made by hand."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from pipeline.clustering.agreement import jaccard_of_best, match_clusters


def test_clusters_are_matched_one_to_one() -> None:
    assert match_clusters(csr_array([[0, 9], [8, 1]])).tolist() == [1, 0]
    assert match_clusters(csr_array([[5, 4, 0], [0, 4, 1]])).tolist() == [0, 1, -1]  # a cluster more
    assert match_clusters(csr_array([[5], [6], [1]])).tolist() == [1]


def test_the_jaccard_index_of_the_most_similar_cluster() -> None:
    table = csr_array([[6, 2], [0, 4], [0, 0]])
    np.testing.assert_allclose(jaccard_of_best(table), [6 / 8, 4 / 6, 0])
