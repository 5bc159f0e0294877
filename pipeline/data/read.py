"""Small reads from shards, without Ray: labels of all images, and a sample of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.shards import Manifest, filesystem, read_manifest


def read_labels(folder: str) -> np.ndarray[Any, Any] | None:
    """Classes (N,) int64 by index, -1 where unknown; None when no image has one."""
    files, root = filesystem(folder)
    parts = [
        pq.read_table(f"{root}/{shard.file}", columns=["label"], filesystem=files).column("label").to_numpy()
        for shard in read_manifest(folder).shards
    ]
    labels = np.concatenate(parts)
    return labels if (labels >= 0).any() else None


def read_sample(folder: str, manifest: Manifest, count: int) -> pa.Table:
    """At most `count` evenly spaced rows {"image", "index"}; whole shards are read one at a time."""
    files, root = filesystem(folder)
    wanted = np.unique(np.linspace(0, manifest.num_images - 1, min(count, manifest.num_images)).astype(np.int64))
    parts = []
    for shard in manifest.shards:
        rows = wanted[(wanted >= shard.first_index) & (wanted < shard.first_index + shard.rows)] - shard.first_index
        if len(rows):
            table = pq.read_table(f"{root}/{shard.file}", columns=["image", "index"], filesystem=files)
            parts.append(table.take(rows))
    return pa.concat_tables(parts)
