"""How many clusters: the whole sweep without Ray, on features whose number of clusters is known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from pipeline.clustering.num_clusters import Recommendation
from pipeline.config.loading import load_config
from pipeline.errors import ConfigError
from pipeline.inference.card import TRAINING_CLUSTERS
from pipeline.inference.predict import measure_clusters
from pipeline.runs import sweep_k
from pipeline.runs.sweep_k import Subject, check_distinct, describe, draw, is_run, of_data, of_run, sweep
from tests.helpers.cached_features import all_features, frozen_config, make_cache
from tests.helpers.manifests import manifest
from tests.helpers.run_features import write_run_features

CLASSES = 6
NUMBERS = range(4, 9)


@pytest.fixture(autouse=True)
def _small_and_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_k, "connect", lambda: None)
    monkeypatch.setattr(sweep_k, "PAIRS", 3)
    monkeypatch.setattr(sweep_k, "REFERENCES", 1)


def directions(count: int) -> Tensor:
    return F.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(3)), dim=1)


def run_with_pairs() -> Subject:
    """A run with two clusters for each class: numbers c and c + CLASSES."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.6 * torch.randn(300, 16, generator=generator) / 4
    features = F.normalize(directions(CLASSES)[torch.arange(300) % CLASSES] + noise, dim=1)
    centers = torch.cat([directions(CLASSES), directions(CLASSES) + 0.02])
    return Subject("runs/mine", features, 300, 0, centers, np.full(2 * CLASSES, 25))


def test_copies_of_few_images_are_too_few_for_many_clusters() -> None:
    few = F.normalize(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    copies = few.repeat(40, 1)
    check_distinct(range(2, 12), copies)
    with pytest.raises(
        ConfigError, match=r"--to 12 is too large: of 480 images, only 12 have different features; give --to 11 or less"
    ):
        check_distinct(range(2, 13), copies)
    with pytest.raises(
        ConfigError, match=r"only 3 have different features; give more images that differ from each other"
    ):
        check_distinct(range(2, 6), copies[:3].repeat(9, 1))


def test_copies_of_enough_images_are_judged(tmp_path: Path) -> None:
    """A clustering of copies leaves no distance at all, and rounding may make it negative."""
    features = directions(9).repeat(20, 1)
    found = sweep(Subject("icons", features, 180, 0), range(6, 9), str(tmp_path / "out"), lambda _: None)
    assert all(np.isfinite(curve).all() for curve in found["curves"].values())


def test_a_sweep_recommends_the_number_of_classes_and_merges_to_it(tmp_path: Path) -> None:
    said = list[str]()
    (tmp_path / "merge-99.yaml").write_text("of an earlier sweep")
    summary = sweep(run_with_pairs(), NUMBERS, str(tmp_path), said.append)
    assert summary["recommendation"]["num_clusters"] == CLASSES
    assert summary["recommendation"]["confidence"] == 1
    assert set(summary["picks"].values()) == {CLASSES}
    assert list(summary["picks"]) == ["silhouette", "stability", "gap", "modularity", "eigengap", "dendrogram"]
    assert all(len(curve) == len(NUMBERS) for curve in summary["curves"].values())
    assert json.loads((tmp_path / "sweep.json").read_text()) == summary
    assert [path.name for path in tmp_path.glob("merge-*")] == [f"merge-{CLASSES}.yaml"]
    merge = yaml.safe_load((tmp_path / f"merge-{CLASSES}.yaml").read_text())
    assert merge == {cluster: f"{cluster % CLASSES}+{cluster % CLASSES + CLASSES}" for cluster in range(2 * CLASSES)}
    for picture in ("sweep.png", "dendrogram.png"):
        assert (tmp_path / picture).read_bytes()[1:4] == b"PNG"
    assert said[0] == "runs/mine: 300 of 300 images"
    assert said[-1] == "sweep-k: 5/5 numbers of clusters  0:00 left"


def test_a_killed_sweep_goes_on_where_it_was_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, judge, done = run_with_pairs(), sweep_k.judge, list[int]()

    def killed(features: Tensor, start: Tensor, middle: int, seed: int):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(start))
        return judge(features, start, middle, seed)

    monkeypatch.setattr(sweep_k, "judge", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep(subject, NUMBERS, str(tmp_path / "a"), print)
    assert not (tmp_path / "a" / "sweep.json").exists()
    monkeypatch.setattr(sweep_k, "judge", lambda *given: done.append(len(given[1])) or judge(*given))
    resumed = sweep(subject, NUMBERS, str(tmp_path / "a"), print)
    assert sorted(done) == list(NUMBERS)
    whole = sweep(subject, NUMBERS, str(tmp_path / "b"), print)
    assert resumed["curves"] == whole["curves"]


def test_other_features_take_nothing_over(tmp_path: Path) -> None:
    said = list[str]()
    subject = run_with_pairs()
    other = Subject("runs/mine", subject.features.flip(0), 300, 0)
    for given in (subject, other):
        sweep(given, [4, 5, 6], str(tmp_path), said.append)
    assert not [line for line in said if "are already done" in line]
    assert [line.split()[1] for line in said if line.startswith("sweep-k")] == ["1/3", "2/3", "3/3"] * 2


def test_without_a_run_no_merge_is_written(tmp_path: Path) -> None:
    subject = run_with_pairs()
    summary = sweep(Subject("data/mine", subject.features, 300, 0), NUMBERS, str(tmp_path), print)
    assert set(summary["outputs"]) == {"summary", "curves", "dendrogram"}
    assert not list(tmp_path.glob("merge-*"))


def test_the_sample_is_drawn_by_the_seed_and_has_no_image_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_k, "SAMPLE", 50)
    first, again, other = draw(200, 0), draw(200, 0), draw(200, 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) == 50
    assert not torch.equal(first, first.sort(dim=0).values)
    assert first.max() - first.min() == 49  # consecutive, so that few row groups are read
    assert first.min() != other.min()
    assert min(first.min(), other.min()) >= 0
    assert max(first.max(), other.max()) < 200


