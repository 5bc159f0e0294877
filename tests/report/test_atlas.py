"""The values of an atlas, and the page that they become; how the page behaves is tested in a browser."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.report import bundle as bundle_module
from pipeline.report import compose as module
from pipeline.report.atlas import atlas_page, rename_clusters
from pipeline.report.compose import compose
from pipeline.report.sprites import Pictures
from tests.helpers.atlases import clustering, colour_pictures, colour_tiles


@pytest.fixture(autouse=True)
def _without_umap(no_umap: None) -> None:
    """A map in milliseconds."""


def data_of(page: str, element: str = "atlas-data") -> dict[str, Any]:
    """The values in an element of a page."""
    found = re.search(rf'id="{element}">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def numbers(text: str, kind: type = np.int32) -> list[Any]:
    return np.frombuffer(base64.b64decode(text), kind).tolist()


def test_every_picture_is_that_of_its_row() -> None:
    seen: list[np.ndarray] = []

    def read(chosen: np.ndarray) -> Pictures:
        seen.append(chosen)
        return Pictures(colour_tiles(chosen), 1 + chosen.astype(np.float32))

    found = compose(clustering(), read)
    assert np.array_equal(seen[0], np.sort(seen[0]))  # so that each row group is read once
    shown = found.rows[: len(found.pictures)]
    assert np.array_equal(found.pictures.tiles, colour_tiles(shown))
    assert np.array_equal(found.pictures.aspects, 1 + shown)
    assert numbers(data_of(atlas_page(found), "sheet-shape")["aspects"], np.float32) == (1 + shown).tolist()


def test_clusters_are_described_by_their_images() -> None:
    given = clustering()
    found = compose(given, colour_pictures)
    for cluster in found.clusters:
        members = np.flatnonzero(given.images.cluster == cluster.number)
        assert cluster.size == len(members)
        assert cluster.cohesion == pytest.approx(given.images.similarity[members].mean(), abs=1e-4)
        assert set(found.rows[[*cluster.typical, *cluster.border]]) == set(members)
        best = found.rows[cluster.typical[0]]
        assert given.images.similarity[best] == given.images.similarity[members].max()
        cosines = given.centers @ given.centers[cluster.number]
        cosines[cluster.number] = -2
        assert cluster.near[0][0] == int(cosines.argmax())
    assert [cluster.name for cluster in found.clusters] == ["", "dogs", "<script>alert(1)</script>", "dogs", ""]


def test_an_empty_cluster_is_shown_as_such() -> None:
    given = clustering()
    images = replace(given.images, cluster=np.where(given.images.cluster == 4, 0, given.images.cluster))
    empty = compose(clustering(images=images), colour_pictures).clusters[4]
    assert (empty.size, empty.cohesion, empty.typical, empty.border) == (0, 0.0, [], [])


def test_identical_images_are_found() -> None:
    given = clustering()
    assert given.mapped is not None
    features = given.mapped.features.clone()
    features[17] = features[2]

    def read(chosen: np.ndarray) -> Pictures:
        return colour_pictures(np.where(chosen == 17, 2, chosen))

    found = compose(replace(given, mapped=module.MappedImages(*_neighbours(features, given.mapped))), read)
    first = found.duplicates[0]
    assert {int(found.rows[first.first]), int(found.rows[first.second])} == {2, 17}
    assert first.likeness == "identical"


def _neighbours(features: Any, before: Any) -> tuple[Any, ...]:
    from pipeline.clustering.neighbours import nearest_rows

    ids, cosines = nearest_rows(features, 0, len(features), 5)
    return features, before.layout, ids.numpy(), cosines.numpy()


def test_names_and_paths_are_data_and_never_markup() -> None:
    given = clustering()
    evil = "</script><script>alert(2)</script>"
    paths = [evil, *given.images.path[1:]]
    page = atlas_page(compose(replace(given, images=replace(given.images, path=paths)), colour_pictures))
    assert "<script>alert" not in page
    assert "<b>" not in page
    data = data_of(page)
    assert evil in data["paths"]
    assert data["clusters"][2]["name"] == "<script>alert(1)</script>"
    assert data["alarms"][0]["text"] == "size_entropy is <low>"


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = atlas_page(compose(clustering(), colour_pictures))
    assert not re.search(r'(src|href)="(?!#)', page)
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"\b(fetch|import|XMLHttpRequest)\(", page)


def test_columns_are_those_of_the_rows() -> None:
    given = clustering()
    data = data_of(atlas_page(compose(given, colour_pictures)))
    index = numbers(data["columns"]["index"])
    assert numbers(data["columns"]["cluster"]) == given.images.cluster[index].tolist()
    assert numbers(data["columns"]["similarity"], np.float32) == given.images.similarity[index].tolist()
    assert data["paths"] == [given.images.path[number] for number in index]
    assert data["history"][2]["loss"] is None  # NaN is not JSON
    assert sum(count for *_, count in data["counts"]) == int((given.images.label >= 0).sum())


def test_what_is_a_sample_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAP_IMAGES", 10)
    monkeypatch.setattr(module, "PATH_BYTES", 900)
    monkeypatch.setattr("pipeline.report.choice.CLUSTERS", 3)
    found = compose(clustering(600), colour_pictures)
    said = " ".join(found.notes)
    assert f"Pictures of {len(found.pictures)} of the 600 images" in said
    assert "The map shows a random sample of 10 images." in said
    assert "The 3 largest of the 5 clusters are shown." in said
    assert f"{len(found.rows)} of the 600 images can be searched." in said
    assert int(np.isfinite(found.places[:, 0]).sum()) == 10


def test_a_run_without_shards_features_and_classes_has_an_atlas() -> None:
    without = replace(clustering().images, label=None)
    bare = clustering(mapped=None, names={}, class_names=[], images=without)
    found = compose(bare, lambda chosen: None)
    assert found.notes[0].startswith("There are no pictures, because the shards")
    assert found.notes[1].startswith("There is no map and no list of duplicates")
    data = data_of(atlas_page(found))
    assert (data["pictures"], data["method"], data["counts"]) == (0, "", [])


def test_pictures_give_way_to_the_size_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(256, size=(300, 48, 48, 3), dtype=np.uint8)
    found = compose(clustering(300), lambda chosen: Pictures(noise[: len(chosen)], np.ones(len(chosen))))
    free = len(atlas_page(found))
    monkeypatch.setattr(bundle_module, "PAGE_BYTES", free // 2)
    assert len(atlas_page(found)) <= free // 2


def test_names_are_put_into_a_page_that_is_there() -> None:
    given = clustering()
    page = atlas_page(compose(given, colour_pictures))
    other = {0: "</script>cats", 3: "dogs"}
    assert rename_clusters(page, given.names) == page
    assert rename_clusters(page, other) == atlas_page(compose(replace(given, names=other), colour_pictures))
    with pytest.raises(ValueError, match="no data of an atlas"):
        rename_clusters("<p>another page</p>", other)
