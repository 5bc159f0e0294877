"""Cache backbone features without training: `digpro embed`."""

from __future__ import annotations

from pipeline.backbone_features.build_cache import ensure_cache
from pipeline.backbone_features.cache import FeatureCache
from pipeline.cluster import connect
from pipeline.config.models import RunConfig
from pipeline.data.shards import validate_shards
from pipeline.progress import Echo
from pipeline.runs.train import resolve
from pipeline.storage import Folder, check_writable


def make_cache(config: RunConfig, echo: Echo = print) -> tuple[Folder, FeatureCache]:
    """Make the feature cache that a configuration asks for; `train` with the same settings finds it.

    Raises
    ------
    ConfigError, DataError
        When the backbone, its weights or the images cannot be loaded, or the folder cannot be written.
    """
    config = resolve(config, "embed")
    assert config.data.features is not None
    check_writable(config.data.features, "data.features")
    manifest = validate_shards(config.data.path)
    connect()
    return ensure_cache(config, manifest, echo)
