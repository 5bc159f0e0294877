"""Each benchmark runs with tiny settings and writes its results; its claims are tested on an idle machine, not here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import estep
from benchmarks.asha import compare
from benchmarks.kmeans import cosine_inertia, make_rows
from benchmarks.measure import speedup, time_interleaved
from benchmarks.objectives import correlations
from benchmarks.performance import feed_rows, kmeans_rows, page
from benchmarks.pipeline import FED_CLAIM, LEAST_DELIVERED
from benchmarks.quality import check_finished, print_table, seed_metrics, seeds_and_variants, variants
from benchmarks.workers import WAYS
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from tests.helpers.cached_features import frozen_config, make_cache

ROOT = Path(__file__).parent.parent


def run(name: str, out: Path, *arguments: str) -> dict[str, Any]:
    """Results of one benchmark, started as documented; exit status 1 is a failed claim, not a crash."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert out.is_file(), done.stderr
    results = json.loads(out.read_text())
    assert "cores" in results["hardware"]
    return dict(results)


def test_blocks_alternate_and_ratios_are_taken_within_a_round() -> None:
    order: list[str] = []
    seconds = time_interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b", "b", "a"]
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"a": 2, "b": 2}
    assert speedup({"a": [1.0, 4.0, 2.0], "b": [2.0, 4.0, 20.0]}, of="a", over="b") == 2.0


def test_inertia_is_the_sum_of_one_minus_cosine_to_the_cluster_mean() -> None:
    rows = make_rows(60, 8, 3, noise=1.0)
    labels = torch.arange(60) % 3
    centers = torch.nn.functional.normalize(torch.stack([rows[labels == k].mean(dim=0) for k in range(3)]), dim=1)
    assert cosine_inertia(rows, labels, 3) == pytest.approx(float((1 - (rows * centers[labels]).sum(dim=1)).sum()))


def test_views(tmp_path: Path) -> None:
    results = run("views", tmp_path / "out.json", "--batch", "8", "--rounds", "1")
    assert results["cifar10"]["over_torchvision_pil"] > 0
    assert results["digits"]["over_torchvision_tensor"] > 0


def test_kmeans(tmp_path: Path) -> None:
    results = run("kmeans", tmp_path / "out.json", "--rows", "500", "--size", "16", "--clusters", "5", "--rounds", "1")
    inertia = results["K=5 noise=1.5"]["inertia"]
    assert set(inertia) == {"ours", "sampled", "faiss", "sklearn"}
    assert inertia["ours"] <= 1.01 * min(inertia.values())


def test_kmeans_cost_on_cached_features(tmp_path: Path) -> None:
    folder, cache, _ = make_cache(frozen_config(tmp_path), images=40)
    small = ("--features", folder.path, "--clusters", "6", "--workers", "1", "--rows", "1", "--levels", "1", "2")
    flat, divided = run("kmeans_cost", tmp_path / "out.json", *small, "--folder", str(tmp_path))["points"]
    assert (flat["levels"], divided["levels"]) == (1, 2)
    assert flat["rows"] == divided["rows"] == cache.num_images
    assert flat["mean_distance"] > 0
    assert divided["mean_distance"] < 1.5 * flat["mean_distance"]


def test_kmeans_cost(tmp_path: Path) -> None:
    small = ("--rows", "600", "--clusters", "5", "--workers", "1", "2", "--folder", str(tmp_path))
    one, two = run("kmeans_cost", tmp_path / "out.json", *small)["points"]
    assert (one["workers"], two["workers"]) == (1, 2)
    assert one["mean_distance"] == pytest.approx(two["mean_distance"], rel=1e-6)
    assert 0 < one["peak_gib"] < 5


def test_step_reproduces_the_golden_vectors(tmp_path: Path) -> None:
    small = ("--encoder", "tiny", "--batch", "8", "--rounds", "1", "--device", "cpu")
    results = run("step", tmp_path / "out.json", "--golden", *small)
    assert results["golden_errors"]["torch.float64"] < 1e-9
    assert results["losses"]["fused_float32"] == pytest.approx(results["losses"]["separate_float32"], abs=1e-3)


def test_slow_tracking(tmp_path: Path) -> None:
    sizes = ("--delay", "0.3", "--epochs", "2", "--epoch-seconds", "0.5")
    results = run("slow_tracking", tmp_path / "out.json", *sizes)
    assert len(results["logged"]) == 2
    assert results["end"] >= 0.3  # that one is waited for


