"""scikit-learn's digits as a source."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.ingest import ingest
from tests.helpers.sources import rows_of

pytestmark = pytest.mark.usefixtures("in_this_process")


def test_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    manifest = ingest("digits", str(tmp_path / "out"), rows_per_shard=1000)
    rows, digits = rows_of(tmp_path / "out"), load_digits()
    assert [shard.rows for shard in manifest.shards] == [1000, 797]
    assert manifest.class_names == list("0123456789")
    assert [row["label"] for row in rows] == digits.target.tolist()
    pixels = np.asarray(Image.open(io.BytesIO(rows[1234]["image"]["bytes"])))
    np.testing.assert_array_equal(pixels, np.round(digits.images[1234] * 255 / 16))
    np.testing.assert_allclose(manifest.statistics.mean, digits.images.mean() / 16, atol=1e-3)
