"""Clusters for any number of images, by a pool of Ray Data actors that each hold the model.

An actor reads a part of the images, and writes the model's predictions as a Parquet file, block by block: no image
passes through the driver or the object store, and memory does not grow with the number of images. A command that is
started again keeps the existing files.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from pydantic import BaseModel
from ray import cloudpickle
from ray.exceptions import RayError
from torch import Tensor

from pipeline.checks.capacity import actor_pool
from pipeline.checks.nodes import alive_nodes, node_resources
from pipeline.config.models import ResourcesConfig
from pipeline.data.decode import decode
from pipeline.data.quiet import cpp_log_lines_hidden
from pipeline.data.read import one_ahead
from pipeline.data.shards import Quarantined
from pipeline.data.streaming import quiet_data_context
from pipeline.data.tasks import own_error
from pipeline.errors import first_line
from pipeline.inference.card import ModelCard
from pipeline.inference.image_parts import EncodedImage, ImagePart, ImageParts
from pipeline.inference.predict import OUTLIER, Prediction, predict
from pipeline.inference.run_features import prediction_table
from pipeline.progress import Echo, Progress
from pipeline.storage import Folder, whole_file

PARTS, REPORTS = "assignments.parquet", "reports"
"""Folders of the output: the parts, which Parquet readers take as one table, and a report of each."""
CPU_BATCH = 64  # images in a forward pass on a CPU, at most: more take more memory and no less time
ACTOR_IMAGES = 2048  # that are worth starting an actor for, which takes seconds
BATCHES_A_ROW_GROUP = 32  # in a row group

T = TypeVar("T")


@dataclass(frozen=True)
class AssignJob:
    """How images are assigned; the same for all actors, and small.

    Attributes
    ----------
    load : callable
        Loads the model on an actor's device: uint8 images (B, S, S, 3) to similarities (B, K) and features (B, D).
    card : ModelCard
    batch_size : int
        Images in a forward pass.
    out : str
        Folder of the output.
    features, classes : bool
        Whether rows have the columns `feature` and `label`.
    resources : ResourcesConfig
        Whether actors get GPUs, and whether the cluster grows.
    """

    load: Callable[[torch.device], Callable[[Tensor], tuple[Tensor, ...]]]
    card: ModelCard
    batch_size: int
    out: str
    features: bool = False
    classes: bool = False
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)


class AssignReport(BaseModel):
    """The result for a part, or for several together.

    `sizes` has the number of images of each cluster, `similarity` the sum over all images. The bad images of one part
    are listed; those of several parts are only counted.
    """

    images: int = 0
    sizes: list[int] = []
    similarity: float = 0.0
    outliers: int = 0
    bad: list[Quarantined] = []
    bad_count: int = 0
    left_out: int = 0

    @property
    def seen(self) -> int:
        """Images and other files seen so far."""
        return self.images + self.bad_count + self.left_out

    def refuse(self, entries: list[Quarantined]) -> None:
        """List bad images."""
        self.bad += entries
        self.bad_count += sum(entry.rows for entry in entries)

    def plus(self, other: AssignReport) -> AssignReport:
        """The sum, without the lists."""
        sizes = [size + more for size, more in itertools.zip_longest(self.sizes, other.sizes, fillvalue=0)]
        return AssignReport(
            images=self.images + other.images,
            sizes=sizes,
            similarity=self.similarity + other.similarity,
            outliers=self.outliers + other.outliers,
            bad_count=self.bad_count + other.bad_count,
            left_out=self.left_out + other.left_out,
        )


def assign(images: ImageParts, job: AssignJob, echo: Echo) -> Iterator[AssignReport]:
    """Assign what is not assigned yet, then yield the report of each part in order; Ray must be connected.

    Raises
    ------
    DataError, RunFailed
        When images cannot be read, or Ray fails; the same call resumes.
    """
    parts, reports = (Folder(job.out).subfolder(name).make() for name in (PARTS, REPORTS))
    for folder in (parts, reports):
        folder.delete_unfinished()
    there = set(reports.names("part-"))
    missing = [number for number in range(len(images.parts)) if f"{_name(number)}.json" not in there]
    if missing:
        done = sum(_read(reports, number).seen for number in sorted(set(range(len(images.parts))).difference(missing)))
        progress = Progress("assign", "images", images.total, done, echo)
        try:
            with cpp_log_lines_hidden():  # one warns, for any arguments, that actors could lose them
                for row in _assigned(images, missing, job).iter_rows():
                    progress.add(row["seen"])
        except RayError as error:
            raise own_error(error, "the images could not be assigned", job.out) from error
    yield from (_read(reports, number) for number in range(len(images.parts)))


def _name(number: int) -> str:
    return f"part-{number:05d}"


def _read(reports: Folder, number: int) -> AssignReport:
    return AssignReport.model_validate(reports.read(f"{_name(number)}.json"))


def _assigned(images: ImageParts, numbers: list[int], job: AssignJob) -> ray.data.Dataset:
    """A data set that assigns the parts while it is read; its rows are small."""
    quiet_data_context()
    rows = [{"number": number, "part": cloudpickle.dumps(images.parts[number])} for number in numbers]
    useful = len(rows) if images.total is None else min(len(rows), math.ceil(images.total / ACTOR_IMAGES))
    pool = actor_pool(job.resources, node_resources(), useful)
    return ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Assigner,
        fn_constructor_args=[job],
        num_gpus=1 if pool.gpus else 0,
        num_cpus=0 if pool.gpus else 0.5,  # an actor that took the only CPU would wait for input for ever
        concurrency=(pool.least, pool.most),
    )


def with_names(table: pa.Table, card: ModelCard) -> pa.Table:
    """The rows with the current names of the clusters; without the column if none has a name."""
    if "name" in table.column_names:
        table = table.drop_columns("name")
    if not card.names:
        return table
    names = pa.array([card.name(number) for number in table.column("cluster").to_pylist()], pa.string())
    return table.add_column(table.column_names.index("outlier") + 1, "name", names)


def rename_clusters(out: Folder, card: ModelCard) -> None:
    """Write the current names of the clusters into all parts; after a kill each part is either the old or the new."""
    folder = out.subfolder(PARTS)
    for part in (name for name in folder.names("part-") if name.endswith(".parquet")):
        rewrite_rows(folder, part, partial(with_names, card=card))


def rewrite_rows(folder: Folder, file: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrite a Parquet file by applying `change` to its row groups; the file is replaced whole or not at all."""
    path = f"{folder.root}/{file}"
    with whole_file(folder.files, path) as new, folder.files.open_input_file(path) as handle:
        rows = pq.ParquetFile(handle)
        schema = change(rows.schema_arrow.empty_table()).schema
        with pq.ParquetWriter(new, schema, filesystem=folder.files) as writer:
            for group in range(rows.num_row_groups):
                writer.write_table(change(rows.read_row_group(group)))


