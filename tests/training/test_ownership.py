"""Three workers that own very different numbers of images, or none, find what one process finds, and keep their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.collectives import RowRange
from pipeline.data.read import read_labels
from pipeline.data.shards import Manifest
from pipeline.training.checkpoint import read_checkpoint, restore, save_state
from pipeline.training.estep import run_estep
from pipeline.training.monitors import make_monitors
from pipeline.training.mstep import draw_weights
from pipeline.training.probe import gather_probe
from pipeline.training.run import Run
from tests.helpers.golden import assert_close
from tests.helpers.small_run import IMAGES, digits, small_run
from tests.helpers.workers import Workers

CUTS = [[0, 7, 7, IMAGES], [0, 0, 180, IMAGES], [0, 197, 199, IMAGES]]
SETTINGS = ["optim.balance=0.8", "monitor.knn_every=1", "monitor.probe_every=1", "estep.restarts=3"]


@dataclass
class OwnImages:
    """The rows that a worker owns, as blocks of an E-step."""

    images: Tensor
    own: RowRange

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        index = torch.arange(self.own.start, self.own.stop)
        for part in index.split(50):
            if len(part):
                yield self.images[part - self.own.start], part


class Found(NamedTuple):
    """What a worker has after two E-steps, and whether a checkpoint gives it the same."""

    history: list[dict[str, float]]
    centers: Tensor
    labels: Tensor
    probe: Tensor
    held_out: Tensor
    weights: Tensor
    restored: Tensor


def _owning(data: tuple[Tensor, Manifest], classes: Tensor, own: RowRange) -> Run:
    """A run of which this worker owns the rows `own`."""
    run = small_run(*data, *SETTINGS, double=True)
    run.feed = replace(run.feed, inputs=OwnImages(data[0][own.start : own.stop], own))
    run.classes = classes[own.start : own.stop].numpy()
    run.monitors = make_monitors(run.classes, own, run.job.config, torch.device("cpu"))
    return run


def _change(run: Run) -> None:
    """Move the target network in place of an epoch, the same on every worker."""
    generator = torch.Generator().manual_seed(0)
    for weight in run.state.model.networks.target.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        weight.data += 0.3 * weight.data.std(correction=0) * noise


def _two_esteps(rank: int, data: tuple[Tensor, Manifest], classes: Tensor, cuts: list[int], folder: Path) -> Found:
    run = _owning(data, classes, own := RowRange(cuts[rank], cuts[rank + 1], IMAGES))
    run_estep(run)
    _change(run)
    run.state.epochs_done = 1
    run_estep(run)
    features = torch.zeros((own.size, 3), dtype=torch.float64)
    found, weights = run.state.pseudo, draw_weights(run)
    assert found is not None
    assert weights is not None
    assert run.monitors is not None
    save_state(run.state, run.job.config, folder)
    if dist.is_initialized():
        dist.barrier()  # until rank 0 has written
    other = small_run(*data, double=True)
    restore(other.state, read_checkpoint(folder), own)
    assert other.state.pseudo is not None
    return Found(
        run.state.history,
        found.centers,
        found.labels,
        gather_probe(run.feed.probe, features, found)[1],
        run.monitors.held_out,
        weights,
        other.state.pseudo.labels,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Images and manifest; and their classes, of which some are unknown, and the largest has one image."""
    folder = tmp_path_factory.mktemp("digits")
    made = digits(folder)
    labels = read_labels(str(folder), 0, IMAGES)
    assert labels is not None
    classes = torch.from_numpy(labels)
    classes[::9] = -1
    classes[-1] = 11
    return made, classes


@pytest.fixture(scope="module")
def alone(data: Any, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return _two_esteps(0, *data, [0, IMAGES], tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("cuts", CUTS)
def test_three_workers_find_what_one_finds(
    trio: Workers, data: Any, alone: Found, cuts: list[int], tmp_path: Path
) -> None:
    found = trio.run(_two_esteps, *data, cuts, tmp_path)
    for name in ("labels", "held_out", "restored"):
        assert torch.cat([getattr(part, name) for part in found]).equal(getattr(alone, name)), name
    assert_close(torch.cat([part.weights for part in found]), alone.weights, rtol=1e-12)
    for part, start, stop in zip(found, cuts[:-1], cuts[1:], strict=True):
        assert len(part.labels) == stop - start
        assert part.probe.equal(alone.labels[:64].long())
        assert_close(part.centers, alone.centers, rtol=1e-9)
    for page, expected in zip(found[0].history, alone.history, strict=True):
        assert page == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_one_process_has_every_metric(alone: Found) -> None:
    """Without which the workers could agree on nothing."""
    names = {"label_churn", "estep_agreement", "acc", "nmi", "ari", "label_free", "knn_acc", "linear_acc"}
    assert alone.history[1].keys() >= names
    assert 0.05 < alone.history[1]["label_churn"] < 0.9
    assert alone.weights.sum() == pytest.approx(IMAGES)
    assert alone.weights.std() > 0.1
    assert alone.held_out.sum() == 35  # a fifth of the 177 images with a class


def test_workers_other_than_the_first_have_what_is_no_matching_or_score(
    trio: Workers, data: Any, tmp_path: Path
) -> None:
    _, *others = trio.run(_two_esteps, *data, CUTS[0], tmp_path)
    for part in others:
        names = part.history[1].keys()
        assert names >= {"inertia", "size_entropy", "feature_spread", "knn_acc"}
        assert not names & {"label_churn", "estep_agreement", "acc", "label_free", "silhouette"}
