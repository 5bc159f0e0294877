"""Whole runs on one and on three workers, on Ray: the labels are those of one. For two see test_checkpoint.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipeline.config.loading import load_config
from pipeline.runs.train import train
from tests.helpers.runs import outcome, settings

MORE = ["optim.precision=float64", "optim.epochs=2", "tracking.enabled=false"]


@pytest.fixture(autouse=True)
def cluster_of_its_own() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("without_artifacts")
def test_any_number_of_workers_ends_with_the_same_labels(tmp_path: Path) -> None:
    """In float64: in float32 rounding grows, as young features are nearly all alike."""
    base = settings(tmp_path, *MORE)
    one, three = (
        outcome(train(load_config("digits", [*base, f"name=double{n}", f"resources.workers={n}"]))["folder"])
        for n in (1, 3)
    )
    assert three[1] == one[1]
    assert [page.keys() for page in three[0]] == [page.keys() for page in one[0]]
    for page, expected in zip(three[0], one[0], strict=True):
        assert page == pytest.approx(expected, rel=1e-5, abs=1e-7)
