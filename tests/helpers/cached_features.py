"""A small cache of features without Ray, and a run on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pipeline.backbone_features.build_cache import ensure_cache
from pipeline.backbone_features.cache import FeatureCache, read_backbone_features
from pipeline.backbone_features.encode import LocalEncoders
from pipeline.collectives import rank
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.data.ingest import ingest
from pipeline.data.shards import Manifest
from pipeline.plan import make_plan
from pipeline.runs.train import resolve
from pipeline.storage import Folder
from pipeline.tracking import RunRef
from pipeline.training.feed import cached_feed
from pipeline.training.job import Job
from pipeline.training.progress import Reporter
from pipeline.training.run import Run, new_run
from tests.helpers.small_run import SMALL

FROZEN = [
    *SMALL,
    "model.encoder=python:tests.helpers.backbones:with_input",
    "model.freeze=true",
    "views.cached=3",
    "views.neighbours=4",
    "views.size=null",
    "data.image_size=null",
]


def frozen_config(folder: Path, *overrides: str) -> RunConfig:
    """A settled configuration of digits with a tiny frozen backbone, whose data, features and runs lie in `folder`."""
    places = [f"data.path={folder}/digits", f"storage={folder}/runs"]
    return resolve(load_config("digits", [*FROZEN, *places, *overrides]), "frozen")


def make_cache(config: RunConfig, images: int = 200) -> tuple[Folder, FeatureCache, Manifest]:
    """The cache of the first images of digits, made in this process."""
    manifest = ingest("digits", config.data.path).model_copy(update={"num_images": images})
    folder, cache = ensure_cache(config, manifest, encoders=LocalEncoders())
    return folder, cache, manifest


def all_features(folder: Folder, cache: FeatureCache) -> np.ndarray:
    """The features (N, views, F) of a cache."""
    features = np.empty((cache.num_images, cache.views, cache.feature_size), np.float16)
    read_backbone_features(folder, cache, features)
    return features


def cached_run(config: RunConfig, cache: str, manifest: Manifest) -> Run:
    """A run on cached features, of this process together with the others of the process group, if any."""
    plan = make_plan(config, manifest)
    tracking = RunRef("sqlite:///none", "none", "digpro", "small", {}, {})
    job = Job(config, manifest, plan, tracking, feature_cache=cache)
    feed = cached_feed(job, Folder(cache), torch.device("cpu"), first_on_node=rank() == 0)
    return new_run(job, feed, Reporter())