def test_compared_views(tmp_path: Path) -> None:
    config = frozen_config(tmp_path, "views.neighbours=0")
    folder = make_cache(config, images=1797)[0]
    shares = run("compared_views", tmp_path / "out.json", folder.path, config.data.path)["shares"]
    assert list(shares) == ["0.00", "0.20", "0.35", "0.50", "0.67", "0.80", "1.00"]
    assert len(set(shares.values())) > 1  # the weight counts
    assert all(0.1 < share < 1 for share in shares.values())  # of ten classes


@pytest.mark.chaos  # which writes the outputs of two runs
def test_leaving(tmp_path: Path) -> None:
    results = run("leaving", tmp_path / "out.json", "--images", "600", "300", "--clusters", "5")
    assert [point["images"] for point in results["points"]] == [300, 600]
    assert all(point["bytes"] > 2**20 for point in results["points"])
    assert results["claim_holds"] == (results["bytes_an_image"] <= 16)


@pytest.mark.chaos  # Ray Train for minutes
@pytest.mark.parametrize("mode", ["streaming", "resident"])
def test_pipeline(tmp_path: Path, mode: str) -> None:
    small = ("--encoder", "tiny", "--images", "256", "--batch", "32", "--rounds", "1", "--workers", "1")
    result = run("pipeline", tmp_path / "out.json", *small, "--mode", mode)[mode]
    assert result["images"] == 256
    assert result["claim_holds"] == (result["ratio"] >= FED_CLAIM)
    assert result["delivered"] >= LEAST_DELIVERED
    assert result["worker_peak_rss_gib"] > 0.1


@pytest.mark.chaos  # a run of six epochs
def test_first_batch(tmp_path: Path) -> None:
    results = run("first_batch", tmp_path / "out.json", "--images", "3000", "--batch", "64", "--workers", "2")
    waits, epochs = results["seconds"]["first_batch"], results["seconds"]["epoch"]
    assert len(waits) == len(epochs) == 3
    assert all(0 <= wait < epoch for wait, epoch in zip(waits, epochs, strict=True))
    assert results["claim_holds"] == (results["share"] <= 0.05)


@pytest.mark.chaos  # CI has test_pipeline, which reads through the same stream
def test_resume(tmp_path: Path) -> None:
    results = run("resume", tmp_path / "out.json", "--images", "700", "--rounds", "1", "--set", "optim.batch_size=64")
    assert results["steps"] == {"start": 0, "late": 9}
    assert all(seconds > 0 for (seconds,) in results["seconds"].values())
    assert results["claim_holds"] == (results["ratio"] <= 1.2)


