"""A worker's images: in its memory, or streamed by the schedule of the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import ray
import torch
from torch import Tensor

from pipeline.checks.nodes import alive_nodes
from pipeline.collectives import RowRange, objects_of_all, rank, row_range, world_size
from pipeline.data.loader import InputSource, ResidentImages
from pipeline.data.reader import SWEPT_ROWS, Piece, epoch_pieces, swept_pieces
from pipeline.data.streaming import ImageStream, Readers, ReadPipeline, StreamedImages
from pipeline.plan import has_estep, image_bytes, is_balanced
from pipeline.training.job import Job


def image_source(job: Job, device: torch.device) -> InputSource:
    """This worker's images, in memory or streamed."""
    order, config = job.plan.order, job.config
    own, pipeline = order.images_of(row_range(order.lanes)), open_read_pipeline(job)
    if job.plan.mode == "streaming":
        return StreamedImages(partial(begin_stream, job, pipeline), own, device, config.estep.batch_size)
    return ResidentImages(fetch_images(job, pipeline, own).to(device), own, config.estep.batch_size)


def fetch_images(job: Job, pipeline: ReadPipeline, own: RowRange) -> Tensor:
    """The decoded images (n, S, S, 3) uint8 of a share."""
    size = job.config.data.decoding["size"]
    images = torch.empty((own.size, size, size, 3), dtype=torch.uint8)
    pieces = swept_pieces(own, image_bytes(job.config))
    stream = ImageStream(pipeline.blocks(pieces, own.size), room=SWEPT_ROWS)
    for part, index in zip(images.split(SWEPT_ROWS), torch.arange(*own[:2]).split(SWEPT_ROWS), strict=True):
        part.copy_(stream.read(index))
    return images


def begin_stream(job: Job, pipeline: ReadPipeline, at: tuple[int, int] | None) -> ImageStream:
    """The images of the rest of a run, from (epoch, step) `at` on, or from the first E-step if it is None."""
    order = job.plan.order
    lanes, epochs = row_range(order.lanes), job.config.optim.epochs
    own = order.images_of(lanes)
    images = 2 * (epochs - (at or (0, 0))[0]) * own.size
    blocks = pipeline.blocks(schedule(job, lanes, at), images)
    if order.covers:
        return ImageStream(blocks, room=own.size)
    # Windows begin staggered, so half of their images must be there at the start of an epoch.
    return ImageStream(blocks, room=order.window * own.size // order.num_images // 2)


def schedule(job: Job, lanes: RowRange, at: tuple[int, int] | None) -> Iterator[Piece]:
    """Everything that a worker with these lanes reads from `at` on, in the order in which it needs it."""
    order, config = job.plan.order, job.config
    swept = swept_pieces(order.images_of(lanes), image_bytes(config))
    if at is None:
        yield from swept
    first_epoch, first_step = at or (0, 0)
    for epoch in range(first_epoch, config.optim.epochs):
        step = first_step if epoch == first_epoch else 0
        steps = range(step, step + 1 if config.profile.only == "compute" else order.steps)
        yield from epoch_pieces(order, lanes, epoch, steps, whole=is_balanced(config, epoch))
        if has_estep(config, epoch + 1):
            yield from swept


def open_read_pipeline(job: Job) -> ReadPipeline:
    """The reading processes of this worker: they share the CPUs that the workers leave free. All workers call it.

    Outside a search they reserve no CPUs: a node that has just been lost may still be counted, and readers that
    reserve its CPUs would wait forever.
    """
    context = ray.get_runtime_context()
    here = context.get_node_id()
    if job.reading_cpus is not None:
        readers = Readers.of(job.reading_cpus / world_size(), here)
    else:
        workers = objects_of_all((here, context.get_assigned_resources().get("CPU", 0.0)))
        nodes = share_readers(_free_cpus(workers), [node for node, _ in workers])
        readers = Readers(nodes[rank()], 0.0)
    reader = (job.plan.order, job.config.data.path, job.manifest, job.config.data.decoding)
    return ReadPipeline(reader, readers, image_bytes(job.config))


def _free_cpus(workers: Sequence[tuple[str, float]]) -> dict[str, int]:
    """Whole CPUs of each node that workers, given by their nodes and CPUs, leave free."""
    free = {node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in alive_nodes()}
    for node, cpus in workers:
        free[node] = free.get(node, 0.0) - cpus
    return {node: max(int(cpus), 0) for node, cpus in free.items()}


def share_readers(free: dict[str, int], workers: Sequence[str]) -> list[tuple[str, ...]]:
    """The nodes of each worker's readers: the same number for all, on the own node as far as it has free CPUs.

    Parameters
    ----------
    free : dict
        CPUs of each node; a reader takes one.
    workers : sequence of str
        The node of each worker. One without any CPU has one reader on its node all the same.
    """
    left, share = dict(free), sum(free.values()) // len(workers)
    found: list[list[str]] = [[] for _ in workers]
    for only_own in (True, False):
        for _ in range(share):
            for nodes, own in zip(found, workers, strict=True):
                node = own if only_own else max(left, key=lambda node: left[node])
                if len(nodes) < share and left[node] > 0:
                    nodes.append(node)
                    left[node] -= 1
    return [tuple(nodes) or (own,) for nodes, own in zip(found, workers, strict=True)]
