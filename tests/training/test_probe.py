"""Figures without labels in the E-step: the same for every number of workers, in every epoch, after every resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.build import settle_images
from pipeline.clustering.label_free import LABEL_FREE_WEIGHTS, assignment_agreement, label_free_score
from pipeline.clustering.nearest import nearest_center
from pipeline.config.loading import load_config
from pipeline.data.decode import decode_table
from pipeline.data.ingest import ingest
from pipeline.data.read import read_sample
from pipeline.data.shards import Manifest, read_manifest
from pipeline.training.estep import run_estep
from pipeline.training.mstep import train_step
from pipeline.training.probe import PROBE_EPOCH, Probe, read_probe, view_clusters
from tests.helpers.small_run import digits, small_run
from tests.helpers.workers import Workers

OBJECTIVES = {
    "silhouette",
    "view_agreement",
    "seed_agreement",
    "estep_agreement",
    "prototype_margin",
    "label_free",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Manifest]:
    return digits(tmp_path_factory.mktemp("digits"))


def _history(rank: int, data: tuple[Tensor, Manifest], probe: int, steps: int) -> list[dict[str, float]]:
    """Pages of the E-step before and after a few steps, in float64."""
    run = small_run(*data, f"estep.probe={probe}", double=True)
    run_estep(run)
    for batch in list(run.feed.inputs.epoch(0))[:steps]:
        train_step(run, batch)
    run.state.epochs_done = 1
    run_estep(run)
    return run.state.history


def test_every_estep_has_them_and_the_first_one_agrees_with_nothing(data: tuple[Tensor, Manifest]) -> None:
    first, second = _history(0, data, 64, 2)
    assert first.keys() & OBJECTIVES == {"silhouette", "view_agreement", "seed_agreement", "prototype_margin"}
    assert second.keys() >= OBJECTIVES
    assert second["label_free"] == label_free_score({name: second[name] for name in LABEL_FREE_WEIGHTS})
    assert 0 < second["label_free"] < 1


def test_they_can_be_switched_off(data: tuple[Tensor, Manifest]) -> None:
    left = OBJECTIVES & {name for page in _history(0, data, 0, 0) for name in page}
    assert left == {"estep_agreement"}  # which needs no probe


# 200 images: with probe=50 all probe features lie on rank 0; with probe=2 three workers have 0, 1 and 1 probe images
@pytest.mark.parametrize("probe", [2, 50, 131])
@pytest.mark.parametrize("workers", ["pair", "trio"])  # in shares of 100, and of 66, 67 and 67 images
def test_workers_agree_with_one_process(
    workers: str, probe: int, data: tuple[Tensor, Manifest], request: pytest.FixtureRequest
) -> None:
    expected = _history(0, data, probe, 1)
    first, *others = request.getfixturevalue(workers).run(_history, data, probe, 1)
    for page, wanted in zip(first, expected, strict=True):
        assert page.keys() == wanted.keys()
        for name in OBJECTIVES & page.keys():
            assert page[name] == pytest.approx(wanted[name], rel=1e-9, abs=1e-9), name
    assert not {*OBJECTIVES, "label_churn"} & {name for history in others for page in history for name in page}


def test_views_of_the_probe_are_those_of_no_epoch_and_always_the_same(data: tuple[Tensor, Manifest]) -> None:
    run = small_run(*data)
    index = torch.arange(8)
    probe, again = (run.feed.views(data[0][:8], index, PROBE_EPOCH) for _ in range(2))
    assert all(view.equal(other) for view, other in zip(probe, again, strict=True))
    for epoch in range(run.job.config.optim.epochs):
        assert not any(view.equal(probe[0]) for view in run.feed.views(data[0][:8], index, epoch))


def test_view_clusters_are_those_of_the_nearest_centre(data: tuple[Tensor, Manifest]) -> None:
    run = small_run(*data)
    run_estep(run)
    assert run.state.pseudo is not None
    centers, total = run.state.pseudo.centers, run.feed.probe.total
    found = view_clusters(run.state.model, run.feed.probe, 100 * centers)  # their length is no matter
    assert found.shape == (total, 2)
    views = run.feed.views(data[0][:total], torch.arange(total), PROBE_EPOCH)
    for column, view in zip(found.T, views, strict=True):
        features = run.state.model.encode(view)
        nearest_center = torch.nn.functional.cosine_similarity(features[:, None], centers, dim=2).argmax(dim=1)
        assert column.equal(nearest_center)
    assert run.state.history[-1]["view_agreement"] == assignment_agreement(*found.T)


def test_seeds_agree_where_clusters_are_plain_and_one_seed_agrees_with_none(data: tuple[Tensor, Manifest]) -> None:
    run = small_run(*data)
    run_estep(run)
    assert run.state.pseudo is not None
    total, found = run.feed.probe.total, run.state.pseudo
    features = run.state.model.encode(run.feed.preprocess(data[0][:total]))
    agreements = [
        assignment_agreement(found.labels[:total], nearest_center(features, other).labels) for other in found.others
    ]
    assert len(agreements) == run.job.config.estep.restarts - 1
    assert run.state.history[-1]["seed_agreement"] == pytest.approx(sum(agreements) / len(agreements))
    single = small_run(*data, "estep.restarts=1")
    run_estep(single)
    assert "seed_agreement" not in single.state.history[-1]


def test_looking_changes_nothing(data: tuple[Tensor, Manifest]) -> None:
    runs = [small_run(*data, f"estep.probe={probe}") for probe in (0, 64)]
    for run in runs:
        run.step_model.train()
        run_estep(run)
        train_step(run, next(run.feed.inputs.epoch(0)))
    for value, other in zip(*(run.state.model.state_dict().values() for run in runs), strict=True):
        assert value.equal(other)


def test_a_collapsed_network_scores_nothing(data: tuple[Tensor, Manifest]) -> None:
    run = small_run(*data)
    head = run.state.model.networks.target.projector[-1]
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.ones_(head.bias)
    for _ in range(2):
        run_estep(run)
    page = run.state.history[-1]
    assert page["prototype_margin"] == pytest.approx(0, abs=1e-6)
    assert page["silhouette"] <= 0
    assert page["label_free"] == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in shards of 30 rows, so that a probe needs several."""
    path = tmp_path_factory.mktemp("probe") / "digits"
    ingest("digits", str(path), rows_per_shard=30)
    return path