def test_estep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs are usual ones: here their history is given."""
    epoch = {"seconds_epoch": 2.0, "seconds_estep": 0.2, "seconds_evaluate": 0.05}
    without = {"seconds_epoch": 1.0, "seconds_estep": 0.0, "seconds_evaluate": 0.0}
    ran: list[RunConfig] = []
    monkeypatch.setattr(estep, "train", lambda config, **_: ran.append(config) or {"folder": "mine"})
    monkeypatch.setattr(estep, "newest_in", lambda folder: {"history": [epoch, epoch, *[epoch, without] * 8]})
    monkeypatch.setattr(
        sys, "argv", ["estep", "--rounds", "2", "--set", "estep.every=2", "--out", str(tmp_path / "out.json")]
    )
    assert estep.main() == 0
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["seconds"] == {"epoch": [24.0, 24.0], "estep": [2.0, 2.0]}
    assert (results["ratio"], results["claim_holds"]) == (12.0, True)
    assert [(config.optim.epochs, config.estep.every) for config in ran] == [(80, 2), (80, 2)]


def test_workers(tmp_path: Path) -> None:
    small = ("--preset", "digits", "--batch", "16", "--rounds", "2", "--steps", "1")
    results = run("workers", tmp_path / "out.json", *small)
    assert {name: len(rounds) for name, rounds in results["seconds"].items()} == dict.fromkeys(WAYS, 2)
    assert results["claim_holds"]  # the claim is about ResNet-18


def test_the_page_of_speeds_has_median_rounds_and_verdict_of_each_ratio() -> None:
    blocks = {"one": [3.0, 4.0, 8.0], "two": [2.0, 4.0, 4.0], "one with two threads": [2.0, 2.0, 2.0]}
    text = page({"workers": {"seconds": blocks, "commit": "abc", "hardware": "a machine"}})
    assert "| two workers over one | 1.50 | 1.00 to 2.00 | >= 1.5: holds |  |" in text
    assert "`python -m benchmarks.workers`, commit abc, a machine." in text
    slower = page({"workers": {"seconds": blocks | {"two": [3.0] * 3}, "commit": "abc", "hardware": "it"}})
    assert "| 1.33 | 1.00 to 2.67 | >= 1.5: does not hold |" in slower


def test_what_is_faster_because_it_does_less_does_not_hold() -> None:
    inertia = {"ours": 1.01, "sampled": 1.0, "faiss": 1.0, "sklearn": 1.0}
    seconds = {name: [1.0] for name in inertia}
    rows = [str(row) for row in kmeans_rows({"K=5": {"inertia": inertia, "seconds": seconds}, "hardware": "it"})]
    assert ">= 1: holds" in rows[0]
    assert ">= 1: does not hold, inertia 1.00% higher" in rows[1]


def test_the_feed_is_compared_with_the_bare_step_and_the_modes_with_each_other() -> None:
    mode = {"bare": 10.0, "seconds": {"bare": [2.0], "fed": [3.0]}}
    slower = mode | {"seconds": {"bare": [4.0], "fed": [6.0]}}
    rows = feed_rows({"resident": mode, "streaming": slower})
    assert [row.ratios for row in rows] == [[2 / 3], [2 / 3], [0.5]]


def test_the_ablation_trains_each_of_four_variants_with_each_seed() -> None:
    config = load_config("digits", ["method.group_weight=0.2", "method.prototype_weight=0.4"])
    named = variants(config, ablation=True)
    space = seeds_and_variants(list(named.values()), 5)
    weights = [(point["method.group_weight"], point["method.prototype_weight"]) for point in space.first]
    assert weights == [(0.2, 0.4)] * 5 + [(0.0, 0.4)] * 5 + [(0.2, 0.0)] * 5 + [(0.0, 0.0)] * 5
    assert [point["seed"] for point in space.first] == [0, 1, 2, 3, 4] * 4
    assert {key: domain.categories for key, domain in space.domains.items()} == {
        "method.group_weight": [0.2, 0.0],
        "method.prototype_weight": [0.4, 0.0],
        "seed": [0, 1, 2, 3, 4],
    }
    assert list(variants(config, ablation=False)) == ["complete"]


def test_the_table_has_mean_spread_worst_and_agreement_of_the_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"point": {"seed": seed}, "acc": acc, "nmi": 0.5, "ari": 0.5, "label_free": 0.5}
        for seed, acc in ((1, 0.9), (0, 0.7))
    ]
    same, other = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0])  # other numbers, the same clusters
    figures = seed_metrics(rows, [same, other])
    assert list(figures["seeds"]) == [0, 1]
    assert figures["agreement"] == 1
    assert seed_metrics(rows[:1], [same])["agreement"] is None
    print_table(figures)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines[1:6]] == ["0.7000", "0.9000", "0.8000", "0.1000", "0.7000"]


def test_a_failed_run_is_named_and_not_left_out_of_the_mean() -> None:
    check_finished([row(0, "finished", 80, 0.9)])
    with pytest.raises(SystemExit, match=r"did not finish:\n  \{'optim.lr': 1\}: diverged$"):
        check_finished([row(0, "finished", 80, 0.9), row(1, "failed", 3, 0.1) | {"reason": "diverged"}])


def epoch_of(trial: int, epoch: int, acc: float, figure: float) -> dict[str, float]:
    return {"trial": trial, "epoch": epoch, "acc": acc, "figure": figure}


def test_correlations_distinguish_trials_and_epochs() -> None:
    # within an epoch the metric falls as ACC rises; from epoch to epoch both rise
    epochs = [epoch_of(trial, n, acc=n + 0.1 * trial, figure=n - 0.1 * trial) for trial in range(4) for n in (1, 2, 3)]
    found = correlations(epochs, "figure")
    assert found["epoch"] == found["last"] == -1
    assert 0.5 < found["everything"] < 1
    assert (found["chosen"], found["best"]) == (3.0, 3.3)


def row(number: int, status: str, epochs: int, value: float) -> dict[str, Any]:
    return {"status": status, "epochs": epochs, "label_free": value, "acc": value, "point": {"optim.lr": number}}


def test_asha_is_compared_with_the_same_trials_run_to_the_end() -> None:
    full = [row(0, "finished", 80, 0.7), row(1, "finished", 80, 0.9)]
    early = [row(0, "finished", 80, 0.7), row(1, "stopped", 9, 0.2)]
    found = compare(
        {"objectives": [["label_free", "max"]], "epochs_trained": 160, "best": full[1], "trials": full},
        {"objectives": [["label_free", "max"]], "epochs_trained": 89, "best": early[0], "trials": early},
    )
    assert found["saved"] == pytest.approx(71 / 160)
    assert (found["full"]["best"]["acc"], found["asha"]["best"]["acc"]) == (0.9, 0.7)
    assert found["fate_of_the_best"] == {"status": "stopped", "epochs": 9}
