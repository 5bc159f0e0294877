"""`benchmarks.epochs` with tiny settings, and the baselines that it compares with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.baselines.lightly import Lightly
from benchmarks.baselines.reference import Reference
from benchmarks.epochs import Cost, compare
from benchmarks.loop import Recipe

ROOT = Path(__file__).parent.parent
RECIPE = Recipe("tiny", size=8, batch=4, clusters=3, hidden=32)


@pytest.mark.slow
def test_epochs_are_compared_with_each_baseline(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.epochs", "--images", "16", "--batch", "8", "--rounds", "1"]
    out = tmp_path / "out.json"
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}  # other tests share the two cores
    done = subprocess.run(
        [*command, "--out", out], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    results = json.loads(out.read_text())
    found = results["ratios"]
    assert results["claim_holds"] == all(found[name]["wall"]["median"] >= 1.5 for name in ("reference", "lightly"))
    assert set(results["layouts"]) == {"ours", "reference", "lightly"}
    assert f"reference, ours in float32: {found['reference']['wall']['median']:.2f} times as fast" in done.stdout


def test_the_faster_of_our_layouts_counts_and_the_claim_is_over_each_baseline() -> None:
    def epoch(*seconds: float) -> Any:
        costs = iter(Cost(s, 2 * s) for s in seconds)
        return lambda: next(costs)

    epochs = {
        "ours": epoch(3, 3, 3),
        "ours_ray": epoch(1, 2, 1),
        "one_thread": epoch(3, 3, 3),
        "one_thread_bfloat16": epoch(1, 1, 2),
        "reference": epoch(2, 2, 4),
        "lightly": epoch(1.4, 2.8, 1.4),
    }
    found = compare(epochs, 3, claimed=True)
    assert found["ours"] == "ours_ray"
    assert found["ratios"]["reference"]["wall"] == {"median": 2, "least": 1, "most": 4}
    assert found["ratios"]["lightly"]["cpu"]["median"] == pytest.approx(1.4)
    assert found["ratios"]["bfloat16"]["wall"]["median"] == 3
    assert found["claim_holds"] is False


@pytest.mark.parametrize("kind", [Reference, Lightly])
def test_a_baseline_trains_and_encodes_all_images_in_order(kind: type[Reference] | type[Lightly]) -> None:
    images = torch.randint(0, 256, (10, 8, 8, 3), dtype=torch.uint8)
    run = kind(images.numpy(), RECIPE, workers=0)
    before = run.encode()
    assert before.shape == (10, 256)
    torch.testing.assert_close(before.norm(dim=1), torch.ones(10))
    torch.testing.assert_close(kind(images.flip(0).numpy(), RECIPE, workers=0).encode(), before.flip(0))
    losses = [run.train_epoch(torch.arange(10) % 3) for _ in range(3)]  # beyond a reset of the groups
    assert torch.isfinite(torch.tensor(losses)).all()
    assert not torch.equal(run.encode(), before)
