"""ACC, NMI and ARI against the golden values and the cases the reference gets wrong."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.clustering.scores import clustering_scores
from tests.conftest import golden

METRICS = golden("metrics")
CASES = sorted({key.split("/")[0] for key in METRICS})


@pytest.mark.parametrize("case", CASES)
def test_scores_match_the_golden_values(case: str) -> None:
    scores = clustering_scores(METRICS[f"{case}/label"].numpy(), METRICS[f"{case}/pred"].numpy())
    assert scores["acc"] == pytest.approx(float(METRICS[f"{case}/acc_hungarian"]), abs=1e-12)
    assert scores["nmi"] == pytest.approx(float(METRICS[f"{case}/nmi"]), abs=1e-12)
    assert scores["ari"] == pytest.approx(float(METRICS[f"{case}/ari"]), abs=1e-12)


def test_scores_of_unlabelled_data_are_an_error() -> None:
    with pytest.raises(ValueError, match="every class is -1"):
        clustering_scores([-1, -1], [0, 1])


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="two arrays of one length"):
        clustering_scores(np.zeros(3), np.zeros(4))
