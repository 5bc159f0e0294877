"""What `optim.precision=auto` means: settled once for all workers, and kept with the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.backbone_features import build_cache, encode
from pipeline.backbone_features.cache import CACHE, CacheKey
from pipeline.checks.capacity import Pool, actor_pool
from pipeline.config.loading import load_config
from pipeline.config.models import ResourcesConfig, RunConfig
from pipeline.errors import ConfigError
from pipeline.storage import Folder
from pipeline.training import precision
from pipeline.training.job import Job
from pipeline.training.precision import settle_job
from tests.helpers.workers import Workers

CPU = torch.device("cpu")


def job(folder: Path, *overrides: str) -> Job:
    config = load_config("digits", [f"storage={folder}", "name=run", *overrides])
    return Job(config, manifest=None, plan=None, tracking=None)  # type: ignore[arg-type]


def settle(rank: int, folder: Path, fast: list[bool], *overrides: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "multiplies_bfloat16", lambda device: fast[rank])
        made = job(folder, *overrides)
        made.folder.make()
        return settle_job(made, CPU).config.optim.precision


def test_workers_on_unequal_processors_agree_and_a_restart_keeps_it(pair: Workers, tmp_path: Path) -> None:
    assert pair.run(settle, tmp_path, [True, False]) == ["float32"] * 2
    assert pair.run(settle, tmp_path, [True, True]) == ["float32"] * 2  # the same run, elsewhere
    assert pair.run(settle, tmp_path / "other", [True, True]) == ["bfloat16"] * 2


def test_what_was_asked_for_is_not_settled(tmp_path: Path) -> None:
    assert settle(0, tmp_path, [True], "optim.precision=float64") == "float64"
    assert not list((tmp_path / "run").iterdir())


def settled(config: RunConfig, begun: str | None = None) -> str:
    def key(each: RunConfig) -> CacheKey:
        given = {"encoder": "", "weights": "", "preprocessing": {}, "views": {}, "precision": each.optim.precision}
        return CacheKey(images="", **given)  # type: ignore[arg-type]

    return build_cache.settle_precision(config, key, begun, build_cache.ON_RAY).optim.precision


@pytest.mark.parametrize(
    ("resources", "nodes", "expected"),
    [
        ({"gpus": True, "autoscale": True}, [{"CPU": 4.0}], "bfloat16"),  # they will come
        ({"gpus": False, "autoscale": True}, [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}], "float32"),
        ({}, [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}], "bfloat16"),
        ({}, [{"CPU": 4.0}], "float32"),
    ],
)
def test_features_have_the_precision_of_the_devices_that_were_asked_for(
    resources: dict[str, object],
    nodes: list[dict[str, float]],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(encode, "node_resources", lambda: nodes)
    monkeypatch.setattr(build_cache, "multiplies_bfloat16", lambda device: False)
    features = [f"data.features={tmp_path}", "data.path=digits"]
    config = load_config("digits", [*features, *(f"resources.{name}={value}" for name, value in resources.items())])
    assert settled(config) == expected
    other = next(name for name in ("float32", "bfloat16") if name != expected)
    assert settled(config, begun=other) == other
    chosen = build_cache.settled(config, other)
    key = CacheKey(images="", encoder="", weights="", preprocessing={}, views={}, precision=other)
    Folder(build_cache.cache_folder(chosen, key).path).make().write(CACHE, {})
    assert settled(config) == other  # it is there already


def test_pools_of_actors_grow_with_the_cluster() -> None:
    head, gpu = {"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}
    assert actor_pool(ResourcesConfig(gpus=True, autoscale=True), [head], 64) == Pool(True, 1, 64)
    assert actor_pool(ResourcesConfig(gpus=False, autoscale=True), [head], 64) == Pool(False, 4, 64)
    assert actor_pool(ResourcesConfig(), [head, gpu], 64) == Pool(True, 2, 64)
    assert actor_pool(ResourcesConfig(), [head, gpu], 1) == Pool(True, 1, 1)
    assert actor_pool(ResourcesConfig(), [head], 64) == Pool(False, 4, 4)
    with pytest.raises(ConfigError, match=r"unknown whether the cluster will have GPUs; set resources\.gpus"):
        actor_pool(ResourcesConfig(autoscale=True), [head], 64)
