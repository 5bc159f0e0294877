"""The cache of features: what is in it, what it is keyed by, and what damage is named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.backbone_features.build_cache import cut_parts
from pipeline.backbone_features.cache import (
    CACHE,
    FeatureCache,
    check_same_key,
    decides_features,
    read_cache,
    read_part,
)
from pipeline.build import build_preprocess, build_views
from pipeline.config.models import RunConfig
from pipeline.data.decode import decode_table
from pipeline.data.read import read_rows, read_sample
from pipeline.data.shards import Manifest
from pipeline.errors import DataError
from pipeline.storage import Folder
from tests.helpers.backbones import network
from tests.helpers.cached_features import all_features, frozen_config, make_cache

Made = tuple[RunConfig, Folder, FeatureCache, Manifest]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    config = frozen_config(tmp_path_factory.mktemp("cache"))
    return config, *make_cache(config)


def test_view_0_is_the_view_of_evaluation_and_the_others_are_augmented(made: Made) -> None:
    config, folder, cache, manifest = made
    table = read_sample(config.data.path, manifest, cache.num_images)
    images = torch.from_numpy(decode_table(table, **config.data.decoding)["image"])
    module, index = network().eval(), torch.arange(cache.num_images)
    views = build_views(config, manifest)
    with torch.inference_mode():
        expected = [module(build_preprocess(config, manifest)(images))]
        expected += [module(view) for pair in (0, 1) for view in views(images, index, pair)][:3]
    found = torch.from_numpy(all_features(folder, cache)).float()
    torch.testing.assert_close(found, torch.stack(expected, 1), atol=2e-3, rtol=2e-3)


def test_parquet_holds_a_row_for_each_view(made: Made) -> None:
    _, folder, cache, _ = made
    table = pq.read_table(f"{folder.path}/{cache.parts[1].file}")
    assert table.column("index").to_pylist()[:5] == [32, 32, 32, 32, 33]
    assert table.column("view").to_pylist()[:5] == [0, 1, 2, 3, 0]
    assert table.schema.field("feature").type == pa.list_(pa.float16(), 24)


def test_images_are_read_by_their_range(made: Made) -> None:
    config, _, _, manifest = made
    rows = read_rows(config.data.path, manifest, 1000, 1040)
    assert rows.column("index").to_pylist() == list(range(1000, 1040))


@pytest.mark.parametrize(
    "override",
    [
        "views.cached=4",
        "views.hue=0.3",
        "views.size=20",
        "data.fit=stretch",
        "views.cache_seed=1",
        "data.mean=[0, 0, 0]",
    ],
)
def test_whatever_decides_the_features_makes_another_cache(made: Made, tmp_path: Path, override: str) -> None:
    _, folder, cache, _ = made
    _, other, _ = make_cache(frozen_config(tmp_path, override), images=40)
    assert other.key.digest != cache.key.digest
    with pytest.raises(DataError, match="holds the features of another backbone, other images or other views: "):
        check_same_key(cache.key, other.key, folder)


@pytest.mark.parametrize("override", ["seed=1", "views.neighbours=2", "optim.lr=0.1", "data.mode=streaming"])
def test_whatever_does_not_shares_the_cache(made: Made, tmp_path: Path, override: str) -> None:
    _, other, _ = make_cache(frozen_config(tmp_path, override), images=40)
    assert other.key == made[2].key


def test_a_search_knows_which_settings_need_other_features() -> None:
    keys = ["views.hue", "views.neighbours", "model.weights", "model.feature_size", "optim.lr", "data.image_size"]
    assert [key for key in keys if decides_features(key)] == ["views.hue", "model.weights", "data.image_size"]


@pytest.mark.parametrize(
    ("images", "side", "parts", "rows"),
    [(40, 32, 2, 32), (2100, 256, 66, 32), (60_000, 40, 65, 937), (10**6, 512, 5883, 170)],
)
def test_parts_are_many_enough_and_not_too_large(images: int, side: int, parts: int, rows: int) -> None:
    cut = cut_parts(images, side)
    assert (len(cut), cut[0].rows) == (parts, rows)
    assert sum(part.rows for part in cut) == images
    assert [part.first_index for part in cut] == list(range(0, images, rows))


def test_a_damaged_part_is_named(made: Made, tmp_path: Path) -> None:
    _, folder, cache, _ = make_cache_copy(made, tmp_path)
    path = Path(folder.path, cache.parts[0].file)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} cannot be read .*delete cache.json and this file"):
        read_part(folder, cache.parts[0], cache)
    path.write_bytes(Path(folder.path, cache.parts[1].file).read_bytes())
    with pytest.raises(DataError, match=f"{path} does not hold the images and views"):
        read_part(folder, cache.parts[0], cache)
    path.unlink()
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        read_part(folder, cache.parts[0], cache)


def make_cache_copy(made: Made, tmp_path: Path) -> Made:
    import shutil

    config, folder, cache, manifest = made
    shutil.copytree(folder.path, tmp_path / "copy")
    return config, Folder(str(tmp_path / "copy")), cache, manifest


def test_a_description_of_another_version_is_named(made: Made, tmp_path: Path) -> None:
    _, folder, _, _ = make_cache_copy(made, tmp_path)
    folder.update(CACHE, schema_version=2)
    with pytest.raises(DataError, match=f"{folder.path}/{CACHE} is damaged or of another version.*delete the folder"):
        read_cache(folder)
    assert read_cache(Folder(str(tmp_path / "nothing"))) is None