def _probe(rank: int, folder: Path, count: int) -> Probe | None:
    config = settle_images(
        load_config("digits", [f"data.path={folder}", f"estep.probe={count}", "estep.batch_size=16"])
    )
    return read_probe(config, read_manifest(str(folder)), _keyed, torch.device("cpu"))


def _keyed(images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    """Views that show what they were made of."""
    return images, torch.stack([index, torch.full_like(index, epoch)])


@pytest.mark.parametrize("count", [2, 50])
def test_the_probe_is_the_first_images_spread_over_the_workers(trio: Workers, folder: Path, count: int) -> None:
    table = read_sample(str(folder), read_manifest(str(folder)), count)
    images = torch.from_numpy(decode_table(table, 16)["image"])
    for probes in ([_probe(0, folder, count)], trio.run(_probe, folder, count)):
        blocks = [block for probe in probes for block in probe.views]
        assert {probe.total for probe in probes} == {count}
        assert max(len(part) for part, _ in blocks) <= 16
        assert torch.cat([part for part, _ in blocks]).equal(images)
        index, epochs = torch.cat([keys for _, keys in blocks], dim=1)
        assert index.equal(torch.arange(count))
        assert epochs.unique().tolist() == [PROBE_EPOCH]


def test_a_probe_is_at_most_the_set_and_none_when_switched_off(folder: Path) -> None:
    probe = _probe(0, folder, 5000)
    assert probe is not None
    assert probe.total == sum(len(part) for part, _ in probe.views) == 1797
    assert _probe(0, folder, 0) is None
