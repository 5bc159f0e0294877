"""torchvision's data sets on disk."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.class_lists import load_class_list
from pipeline.data.ingest import ingest
from pipeline.data.sources.cifar20 import SUPERCLASSES
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


def write_cifar100(folder: Path) -> None:
    """CIFAR-100 of 100 training images, one of each class, and the first ten classes' again for testing."""
    names = sorted(name for fine in SUPERCLASSES.values() for name in fine)
    put(folder / "meta", pickle.dumps({"fine_label_names": names}))
    for file, count in (("train", 100), ("test", 10)):
        data = np.arange(count, dtype=np.uint8)[:, None].repeat(3072, axis=1)
        put(folder / file, pickle.dumps({"data": data, "fine_labels": list(range(count))}))


def test_cifar20_has_the_superclasses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    write_cifar100(tmp_path / "tv" / "cifar-100-python")
    listed = load_class_list("cifar20")
    manifest = ingest(f"torchvision:CIFAR20:{tmp_path}/tv", str(tmp_path / "out"), classes=listed)
    assert manifest.class_names == list(listed.images)
    assert sum(manifest.class_counts or []) == manifest.num_images == 110
    rows = rows_of(tmp_path / "out")  # by path: the test images come first
    first_ten = [4, 1, 14, 8, 0, 6, 7, 7, 18, 3]  # coarse_labels of the fine labels 0 to 9 in the published files
    assert [row["label"] for row in rows[:20]] == first_ten * 2
    assert ingest(f"torchvision:CIFAR100:{tmp_path}/tv", str(tmp_path / "fine")).class_names[:2] == [
        "apple",
        "aquarium_fish",
    ]
    with pytest.raises(DataError, match=r"cannot open CIFAR20 in .*torchvision\.datasets\.CIFAR100\(.*download=True\)"):
        ingest(f"torchvision:CIFAR20:{tmp_path}", str(tmp_path / "none"))


def test_stl10_is_its_labelled_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda *_: True)
    folder, listed = tmp_path / "tv" / "stl10_binary", load_class_list("stl10")
    put(folder / "class_names.txt", "\n".join(listed.images).encode())
    for split, labels in (("train", [1, 10]), ("test", [10, 2, 2])):  # the files count classes from 1
        put(folder / f"{split}_X.bin", bytes(3 * 96 * 96 * len(labels)))
        put(folder / f"{split}_y.bin", bytes(labels))
    manifest = ingest(f"torchvision:STL10:{tmp_path}/tv", str(tmp_path / "out"), classes=listed)
    assert (manifest.class_names, manifest.class_counts) == (list(listed.images), [1, 2, 0, 0, 0, 0, 0, 0, 0, 2])
    assert [row["label"] for row in rows_of(tmp_path / "out")] == [9, 1, 1, 0, 9]


def test_torchvision_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"cannot open CIFAR10 in .*download it first: torchvision.datasets.CIFAR10\(.*download=True\)"
    ):
        ingest(f"torchvision:CIFAR10:{tmp_path}", str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"did you mean 'CIFAR10'.*Valid names: CIFAR10,"):
        ingest(f"torchvision:CIFAR-10:{tmp_path}", str(tmp_path / "out"))
