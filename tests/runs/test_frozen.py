"""A frozen backbone from end to end: images to features, features to clusters, and the model takes images again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest
import ray
import torch

from pipeline.config.loading import load_config
from pipeline.data.decode import decode_table
from pipeline.data.read import read_sample
from pipeline.errors import ConfigError
from pipeline.runs.evaluate import evaluate
from pipeline.runs.identity import claim_features, read_started_run
from pipeline.runs.models import load_model
from pipeline.runs.train import train
from pipeline.storage import Folder
from pipeline.training.checkpoint import newest_in
from tests.helpers.runs import end, family, outcome, settings, start

FROZEN = [
    "model.encoder=python:tests.helpers.backbones:with_input",
    "model.freeze=true",
    "views.size=null",
    "views.cached=4",
    "views.neighbours=5",
    "data.image_size=null",
    "resources.workers=1",
    "tracking.enabled=false",
    "name=frozen",
]


@pytest.fixture(autouse=True)
def cluster_of_its_own() -> Iterator[None]:
    yield
    ray.shutdown()


def parts(folder: Path) -> dict[str, int]:
    """The parts of the only cache of a storage folder, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("runs/features/*/part-*.parquet")}


def kill_in_embed(folder: Path, arguments: list[str]) -> None:
    """Start the training, and kill all of it when a few parts of the cache are there."""
    process = start(arguments, folder / "log")
    deadline = time.monotonic() + 180
    while len(parts(folder)) < 3:
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.01)
    end([*family(process.pid), process])  # type: ignore[list-item]
    process.wait(30)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_run_killed_while_it_embeds_computes_nothing_twice(tmp_path: Path) -> None:
    resumed = killed_and_resumed(tmp_path)
    assert_the_model_takes_images(Path(resumed["folder"]))


@pytest.mark.chaos
def test_a_run_killed_while_it_embeds_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    undisturbed = train(load_config("digits", settings(whole, *FROZEN)))
    ray.shutdown()
    assert outcome(killed_and_resumed(killed)["folder"]) == outcome(undisturbed["folder"])


def killed_and_resumed(folder: Path) -> dict[str, Any]:
    """The summary of a run that was killed while it built its cache; what was written before is not written again."""
    kill_in_embed(folder, settings(folder, *FROZEN))
    before = parts(folder)
    assert 3 <= len(before) < 56
    lines: list[str] = []
    resumed = train(load_config("digits", settings(folder, *FROZEN)), echo=lines.append)
    assert before.items() <= parts(folder).items()
    assert any("images are already done" in line for line in lines)
    return resumed


def assert_the_model_takes_images(run: Path) -> None:
    """The checkpoint holds the backbone: without the cache, images go to the clusters that their features went to."""
    config, manifest = read_started_run(Folder(str(run)))
    assert (config.data.image_size, config.views.size, config.data.fit) == (20, 16, "crop")
    for file in run.parent.glob("features/*/*"):
        file.unlink()
    values = newest_in(str(run))
    assert values is not None
    block = decode_table(read_sample(config.data.path, manifest, 500), **config.data.decoding)
    with torch.inference_mode():
        found = load_model(str(run))(torch.from_numpy(block["image"]))[0].argmax(dim=1)
    assert (found == values["labels"][:500]).float().mean() > 0.99  # float16 may turn an image on a border
    scores = evaluate(str(run))["scores"]
    assert scores["acc"] == pytest.approx(values["history"][-1]["acc"], abs=0.01)
    assert pads.dataset(run / "evaluation" / "assignments.parquet").count_rows() == 1797


def test_a_run_does_not_go_on_with_other_weights(tmp_path: Path) -> None:
    from tests.helpers.cached_features import frozen_config, make_cache

    folder = Folder(str(tmp_path / "run")).make()
    _, cache, _ = make_cache(frozen_config(tmp_path), images=40)
    claim_features(folder, cache)
    claim_features(folder, cache)
    other = cache.model_copy(update={"key": cache.key.model_copy(update={"weights": "others"})})
    with pytest.raises(ConfigError, match=r"was started on other features .* weights of its backbone have changed"):
        claim_features(folder, other)
