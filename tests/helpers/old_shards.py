"""Data sets as earlier versions wrote them: large row groups, no row groups in the manifest, no file of labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.shards import COLUMNS, LABELS, WRITE_OPTIONS
from tests.helpers.manifests import manifest


def write_old_shards(folder: Path, labels: Sequence[int], rows: int = 4, group_rows: int = 3) -> Path:
    """Shards of `rows` images without content, in row groups of `group_rows`; the last ones are shorter."""
    folder.mkdir()
    shards = []
    for number, first in enumerate(range(0, len(labels), rows)):
        own = list(labels[first : first + rows])
        images = [{"bytes": b"", "path": f"{first + i}.png"} for i in range(len(own))]
        table = pa.table([images, own, np.arange(first, first + len(own))], schema=pa.schema(list(COLUMNS.items())))
        path = folder / f"shard-{number:05d}.parquet"
        pq.write_table(table, path, row_group_size=group_rows, **WRITE_OPTIONS)
        shards.append({"file": path.name, "rows": len(own), "bytes": path.stat().st_size, "first_index": first})
    values = manifest(images=len(labels)).model_dump(mode="json", exclude={"labelled"}) | {"shards": shards}
    (folder / "manifest.json").write_text(json.dumps(values, indent=1))
    return folder


def as_earlier_version(folder: Path) -> Path:
    """Take from a data set in `folder` what earlier versions did not write."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    del values["labelled"]
    for shard in values["shards"]:
        del shard["groups"]
    path.write_text(json.dumps(values, indent=1))
    (folder / LABELS).unlink()
    return folder
