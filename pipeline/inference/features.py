"""The features that a finished run leaves of its images."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.storage import Folder

FEATURES = "features"


def read_run_features(folder: Folder) -> Tensor:
    """Unit features (N, D) float32 of a run's images in order of index, from `features/part-*.parquet`.

    Raises
    ------
    DataError
        When the folder has none, or they are damaged or not of all images.
    """
    place = folder.subfolder(FEATURES)
    remedy = "run its `digpro train` again with the same command, which writes them"
    parts = [f"{place.root}/{name}" for name in place.names("part-") if name.endswith(".parquet")]
    if not parts:
        raise DataError(f"{folder.path} has no {FEATURES}/part-*.parquet, the features of its images; {remedy}")
    try:
        table = pads.dataset(parts, filesystem=place.files, format="parquet").to_table(columns=["index", "feature"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the features in {place.path} cannot be read ({error}); delete them, and {remedy}") from error
    index = table.column("index").to_numpy()
    if not np.array_equal(np.sort(index), np.arange(len(index))):
        raise DataError(f"the features in {place.path} are not one for each image; delete them, and {remedy}")
    column = table.column("feature").combine_chunks()
    rows = torch.from_numpy(column.flatten().to_numpy().astype(np.float32)).view(len(index), -1)
    features = torch.empty_like(rows)
    features[torch.tensor(index)] = rows
    return features
