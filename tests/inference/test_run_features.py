"""The features that a run leaves: complete for any number of workers, and what they say of each image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from pipeline.collectives import RowRange
from pipeline.errors import DataError
from pipeline.inference.run_features import FEATURES, keep_last_parts, open_features, write_features
from pipeline.storage import Folder
from tests.helpers.workers import Workers

CENTERS = torch.eye(3, 8)


def unit_rows(count: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(0)), dim=1)


def own_part(rank: int, folder: str, cuts: list[int], centers: torch.Tensor = CENTERS) -> None:
    start, stop = cuts[rank : rank + 2]
    write_features(Folder(folder), unit_rows(11)[start:stop], centers, RowRange(start, stop, 11))


@pytest.mark.parametrize("cuts", [[0, 5, 11], [0, 9, 11], [0, 0, 11]])
def test_one_worker_writes_what_two_write(pair: Workers, tmp_path: Path, cuts: list[int]) -> None:
    one, two = Folder(str(tmp_path / "one")), Folder(str(tmp_path / "two"))
    write_features(one, unit_rows(11), CENTERS, RowRange(0, 11, 11))
    pair.run(own_part, two.path, cuts)
    assert len(two.subfolder(FEATURES).names()) == 2
    assert open_features(one).to_table().equals(open_features(two).to_table())
    table = open_features(one).to_table()
    assert table.column("index").to_pylist() == list(range(11))
    dots = unit_rows(11) @ CENTERS.T
    assert table.column("cluster").to_pylist() == dots.argmax(dim=1).tolist()
    features = torch.tensor(table.column("feature").to_pylist())
    torch.testing.assert_close(features, unit_rows(11), atol=1e-3, rtol=0)


def test_parts_of_an_interrupted_end_are_deleted(pair: Workers, tmp_path: Path) -> None:
    run = Folder(str(tmp_path))
    write_features(run, unit_rows(11), CENTERS, RowRange(0, 11, 11))
    (own,) = run.subfolder(FEATURES).names()
    pair.run(own_part, run.path, [0, 5, 11])
    left, _ = set(run.subfolder(FEATURES).names()) - {own}
    run.subfolder(FEATURES).delete(left)
    keep_last_parts(run, CENTERS)
    assert run.subfolder(FEATURES).names() == [own]
    run.subfolder(FEATURES).delete(own)
    with pytest.raises(DataError, match=r"no longer holds the features of all images"):
        keep_last_parts(run, CENTERS)


@pytest.mark.parametrize("before", [1, 2])
def test_features_from_before_a_roll_back_are_not_the_runs(pair: Workers, tmp_path: Path, before: int) -> None:
    """Complete ones too, of as many workers or of another number."""
    run, stale = Folder(str(tmp_path)), unit_rows(11).flip(0)
    if before == 1:
        write_features(run, stale, CENTERS + 1, RowRange(0, 11, 11))
    else:
        pair.run(own_part, run.path, [0, 5, 11], CENTERS + 1)
    pair.run(own_part, run.path, [0, 6, 11])
    keep_last_parts(run, CENTERS)
    table = open_features(run).to_table()
    features = torch.tensor(table.column("feature").to_pylist())
    torch.testing.assert_close(features, unit_rows(11), atol=1e-3, rtol=0)


def test_a_run_without_features_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no features of its images.*run its `digpro train` again"):
        open_features(Folder(str(tmp_path)))
