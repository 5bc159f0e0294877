"""torchvision's data sets on disk."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.ingest import ingest
from pipeline.errors import DataError
from tests.helpers.images import put
from tests.helpers.sources import rows_of

pytestmark = pytest.mark.usefixtures("in_this_process")


def test_torchvision_on_disk(tmp_path: Path) -> None:
    pixels = np.arange(4 * 28 * 28, dtype=np.uint8).reshape(4, 28, 28)
    for split in ("train", "t10k"):
        raw = tmp_path / "tv" / "MNIST" / "raw"
        put(raw / f"{split}-images-idx3-ubyte", struct.pack(">4i", 2051, 4, 28, 28) + pixels.tobytes())
        put(raw / f"{split}-labels-idx1-ubyte", struct.pack(">2i", 2049, 4) + bytes([0, 1, 9, 3]))
    manifest = ingest(f"torchvision:MNIST:{tmp_path}/tv", str(tmp_path / "out"))
    rows = rows_of(tmp_path / "out")
    assert [row["label"] for row in rows] == [0, 1, 9, 3] * 2
    assert len(manifest.class_names) == 10
    np.testing.assert_array_equal(Image.open(io.BytesIO(rows[2]["image"]["bytes"])), pixels[2])


def test_torchvision_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"cannot open CIFAR10 in .*download it first: torchvision.datasets.CIFAR10\(.*download=True\)"
    ):
        ingest(f"torchvision:CIFAR10:{tmp_path}", str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"did you mean 'CIFAR10'.*Valid names: CIFAR10,"):
        ingest(f"torchvision:CIFAR:{tmp_path}", str(tmp_path / "out"))