def test_a_small_set_is_its_own_sample() -> None:
    assert draw(200, 3).sort().values.tolist() == list(range(200))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (range(9, 9), "give 0 numbers of clusters (none to none)"),
        (range(9, 11), "give 2 numbers of clusters (9 to 10)"),
        (range(1, 9), "a --from of at least 2"),
        (
            range(5, 77),
            "--to 76 is too large for 300 images, because half of them are clustered at a time; give at most 75",
        ),
    ],
)
def test_numbers_that_cannot_be_compared_are_refused(tmp_path: Path, numbers: range, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        sweep(run_with_pairs(), numbers, str(tmp_path / "out"), print)
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_shards_need_a_frozen_backbone(tmp_path: Path) -> None:
    assert not is_run(str(tmp_path))
    with pytest.raises(ConfigError, match=r"train the encoder .*Give --preset photos"):
        of_data(load_config("digits", [f"data.path={tmp_path}"]), print)


def test_features_of_shards_are_standardised_over_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = frozen_config(tmp_path)
    monkeypatch.setattr(sweep_k, "make_cache", lambda config, echo: make_cache(config)[:2])
    subject = of_data(config, print)
    assert (subject.what, subject.images, subject.centers) == (f"{tmp_path}/digits", 200, None)
    assert torch.allclose(subject.features.norm(dim=1), torch.ones(200), atol=1e-5)
    assert subject.features.mean(dim=0).abs().max() < 0.1  # raw features of a ReLU are positive


def test_all_cached_views_of_the_images_in_shards_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = frozen_config(tmp_path)
    folder, cache = make_cache(config)[:2]
    monkeypatch.setattr(sweep_k, "make_cache", lambda config, echo: (folder, cache))
    unit = F.normalize(torch.from_numpy(all_features(folder, cache)).float(), dim=2)
    means = unit[:, 0] * 2 / 3 + unit[:, 1:].mean(dim=1) / 3
    unit_means = F.normalize(means, dim=1)
    expected = F.normalize((unit_means - unit_means.mean(dim=0)) / unit_means.std(dim=0, correction=0), dim=1)
    assert torch.allclose(of_data(config, print).features, expected[draw(200, config.seed)], atol=1e-4)


def test_only_the_sample_is_kept_and_it_is_standardised_over_all_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = frozen_config(tmp_path)
    monkeypatch.setattr(sweep_k, "make_cache", lambda config, echo: make_cache(config)[:2])
    everything = of_data(config, print)
    row_of = {int(index): row for row, index in enumerate(draw(200, config.seed))}
    monkeypatch.setattr(sweep_k, "SAMPLE", 30)
    subject = of_data(config, print)
    assert (subject.images, len(subject.features)) == (200, 30)
    rows = [row_of[int(index)] for index in draw(200, config.seed)]
    assert torch.equal(subject.features, everything.features[rows])


def test_a_run_is_judged_by_a_sample_and_has_the_sizes_of_all_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, centers = F.normalize(torch.randn(90, 8), dim=1).half().float(), torch.eye(3, 8)
    write_run_features(tmp_path, rows[:50], np.arange(50))
    write_run_features(tmp_path, rows[50:], np.arange(50, 90), 1)
    clusters = measure_clusters(lambda: [(np.arange(90) % 2, np.zeros(90, np.float32))], 3)
    (tmp_path / TRAINING_CLUSTERS).write_text(clusters.model_dump_json())
    config = load_config("digits", [])
    monkeypatch.setattr(sweep_k, "read_started_run", lambda folder: (config, manifest(90)))
    monkeypatch.setattr(sweep_k, "load_model", lambda folder: SimpleNamespace(centers=centers))
    monkeypatch.setattr(sweep_k, "SAMPLE", 40)
    subject = of_run(str(tmp_path))
    assert (subject.images, len(subject.features)) == (90, 40)
    assert subject.sizes is not None
    assert subject.sizes.tolist() == [45, 45, 0]
    torch.testing.assert_close(subject.features, rows[draw(90, config.seed)], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Recommendation(10, 1.0), "10 clusters, sure: 5 of 5 criteria pick it or a number next to it"),
        (Recommendation(10, 0.6), "10 clusters, fairly sure: 3 of 5 criteria pick it or a number next to it"),
        (Recommendation(10, 0.4), "10 clusters, not sure: 2 of 5 criteria pick it or a number next to it"),
    ],
)
def test_the_sentence_says_how_sure_it_is(found: Recommendation, expected: str) -> None:
    assert describe(found, dict.fromkeys("abcde", 10), range(5, 51)) == expected


def test_a_number_at_the_edge_of_the_range_is_said_to_be_there() -> None:
    assert describe(Recommendation(50, 1.0), {"a": 50}, range(5, 51)).endswith("edge of 5 to 50: widen the range")
