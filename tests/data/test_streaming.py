"""The streamed feed without Ray: shards on disk, read in this process in the order of a schedule."""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from pipeline.collectives import RowRange, row_range
from pipeline.data.ingest import ingest
from pipeline.data.loader import Inputs
from pipeline.data.order import Order
from pipeline.data.read import one_ahead, with_row_groups
from pipeline.data.reader import MOST_TASK_BYTES, Piece, PieceReader, block_rows, epoch_pieces, swept_pieces
from pipeline.data.shards import Manifest
from pipeline.data.streaming import Block, ImageMemory, ImageStream, OpenImages, Readers, StreamedImages, task_tables
from pipeline.errors import DataError
from tests.helpers.s3 import BUCKET, S3Server, throttle
from tests.helpers.small_run import resident_inputs
from tests.helpers.workers import Workers

SIDE, BATCH, EPOCHS = 8, 96, 2
IMAGE_BYTES = 3 * SIDE**2
DECODING = {"size": SIDE, "fit": "stretch", "interpolation": "bilinear"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digits in shards of 300 rows."""
    folder = tmp_path_factory.mktemp("digits")
    ingest("digits", str(folder), rows_per_shard=300)
    return str(folder)


def opened(path: str) -> Manifest:
    """The manifest, with row groups."""
    return with_row_groups(path, ingest("digits", path, rows_per_shard=300))


def order_of(manifest: Manifest, window: int) -> Order:
    groups = tuple(rows for shard in manifest.shards for rows in shard.groups)
    return Order(manifest.num_images, BATCH, 5, window, groups)


def read(reader: PieceReader, pieces: list[Piece]) -> Iterator[Block]:
    """What Ray Data's processes do."""
    for table in task_tables(pieces, 200):
        yield from reader(table)


class Reading:
    """A streamed feed of two epochs with an E-step before and between them; it counts the images that are read."""

    def __init__(self, path: str, window: int, *, whole: bool = False) -> None:
        self.manifest = opened(path)
        self.order = order_of(self.manifest, window)
        self.reader = PieceReader(self.order, path, self.manifest, DECODING)
        self.whole, self.decoded = whole, 0
        own = self.order.images_of(row_range(self.order.lanes))
        self.inputs = Inputs(self.order, StreamedImages(self.begin, own, CPU, 128), CPU)

    def begin(self, at: tuple[int, int] | None) -> ImageStream:
        return ImageStream(self.counted(self.schedule(at)), room=500)

    def schedule(self, at: tuple[int, int] | None) -> list[Piece]:
        lanes, (first, step) = row_range(self.order.lanes), at or (0, 0)
        swept = swept_pieces(self.order.images_of(lanes), IMAGE_BYTES)
        pieces = [] if at else list(swept)
        for epoch in range(first, EPOCHS):
            steps = range(step if epoch == first else 0, self.order.steps)
            pieces += epoch_pieces(self.order, lanes, epoch, steps, whole=self.whole) + swept
        return pieces

    def counted(self, pieces: list[Piece]) -> Iterator[Block]:
        for block in read(self.reader, pieces):
            self.decoded += len(block["index"])
            yield block


def weights_of(count: int) -> Tensor:
    """Some images twice as often as others."""
    weights = torch.ones(count, dtype=torch.float64)
    weights[::3] = 2.0
    return weights


def _streamed(rank: int, path: str, window: int, at: tuple[int, int] | None, balanced: bool) -> list[Any]:
    """Keys and pixel sums of all batches and blocks from `at` on."""
    reading = Reading(path, window, whole=balanced)
    own, found = reading.inputs.own, []
    weights = weights_of(own.total)[own.start : own.stop] if balanced else None
    first, step = at or (0, 0)
    if at is None:
        found.append(torch.cat([index for _, index in reading.inputs.blocks()]))
    for epoch in range(first, EPOCHS):
        for batch in reading.inputs.epoch(epoch, step if epoch == first else 0, weights):
            found.append((batch.keys, batch.inputs.sum(dim=(1, 2, 3))))
        found.append(torch.cat([index for _, index in reading.inputs.blocks()]))
    return found


def _resident(path: str, window: int, balanced: bool) -> list[tuple[Tensor, Tensor]]:
    """The same from images in memory."""
    manifest = opened(path)
    order = order_of(manifest, window)
    pieces = swept_pieces(RowRange(0, manifest.num_images, manifest.num_images), IMAGE_BYTES)
    blocks = PieceReader(order, path, manifest, DECODING).blocks(pieces)
    images = torch.from_numpy(np.concatenate([block["image"] for block in blocks]))
    inputs = resident_inputs(images, order, 128)
    weights = weights_of(len(images)) if balanced else None
    return [
        (batch.keys, batch.inputs.sum(dim=(1, 2, 3)))
        for epoch in range(EPOCHS)
        for batch in inputs.epoch(epoch, 0, weights)
    ]


@pytest.mark.parametrize("window", [10_000, 700])
@pytest.mark.parametrize("balanced", [False, True])
def test_a_stream_has_the_batches_of_images_in_memory_on_any_number_of_workers(
    shards: str, window: int, balanced: bool, pair: Workers
) -> None:
    expected = _resident(shards, window, balanced)
    for parts in ([_streamed(0, shards, window, None, balanced)], pair.run(_streamed, shards, window, None, balanced)):
        steps = [[item for item in part if isinstance(item, tuple)] for part in parts]
        sweeps = [[item for item in part if isinstance(item, Tensor)] for part in parts]
        for step, (keys, sums) in enumerate(expected):
            assert torch.cat([part[step][0] for part in steps]).equal(keys)
            assert torch.cat([part[step][1] for part in steps]).equal(sums)
        for sweep in range(EPOCHS + 1):
            assert torch.cat([part[sweep] for part in sweeps]).equal(torch.arange(1797))


def test_every_image_comes_once_through_a_kill_and_two_changes_of_the_workers(shards: str, pair: Workers) -> None:
    """One worker for five steps, two for six, one for the rest; the ledger has each image once."""
    window, ledger = 700, []
    ledger += [keys for keys, _ in _streamed(0, shards, window, (0, 0), False)[:5]]
    parts = pair.run(_streamed, shards, window, (0, 5), False)
    ledger += [torch.cat([part[step][0] for part in parts]) for step in range(6)]
    ledger += [item[0] for item in _streamed(0, shards, window, (0, 11), False)[: 18 - 11]]
    assert torch.cat(ledger).equal(torch.cat([keys for keys, _ in _resident(shards, window, False)[:18]]))
    assert len(torch.cat(ledger).unique()) == 18 * BATCH


@pytest.mark.parametrize("step", [1, 9, 17])
def test_a_resume_decodes_nothing_that_was_consumed(shards: str, step: int) -> None:
    reading = Reading(shards, 700)
    pieces = epoch_pieces(
        reading.order, row_range(reading.order.lanes), 0, range(step, reading.order.steps), whole=False
    )
    images = torch.cat([reading.reader.images_of(piece) for piece in pieces])
    assert len(images) == (reading.order.steps - step) * BATCH
    assert len(images.unique()) == len(images)


@pytest.mark.parametrize("step", [1, 9, 17])
def test_a_resume_of_drawn_images_decodes_at_most_a_window_again(shards: str, step: int) -> None:
    """Windows are read whole, because the draws are not known yet."""
    reading = Reading(shards, 700)
    order = reading.order
    pieces = epoch_pieces(order, row_range(order.lanes), 0, range(step, order.steps), whole=True)
    images = torch.cat([reading.reader.images_of(piece) for piece in pieces])
    assert len(images.unique()) == len(images)
    assert 0 < len(images) - (order.num_images - step * BATCH) <= 700


def test_a_resumed_stream_begins_at_its_step(shards: str) -> None:
    whole = [item for item in _streamed(0, shards, 700, (0, 0), False) if isinstance(item, tuple)]
    rest = [item for item in _streamed(0, shards, 700, (0, 13), False) if isinstance(item, tuple)]
    assert all(mine[0].equal(theirs[0]) for mine, theirs in zip(rest, whole[13:], strict=True))


def test_the_first_windows_are_read_while_the_estep_computes(shards: str) -> None:
    reading = Reading(shards, 700)
    blocks = list(reading.inputs.blocks())
    assert sum(len(index) for _, index in blocks) == 1797
    deadline = time.monotonic() + 30
    while reading.decoded < 1797 + BATCH and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reading.decoded >= 1797 + BATCH  # no batch of the epoch was asked for yet


def test_memory_holds_no_more_than_the_open_windows_and_what_is_fetched_ahead(shards: str) -> None:
    """Half as many images more than the setting says may be open, and memory grows by a quarter at a time."""
    reading, window, room, block = Reading(shards, 300), 300, 150, 425
    order, own = reading.order, reading.inputs.own
    pieces = [
        piece
        for epoch in range(EPOCHS)
        for piece in epoch_pieces(order, row_range(order.lanes), epoch, range(order.steps), whole=False)
    ]
    stream = ImageStream(read(reading.reader, pieces), room)
    inputs = Inputs(order, StreamedImages(lambda at: stream, own, CPU, 128), CPU)
    batches = [batch for epoch in range(EPOCHS) for batch in inputs.epoch(epoch)]
    assert len(batches) == EPOCHS * order.steps
    assert window < len(stream.memory) <= 1.25 * (1.5 * window + room + block) < order.num_images


@pytest.mark.parametrize("workers", [1, 3])
def test_an_epoch_reads_the_own_row_groups_alone_and_each_once_but_for_two_a_lane(
    shards: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a lane ends in a row group, and where its first window does, the row group is read again."""
    manifest = opened(shards)
    order, seen, original = order_of(manifest, 700), Counter[int](), PieceReader._read_row_group

    def count(reader: PieceReader, group: int) -> pa.Table:
        seen[group] += 1
        return original(reader, group)

    monkeypatch.setattr(PieceReader, "_read_row_group", count)
    starts, ends = order.row_group_starts, order.row_group_starts + torch.tensor(order.row_groups)
    for rank in range(workers):
        seen.clear()
        lanes = RowRange(order.lanes * rank // workers, order.lanes * (rank + 1) // workers, order.lanes)
        own, rows = order.images_of(lanes), order.batch_rows(lanes)
        reader = PieceReader(order, shards, manifest, DECODING)
        blocks = reader.blocks(epoch_pieces(order, lanes, 0, range(order.steps), whole=False))
        assert sum(len(block["index"]) for block in blocks) == order.steps * (rows.stop - rows.start)
        overlapping = ((ends > own.start) & (starts < own.stop)).nonzero().squeeze(1).tolist()
        assert seen.keys() <= set(overlapping)
        assert sum(seen.values()) <= len(overlapping) + 2 * (lanes.stop - lanes.start)


def test_a_lost_shard_is_named(shards: str) -> None:
    manifest = opened(shards)
    manifest = manifest.model_copy(
        update={"shards": [shard.model_copy(update={"file": f"gone-{shard.file}"}) for shard in manifest.shards]}
    )
    reader = PieceReader(order_of(manifest, 700), shards, manifest, DECODING)
    stream = ImageStream(read(reader, swept_pieces(RowRange(0, 100, 1797), IMAGE_BYTES)), room=100)
    for _ in range(2):  # and whoever asks again is told again
        with pytest.raises(DataError, match=r"gone-shard-00000.parquet cannot be read"):
            stream.read(torch.arange(10))


@pytest.fixture
def bucket(shards: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The shards in the folder `digits` of a bucket."""
    with S3Server() as server:
        server.set_environment(monkeypatch)
        server.empty()  # moto's servers of one process share their buckets
        for file in Path(shards).iterdir():
            server.client().upload_file(str(file), BUCKET, f"digits/{file.name}")
        yield server
        server.empty()


def from_bucket(manifest: Manifest, images: int) -> Iterator[Block]:
    """The first images."""
    reader = PieceReader(order_of(manifest, 700), f"s3://{BUCKET}/digits", manifest, DECODING)
    return reader.blocks(swept_pieces(RowRange(0, images, 1797), IMAGE_BYTES))


def test_a_row_group_in_a_bucket_takes_one_request_and_is_not_kept(shards: str, bucket: S3Server) -> None:
    seen: Counter[str] = Counter()

    def count(method: str, path: str) -> None:
        seen[f"{method} {path.rpartition('/')[2]}"] += 1

    manifest = opened(shards)
    gc.collect()  # what earlier tests left would be freed meanwhile, and hide what is kept
    before = pa.total_allocated_bytes()
    bucket.fault = count
    assert sum(len(block["index"]) for block in from_bucket(manifest, 1797)) == 1797
    expected = {f"GET {shard.file}": 1 + len(shard.groups) for shard in manifest.shards}  # one for the footer
    assert {request: times for request, times in seen.items() if request.startswith("GET")} == expected
    gc.collect()  # caches of methods are cycles
    assert pa.total_allocated_bytes() == before


def test_a_bucket_that_throttles_for_a_while_costs_no_image(shards: str, bucket: S3Server) -> None:
    requests = itertools.count()

    def every_other(method: str, path: str) -> tuple[str, str, str] | None:
        return None if next(requests) % 2 else throttle(method, path)

    bucket.fault = every_other
    read = np.concatenate([block["index"] for block in from_bucket(opened(shards), 600)])
    assert read.tolist() == list(range(600))
    assert next(requests) > 12  # two shards, each with its size, its footer and two row groups


def blocks_of(*sizes: int) -> Iterator[Block]:
    start = 0
    for size in sizes:
        index = np.arange(start, start + size)
        yield {"image": np.broadcast_to(index[:, None, None, None], (size, 2, 2, 3)).astype(np.uint8), "index": index}
        start += size


def test_reads_cross_the_ends_of_blocks() -> None:
    stream = ImageStream(blocks_of(3, 5, 1, 4), room=4)
    assert stream.read(torch.arange(7))[:, 0, 0, 0].tolist() == list(range(7))
    assert stream.read(torch.arange(7, 13))[:, 0, 0, 0].tolist() == list(range(7, 13))


def test_images_that_are_not_due_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"read images \[0, 1, 2\]\.\.\. but expected \[0, 2, 4\]\.\.\."):
        ImageStream(blocks_of(5), room=5).read(torch.tensor([0, 2, 4]))


def test_no_more_is_fetched_ahead_than_there_is_room_for() -> None:
    made: list[int] = []

    def counted() -> Iterator[Block]:
        for block in blocks_of(*[4] * 20):
            made.append(len(block["index"]))
            yield block

    stream = ImageStream(counted(), room=10)
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 3  # two are kept, and one waits for room
    stream.read(torch.arange(80))
    assert len(made) == 20
    assert threading.active_count() < 50


def test_an_image_stays_until_its_last_draw_and_then_its_place_is_used_again() -> None:
    memory = ImageMemory()
    images = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None, None, None], (4, 2, 2, 3))
    opened = OpenImages(memory, RowRange(10, 20, 40))
    opened.add(memory.store(images), torch.tensor([10, 13, 15, 19]), torch.tensor([1, 2, 0, 1]))
    held = len(memory)
    assert opened.take(torch.tensor([13, 19]))[:, 0, 0, 0].tolist() == [1, 3]
    assert opened.take(torch.tensor([10, 13]))[:, 0, 0, 0].tolist() == [0, 1]
    places = memory.store(images[:held])
    assert len(memory) == held  # all places were free again
    opened.add(places, torch.arange(10, 10 + held), torch.ones(held, dtype=torch.int64))
    assert opened.take(torch.arange(10, 10 + held))[:, 0, 0, 0].tolist() == list(range(held))


