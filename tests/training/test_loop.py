"""The EM loop as a whole: three gloo workers, with unequal shares of each batch, train as one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.data.shards import Manifest
from pipeline.training.loop import complete_epoch, run_em_loop
from tests.helpers.golden import assert_close
from tests.helpers.runs import timeless
from tests.helpers.small_run import IMAGES, digits, small_run, snapshot
from tests.helpers.workers import Workers

EPOCHS = 4


def _train(rank: int, data: tuple[Tensor, Manifest], *settings: str) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """What a whole run ends with, and its history without times."""
    run = small_run(*data, *settings, double=True)
    run_em_loop(run, complete_epoch)
    return snapshot(run), timeless(run.state.history)


def in_row_groups(manifest: Manifest) -> Manifest:
    """The manifest, as if the images lay in row groups of twenty."""
    shard = manifest.shards[0].model_copy(update={"rows": IMAGES, "groups": (20,) * (IMAGES // 20)})
    return manifest.model_copy(update={"shards": [shard]})


@pytest.mark.parametrize("settings", [[], ["data.shuffle_window=100"], ["optim.balance=0.8", "method.reset_every=3"]])
def test_three_workers_train_as_one(trio: Workers, tmp_path: Path, settings: list[str]) -> None:
    """With a small window each worker has lanes of its own; without, the window is the set."""
    images, manifest = digits(tmp_path)
    data = images, in_row_groups(manifest)
    alone, history = _train(0, data, *settings)
    assert len(history) == EPOCHS + 1
    for found, pages in trio.run(_train, data, *settings):
        assert found["labels"].equal(alone["labels"])
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            assert_close(found[name], value, rtol=1e-7)
        for page, expected in zip(pages, history, strict=True):
            assert {name: expected[name] for name in page} == pytest.approx(page, rel=1e-6, abs=1e-9)
    assert torch.tensor([page["loss"] for page in history[1:]]).isfinite().all()
