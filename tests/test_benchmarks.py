"""Each benchmark runs in a tiny setting and writes its figures; what they claim is judged on a quiet machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kmeans import cosine_inertia, make_rows
from benchmarks.measure import interleaved, speedup

ROOT = Path(__file__).parent.parent


def run(name: str, out: Path, *arguments: str) -> dict[str, Any]:
    """Figures of one benchmark, started as its documentation says; 1 is a claim that failed, not a crash."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert out.is_file(), done.stderr
    figures = json.loads(out.read_text())
    assert "cores" in figures["hardware"]
    return dict(figures)


def test_blocks_take_turns_and_ratios_are_taken_within_a_round() -> None:
    order: list[str] = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b", "b", "a"]
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"a": 2, "b": 2}
    assert speedup({"a": [1.0, 4.0, 2.0], "b": [2.0, 4.0, 20.0]}, of="a", over="b") == 2.0


def test_inertia_is_the_sum_of_one_minus_cosine_to_the_cluster_mean() -> None:
    rows = make_rows(60, 8, 3, noise=1.0)
    labels = torch.arange(60) % 3
    centres = torch.nn.functional.normalize(torch.stack([rows[labels == k].mean(dim=0) for k in range(3)]), dim=1)
    assert cosine_inertia(rows, labels, 3) == pytest.approx(float((1 - (rows * centres[labels]).sum(dim=1)).sum()))


def test_views(tmp_path: Path) -> None:
    figures = run("views", tmp_path / "out.json", "--batch", "8", "--rounds", "1")
    assert figures["cifar10"]["over_torchvision_pil"] > 0
    assert figures["digits"]["over_torchvision_tensor"] > 0


def test_kmeans(tmp_path: Path) -> None:
    figures = run("kmeans", tmp_path / "out.json", "--rows", "500", "--size", "16", "--clusters", "5", "--rounds", "1")
    inertia = figures["K=5 noise=3"]["inertia"]
    assert inertia["ours"] <= 1.01 * inertia["sklearn"]


def test_step_meets_the_golden_vectors(tmp_path: Path) -> None:
    small = ("--encoder", "tiny", "--batch", "8", "--rounds", "1", "--device", "cpu")
    figures = run("step", tmp_path / "out.json", "--golden", *small)
    assert figures["golden_errors"]["torch.float64"] < 1e-9
    assert figures["losses"]["fused_float32"] == pytest.approx(figures["losses"]["separate_float32"], abs=1e-3)


@pytest.mark.slow
def test_pipeline(tmp_path: Path) -> None:
    small = ("--encoder", "tiny", "--images", "256", "--batch", "32", "--rounds", "1")
    figures = run("pipeline", tmp_path / "out.json", *small)
    for mode in ("resident", "streaming"):
        assert figures[mode]["images"] == 256
        assert figures[mode]["claim_holds"] == (figures[mode]["ratio"] >= 0.9)
        assert figures[mode]["worker_peak_rss_gib"] > 0.1
