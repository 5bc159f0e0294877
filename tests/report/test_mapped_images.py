"""Map and neighbours, and the table for the tool Embedding Atlas."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.report.mapped_images import alike, embedding_table, map_images
from pipeline.report.sprites import Pictures
from tests.helpers.atlases import assignments, colour_tiles, features


@pytest.fixture(autouse=True)
def _without_umap(no_umap: None) -> None:
    """A map in milliseconds."""


def test_the_table_has_the_form_that_embedding_atlas_reads() -> None:
    rows, centers = features(40, 4)
    images = assignments(rows, centers)
    pictures = Pictures(colour_tiles(np.arange(2)), np.array([1, 3]))
    sample = map_images(rows[:30])
    table = embedding_table(images, sample, {1: "dogs"}, np.array([7, 2, 35]), pictures)
    columns = "index path x y cluster name label similarity margin outlier thumbnail neighbors"
    assert table.column_names == columns.split()
    assert table.column("name").to_pylist()[:3] == [None, "dogs", None]
    thumbnails = table.column("thumbnail").to_pylist()
    assert [row for row, thumbnail in enumerate(thumbnails) if thumbnail] == [2, 7]
    assert Image.open(io.BytesIO(thumbnails[7]["bytes"])).getpixel((9, 9)) == (0, 0, 0)
    sizes = [Image.open(io.BytesIO(thumbnails[row]["bytes"])).size for row in (7, 2)]
    assert sizes == [(48, 48), (48, 16)]  # in the shapes of the images
    assert table.num_rows == 30
    assert pa.types.is_struct(table.schema.field("neighbors").type)
    cosines = rows[:30] @ rows[:30].T - 3 * rows.new_ones(30).diag()
    for row, near in enumerate(table.column("neighbors").to_pylist()):
        assert near["ids"] == cosines[row].argsort(descending=True)[:15].tolist()
        assert near["distances"] == sorted(near["distances"])
        assert near["distances"][0] == pytest.approx(1 - float(cosines[row].max()), abs=1e-5)
    assert table.column("path").to_pylist() == list(images.path[:30])


def test_a_set_smaller_than_the_neighbours_has_fewer() -> None:
    rows, _ = features(5, 2)
    assert map_images(rows).neighbours.shape == (5, 4)


def test_alike_are_the_nearest_of_the_chosen_in_the_embedding() -> None:
    rows, _ = features(30, 3)
    found = alike(map_images(rows[:20]), [25, 3, 19, 7], 3)
    assert found[0].tolist() == [-1, -1, -1]  # image 25 is not mapped
    cosines = rows[3] @ rows[[19, 7]].T
    assert found[1].tolist() == [*([2, 3] if cosines[0] > cosines[1] else [3, 2]), -1]
