"""Pairs of cached features: keyed draws, neighbours, and the same from memory as from a mapped file."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backbone_features import load
from pipeline.backbone_features.cache import FeatureCache
from pipeline.backbone_features.inputs import CachedFeatures
from pipeline.backbone_features.load import load_backbone_features
from pipeline.clustering.kmeans import spherical_kmeans
from pipeline.collectives import RowRange
from pipeline.config.models import RunConfig
from pipeline.data.loader import Inputs
from pipeline.data.order import Order
from pipeline.errors import DataError
from pipeline.inference.run_features import features_of, open_features
from pipeline.method.losses import unit
from pipeline.storage import Folder
from pipeline.training.estep import run_estep
from pipeline.training.mstep import train_epoch
from pipeline.training.run import Run
from tests.helpers.cached_features import cached_run, frozen_config, make_cache
from tests.helpers.small_run import snapshot
from tests.helpers.workers import Workers

CPU = torch.device("cpu")
NUMBERED = torch.arange(40 * 4).view(40, 4, 1).half()  # feature = 4 * image + view


def source() -> CachedFeatures:
    return CachedFeatures(NUMBERED, CPU, own=RowRange(0, 40, 40), seed=0, block_size=16)


def inputs() -> Inputs:
    return Inputs(Order(40, 10, 0, 40, (40,)), source(), CPU)


def test_a_pair_is_two_different_augmented_views_of_an_image() -> None:
    index = torch.arange(40).repeat(50)
    pairs = torch.cat([source().pairs(torch.arange(40), epoch) for epoch in range(50)]).squeeze(2).long()
    assert (pairs // 4).equal(torch.stack([index, index], 1))
    views = pairs % 4
    assert views.unique().tolist() == [1, 2, 3]
    assert bool((views[:, 0] != views[:, 1]).all())
    counts = torch.bincount(views[:, 0] * 4 + views[:, 1], minlength=16)[[6, 7, 9, 11, 13, 14]]
    assert counts.min() > 250  # of 2,000 over six ordered pairs, 333 each


def test_the_second_of_a_pair_may_be_a_neighbour() -> None:
    neighbours = torch.stack([(torch.arange(40) + step) % 40 for step in (1, 2, 3)], dim=1)
    pairs = torch.stack([source().pairs(torch.arange(40), epoch, neighbours) for epoch in range(50)]).squeeze(3).long()
    steps = (pairs[..., 1] // 4 - pairs[..., 0] // 4) % 40
    assert steps.unique().tolist() == [1, 2, 3]
    assert (pairs % 4).unique().tolist() == [1, 2, 3]


def test_a_pair_depends_on_its_image_and_epoch_alone() -> None:
    whole = source().pairs(torch.arange(40), 3)
    some = torch.tensor([7, 3, 39])
    assert source().pairs(some, 3).equal(whole[some])
    assert not source().pairs(some, 4).equal(whole[some])


def test_batches_begin_where_a_resume_is() -> None:
    batches = list(inputs().epoch(2))
    assert [batch.index.tolist() for batch in inputs().epoch(2, first_step=2)] == [
        b.index.tolist() for b in batches[2:]
    ]
    assert torch.cat([batch.index for batch in batches]).sort().values.tolist() == list(range(40))


def test_images_drawn_by_weight_have_pairs_of_their_own_each_time() -> None:
    weights = torch.tensor([0.25, 1.75] * 20, dtype=torch.float64)
    batches = list(inputs().epoch(2, weights=weights))
    rest = list(inputs().epoch(2, 1, weights))
    keys, pairs = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("keys", "inputs"))
    assert [batch.keys.tolist() for batch in rest] == [batch.keys.tolist() for batch in batches[1:]]
    assert (pairs[:, 0, 0].long() // 4).equal(keys % 40)
    assert torch.cat([batch.index for batch in batches]).equal(keys % 40)
    assert len(keys.unique()) == 40
    again = [image for image in range(1, 40, 2) if (keys % 40 == image).sum() > 1]
    assert 5 < len(again) < 20
    assert any(len(pairs[keys % 40 == image].unique(dim=0)) > 1 for image in again)


def test_blocks_are_the_un_augmented_features() -> None:
    blocks = list(inputs().blocks())
    assert torch.cat([features for features, _ in blocks]).flatten().tolist() == list(range(0, 160, 4))
    assert [len(index) for _, index in blocks] == [16, 16, 8]
    assert torch.cat([features for features, _ in source().blocks(2)]).flatten().tolist() == list(range(2, 160, 4))


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder, FeatureCache, Any]:
    config = frozen_config(tmp_path_factory.mktemp("inputs"), "optim.precision=float64", "estep.fit_views=true")
    return config, *make_cache(config)


def test_a_mapped_file_holds_the_same_and_leaves_nothing(
    cached: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, folder, cache, _ = cached
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    resident = load_backbone_features(folder, cache, CPU, limit_gb=1, first_on_node=True)
    mapped = load_backbone_features(folder, cache, CPU, limit_gb=0, first_on_node=True)
    assert mapped.equal(resident)
    assert list(tmp_path.iterdir()) == []  # although it is in use


def test_two_trials_of_a_node_map_a_file_each(cached: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also when both write at the same time; and what killed workers left is deleted, and no file in use."""
    _, folder, cache, _ = cached
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    together = threading.Barrier(2)
    monkeypatch.setattr(load, "_wait_for_all", lambda _: together.wait(60))
    (tmp_path / f"{load.PREFIX}{os.getuid()}-dead").write_bytes(b"of a killed worker")
    with ThreadPoolExecutor(2) as pool:
        trials = [
            pool.submit(load_backbone_features, folder, cache, CPU, limit_gb=0, first_on_node=True) for _ in range(2)
        ]
        first, second = (trial.result() for trial in trials)
    first[0, 0, 0] = 7  # of its own file alone
    monkeypatch.undo()
    expected = load_backbone_features(folder, cache, CPU, limit_gb=1, first_on_node=True)
    assert second.equal(expected)
    assert first[1:].equal(expected[1:])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(cached: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder, cache, _ = cached
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(load.shutil, "disk_usage", lambda _: usage(10))
    with pytest.raises(DataError, match=r"cached features take .* has no room \(0.0 GiB free\); set TMPDIR"):
        load_backbone_features(folder, cache, CPU, limit_gb=0, first_on_node=True)


def trained(rank: int, config: RunConfig, folder: str, manifest: Any) -> dict[str, Any]:
    os.environ.setdefault("TMPDIR", tempfile.gettempdir())
    run: Run = cached_run(config, folder, manifest)
    run_estep(run)
    train_epoch(run)
    run_estep(run)
    train_epoch(run)
    return snapshot(run) | {"loss": run.state.loss_sums["loss"].clone(), "history": run.state.history[-1]}


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_two_workers_equal_one(pair: Workers, cached: Any, mode: str) -> None:
    config, folder, _, manifest = cached
    config = config.model_copy(update={"data": config.data.model_copy(update={"mode": mode})})
    one = trained(0, config, folder.path, manifest)
    two = pair.run(trained, config, folder.path, manifest)
    for other in two:
        assert other["labels"].equal(one["labels"])
        for name, value in one.items():
            if isinstance(value, Tensor) and value.is_floating_point() and name not in ("loss", "bank"):
                torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert two[0]["history"] == pytest.approx(one["history"], rel=1e-6)
    torch.testing.assert_close((two[0]["loss"] + two[1]["loss"]) / 2, one["loss"], rtol=1e-9, atol=1e-11)


def test_images_are_clustered_by_the_mean_over_their_views(cached: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's folder has it, and what the model has for the image as it is."""
    config, folder, _, manifest = cached
    run = cached_run(config, folder.path, manifest)
    assert isinstance(run.feed.inputs.source, CachedFeatures)
    encoded = [run.state.model.encode(run.feed.inputs.source.features[:, view].float()) for view in range(4)]
    mean = unit(torch.stack(encoded).sum(dim=0))
    monkeypatch.setattr(run.state, "epochs_done", config.optim.epochs)
    run_estep(run)
    assert run.state.pseudo is not None
    found = spherical_kmeans(mean, 10, restarts=config.estep.restarts, empty="reseed")
    torch.testing.assert_close(run.state.pseudo.centers, found.centers)
    assert run.state.pseudo.labels.equal(found.labels.int())
    table = open_features(run.job.folder).to_table()
    for column, features in (("", mean), ("seen_", encoded[0])):
        np.testing.assert_allclose(features_of(table, f"{column}feature"), features, atol=1e-3)
        nearest = features @ unit(found.centers).T
        assert table.column(f"{column}cluster").to_pylist() == nearest.argmax(dim=1).tolist()
        np.testing.assert_allclose(table.column(f"{column}similarity"), nearest.amax(dim=1), atol=1e-6)
    assert table.column("cluster") != table.column("seen_cluster")
    assert table.column("cluster").to_pylist() == found.labels.tolist()
