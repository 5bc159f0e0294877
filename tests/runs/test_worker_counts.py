"""Whole runs on one, two and three workers, on Ray: the labels are those of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipeline.config.loading import load_config
from pipeline.runs.train import train
from tests.helpers.runs import outcome, settings

MORE = ["optim.precision=float64", "optim.epochs=2"]


@pytest.fixture(autouse=True)
def cluster_of_its_own() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.mark.slow
def test_any_number_of_workers_ends_with_the_same_labels(tmp_path: Path) -> None:
    """In float64: in float32 rounding grows, as young features are nearly all alike."""
    base = settings(tmp_path, *MORE)
    one, two, three = (
        outcome(train(load_config("digits", [*base, f"name=double{n}", f"resources.workers={n}"]))["folder"])
        for n in (1, 2, 3)
    )
    assert one[1] == two[1] == three[1]
    for other in (two, three):
        assert [page.keys() for page in other[0]] == [page.keys() for page in one[0]]
        for page, expected in zip(other[0], one[0], strict=True):
            assert page == pytest.approx(expected, rel=1e-5, abs=1e-7)