def test_images_that_were_not_taken_are_dropped_at_the_end_of_an_epoch() -> None:
    memory = ImageMemory()
    opened = OpenImages(memory, RowRange(0, 4, 4))
    places = memory.store(np.zeros((4, 2, 2, 3), np.uint8))
    opened.add(places, torch.arange(4), torch.tensor([2, 1, 1, 1]))
    opened.take(torch.tensor([0, 1]))
    opened.close()
    assert sorted(memory.free.tolist()) == list(range(len(memory)))


def test_memory_that_grows_keeps_its_images() -> None:
    memory = ImageMemory()
    few, many = (np.full((count, 2, 2, 3), count, np.uint8) for count in (3, 100))
    first, second = memory.store(few), memory.store(many)
    assert memory.copy(first).unique().tolist() == [3]
    assert memory.copy(second).unique().tolist() == [100]
    assert len(torch.cat([first, second]).unique()) == 103


def test_blocks_do_not_end_where_row_groups_do(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = opened(shards)
    reader = PieceReader(order_of(manifest, 700), shards, manifest, DECODING)
    monkeypatch.setattr("pipeline.data.reader.block_rows", lambda image_bytes: 100)
    blocks = list(reader.blocks(swept_pieces(RowRange(0, 1030, 1797), IMAGE_BYTES)))
    assert [len(block["index"]) for block in blocks] == [100] * 10 + [30]
    assert np.concatenate([block["index"] for block in blocks]).tolist() == list(range(1030))


@pytest.mark.parametrize(("side", "rows"), [(8, 43690), (32, 2730), (224, 200), (512, 42), (4096, 1)])
def test_blocks_have_some_megabytes_or_a_number_of_large_images(side: int, rows: int) -> None:
    assert block_rows(3 * side**2) == rows


@pytest.mark.parametrize(("side", "rows"), [(32, 1024), (224, 445), (8192, 1)])
def test_the_pieces_of_an_estep_are_bounded_in_bytes(side: int, rows: int) -> None:
    first, *_ = swept_pieces(RowRange(0, 5000, 5000), 3 * side**2)
    assert first.stop - first.start == rows


def test_the_next_rows_are_fetched_while_some_are_decoded() -> None:
    begun = threading.Event()

    def rows() -> Iterator[int]:
        yield 1
        begun.set()
        yield 2
        raise DataError("damaged")

    ahead = one_ahead(rows())
    assert next(ahead) == 1
    assert begun.wait(30)
    assert next(ahead) == 2
    with pytest.raises(DataError, match="damaged"):
        next(ahead)


def test_readers_share_what_the_workers_leave() -> None:
    assert Readers.of(3.5, "a") == Readers(("a", "a", "a"), 1.16)
    assert Readers.of(0.5, "a") == Readers(("a",), 0.5)
    assert Readers.of(-1, "a") == Readers(("a",), 0.0)


def test_pieces_travel_in_tasks_of_some_images() -> None:
    tasks = list(task_tables(swept_pieces(RowRange(0, 5000, 5000), IMAGE_BYTES), 2000))
    assert [task.num_rows for task in tasks] == [2, 2, 1]


FULL = """
import itertools
import json
import os
import sys
import time
from pathlib import Path
import psutil
import ray
import torch
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from pipeline.data import streaming
from pipeline.data.reader import PieceReader, epoch_pieces, swept_pieces
from pipeline.collectives import row_range
from tests.data.test_streaming import DECODING, opened, order_of
from tests.helpers.runs import family, with_title

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
streaming.FEW_BYTES = 0
path, size = sys.argv[1], 224
order = order_of(opened(path), 400)
lanes, pieces = row_range(order.lanes), []
for epoch in range(4):
    pieces += swept_pieces(order.images_of(lanes), 3 * size**2)
    pieces += epoch_pieces(order, lanes, epoch, range(order.steps), whole=False)
reader = (order, path, opened(path), DECODING | {"size": size})
wanted = torch.cat([PieceReader(*reader).images_of(piece) for piece in pieces])
readers = streaming.Readers.of(1.0, ray.get_runtime_context().get_node_id())
pipeline = streaming.ReadPipeline(reader, readers, 3 * size**2)
stream = streaming.ImageStream(pipeline.blocks(pieces, len(wanted)), 100)

def used():
    return sum(t.user_time + t.system_time for t in psutil.Process().threads())

def stored():
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats.object_store_bytes_used

def readers():
    return with_title(family(os.getpid()), "PieceReader")

def are_read(images):
    return all(stream.read(part).equal(first_sweep[part]) for part in images.split(500))

while not stream.fetched:
    time.sleep(0.1)
marks = []
for _ in range(5):
    marks.append(used())
    time.sleep(3)
found = {"cpu": max(after - before for before, after in itertools.pairwise(marks)), "stored": stored()}
before = readers()  # by now the process has its title
first_sweep = stream.read(wanted[:1797])
found["equal"] = are_read(wanted[1797 : len(wanted) // 2])
found |= {"before": [process.pid for process in before], "after": [process.pid for process in readers()]}
before[0].kill()
while not (restarted := readers()) or before[0] in restarted:  # it takes a moment to die
    time.sleep(0.1)
found["restarted"] = [process.pid for process in restarted]
found["equal_after"] = are_read(wanted[len(wanted) // 2 :])
Path(sys.argv[2]).write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def full(shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a stream of four epochs and E-steps did, which waited for 15 s at first; half-way its reader was killed."""
    file = tmp_path_factory.mktemp("full") / "found.json"
    command = [sys.executable, "-c", FULL, shards, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.slow
def test_a_full_stream_leaves_the_cpu_to_the_training(full: dict[str, Any]) -> None:
    """Ray Data's scheduling loop has no pause of its own: it took a whole core of the worker, and Python's lock."""
    assert full["cpu"] < 0.5, "CPU seconds in 3 s"


@pytest.mark.slow
def test_a_full_stream_keeps_to_its_share_of_the_object_store(full: dict[str, Any]) -> None:
    """Eight tasks for one reader, and one that is being written; all images would be 2.1 GB."""
    image = 3 * 224**2
    task = MOST_TASK_BYTES // image * image
    assert task < full["stored"] <= 9 * task


@pytest.mark.slow
def test_epochs_and_esteps_are_read_by_one_process_unless_it_dies(full: dict[str, Any]) -> None:
    """A reader that dies is replaced, and what it had read is read again: no image is lost, and none comes twice."""
    assert len(full["before"]) == len(full["restarted"]) == 1
    assert full["after"] == full["before"] != full["restarted"]
    assert full["equal"]
    assert full["equal_after"]


WITHOUT_A_CPU = """
import sys
import ray
from pipeline.data import streaming
from pipeline.data.reader import swept_pieces
from pipeline.collectives import row_range
from tests.data.test_streaming import DECODING, SIDE, opened, order_of

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)

@ray.remote(num_cpus=1)
class Worker:
    def read(self, path):
        streaming.FEW_BYTES = 100 * 3 * SIDE**2
        streaming.BLOCK_BYTES = 300 * 3 * SIDE**2  # six tasks
        streaming.TASKS = 3  # of a pipeline: two follow each other
        order = order_of(opened(path), 400)
        pieces = swept_pieces(order.images_of(row_range(order.lanes)), 3 * SIDE**2)
        reader = (order, path, opened(path), DECODING)
        readers = streaming.Readers.of(0.0, ray.get_runtime_context().get_node_id())
        pipeline = streaming.ReadPipeline(reader, readers, 3 * SIDE**2)
        return [int(i) for block in pipeline.blocks(pieces, 1797) for i in block["index"]]

assert ray.get(Worker.remote().read.remote(sys.argv[1])) == list(range(1797))
"""


@pytest.mark.slow
def test_a_stream_needs_no_free_cpu(shards: str) -> None:
    """The one CPU is the worker's, which waits for what others read."""
    command = [sys.executable, "-c", WITHOUT_A_CPU, shards]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
