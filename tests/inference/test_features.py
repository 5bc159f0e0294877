"""Features of a finished run: read in order of the images, and refused when they are not of all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import DataError
from pipeline.inference.run_features import read_features
from pipeline.storage import Folder
from tests.helpers.run_features import write_run_features

FEATURES = torch.eye(5)


def write(run: Path, *parts: list[int]) -> None:
    for number, index in enumerate(parts):
        write_run_features(run, FEATURES[index], np.array(index), number)


def test_parts_come_in_order_of_the_images(tmp_path: Path) -> None:
    write(tmp_path, [1, 4], [0, 2, 3])
    features = read_features(Folder(str(tmp_path)))
    assert features.dtype == torch.float32
    assert torch.equal(features, FEATURES)
    assert torch.equal(read_features(Folder(str(tmp_path)), 3), FEATURES[:3])


def test_a_run_without_features_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no features of its images.*run its `digpro train` again"):
        read_features(Folder(str(tmp_path)))


@pytest.mark.parametrize("parts", [([0, 1], [3, 4]), ([0, 1, 2], [2, 3, 4])])
def test_features_that_miss_an_image_or_have_one_twice_are_refused(tmp_path: Path, parts: tuple[list[int]]) -> None:
    write(tmp_path, *parts)
    with pytest.raises(DataError, match="not one for each image"):
        read_features(Folder(str(tmp_path)))


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    write(tmp_path, [0, 1])
    (tmp_path / "features" / "part-00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"cannot be read .*part-00001"):
        read_features(Folder(str(tmp_path)))
