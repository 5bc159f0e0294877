"""The features of a finished run, written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor


def write_run_features(run: Path, features: Tensor, index: np.ndarray[Any, Any], part: int = 0) -> None:
    """A part with the features (n, D) of the images `index` (n,)."""
    (run / "features").mkdir(parents=True, exist_ok=True)
    flat = pa.array(features.numpy().astype(np.float16).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
    pq.write_table(pa.table({"index": index, "feature": column}), run / "features" / f"part-{part:05d}.parquet")