class Assigner:
    """A Ray Data actor that holds the model, and writes the file of a part.

    Parameters
    ----------
    job : AssignJob
    """

    def __init__(self, job: AssignJob) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.job, self.out = job, Folder(job.out)
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        self.batch = job.batch_size if self.device.type == "cuda" else min(job.batch_size, CPU_BATCH)
        threads = decoding_threads() if self.device.type == "cuda" else 1
        self.map: Callable[..., Any] = ThreadPoolExecutor(threads).map if threads > 1 else map
        self.model = job.load(self.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the file of a part, and its report, which marks the part as done."""
        part: ImagePart = cloudpickle.loads(row["part"])
        name, report = _name(row["number"]), AssignReport(sizes=[0] * len(self.job.card.clusters.sizes))
        with self._part(f"{name}.parquet") as write:
            for tables in _together(self._tables(part, report), BATCHES_A_ROW_GROUP):
                write(pa.concat_tables(tables))
        self.out.subfolder(REPORTS).write(f"{name}.json", report.model_dump())
        return {"seen": report.seen}

    @contextmanager
    def _part(self, name: str) -> Iterator[Callable[[pa.Table], None]]:
        """A file that appears whole or not at all; none where there is no image."""
        folder, writer = self.out.subfolder(PARTS), None

        def write(table: pa.Table) -> None:
            nonlocal writer
            if writer is None:
                path = opened.enter_context(whole_file(folder.files, f"{folder.root}/{name}"))
                writer = opened.enter_context(pq.ParquetWriter(path, table.schema, filesystem=folder.files))
            writer.write_table(table)

        with ExitStack() as opened:
            yield write

    def _tables(self, part: ImagePart, report: AssignReport) -> Iterator[pa.Table]:
        """The rows of the part, a batch at a time; anything else in it is counted in the report."""
        for images, rows in one_ahead(self._batches(part, report)):
            with torch.inference_mode():
                similarities, features = self.model(images.to(self.device))
            table = self._table(predict(similarities.float()), features, rows)
            _count(report, table)
            yield table

    def _batches(self, part: ImagePart, report: AssignReport) -> Iterator[tuple[Tensor, list[EncodedImage]]]:
        """Decoded images uint8 (b, S, S, 3) with their rows."""
        decoded = partial(_decoded, decoding=self.job.card.decoding)
        for block in _together(_encoded(part, report), self.batch):
            entries = list(self.map(decoded, block))
            report.refuse([entry for entry in entries if isinstance(entry, Quarantined)])
            rows = [row for row, entry in zip(block, entries, strict=True) if isinstance(entry, Tensor)]
            if rows:
                yield torch.stack([entry for entry in entries if isinstance(entry, Tensor)]), rows

    def _table(self, prediction: Prediction, features: Tensor, rows: list[EncodedImage]) -> pa.Table:
        table = prediction_table(prediction, features=features if self.job.features else None)
        card = self.job.card
        cluster, similarity = (table.column(name).to_numpy() for name in ("cluster", "similarity"))
        score = card.clusters.outlier(cluster, similarity)
        columns = {
            "index": pa.array([row.index for row in rows], pa.int64()),
            "path": pa.array([row.path for row in rows], pa.string()),
            **{name: table.column(name) for name in Prediction._fields},
            "outlier": pa.array(score),
        }
        if self.job.features:
            columns["feature"] = table.column("feature")
        if self.job.classes:
            columns["label"] = pa.array([row.label for row in rows], pa.int64())
        return with_names(pa.table(columns), card)


def decoding_threads() -> int:
    """For an actor on a GPU: its share of the CPUs of its node."""
    here = ray.get_runtime_context().get_node_id()
    node = next(node["Resources"] for node in alive_nodes() if node["NodeID"] == here)
    return max(1, int(node.get("CPU", 0) / max(node.get("GPU", 0), 1)))


def _encoded(part: ImagePart, report: AssignReport) -> Iterator[EncodedImage]:
    """The images of a part; its other entries go into the report."""
    for entry in part():
        if isinstance(entry, EncodedImage):
            yield entry
        elif isinstance(entry, Quarantined):
            report.refuse([entry])
        else:
            report.left_out += entry.files


def _decoded(row: EncodedImage, decoding: dict[str, Any]) -> Tensor | Quarantined:
    """An image uint8 (S, S, 3); one that cannot be decoded does not affect the others."""
    try:
        return decode(row.data, **decoding).permute(1, 2, 0)
    except Exception as error:
        return Quarantined(path=row.path or f"image {row.index}", reason=first_line(error))


def _count(report: AssignReport, table: pa.Table) -> None:
    """Add the rows of a table to a report."""
    counts = np.bincount(table.column("cluster").to_numpy(), minlength=len(report.sizes))
    report.sizes = [size + int(count) for size, count in zip(report.sizes, counts, strict=True)]
    report.images += table.num_rows
    report.similarity += float(table.column("similarity").to_numpy().sum(dtype=np.float64))
    report.outliers += int((table.column("outlier").to_numpy() > OUTLIER).sum())


def _together(items: Iterable[T], number: int) -> Iterator[list[T]]:
    """The items in lists of `number`, the last one shorter."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, number)):
        yield group
