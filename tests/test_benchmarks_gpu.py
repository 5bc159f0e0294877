"""`benchmarks.gpu` in its rehearsal on a CPU: what it needs, that it resumes where it ended, and what it trains."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import normalized_mutual_info_score

from benchmarks.gpu import Session, measure_all, table
from benchmarks.gpu_speeds import TINY, Measurement, measurements
from benchmarks.gpu_training import channel_statistics, normalized_mutual_information, restore, save
from benchmarks.loop import Loop, simclr_policy
from pipeline.config.models import ViewsConfig

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
ABSENT = ("ray", "mlflow", "pyarrow", "pydantic", "sklearn", "pandas", "yaml", "typer")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight images of two classes, as UC-Merced's are stored."""
    rng = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def test_the_rehearsal_needs_torch_only_and_measures_everything(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "gpu.json"
    arguments = ["gpu", "--tiny", "--minutes", "60", "--images", str(pictures), "--out", str(out)]
    script = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({ABSENT})); sys.argv = {arguments}; "
        "runpy.run_module('benchmarks.gpu', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())["results"]
    assert {name: result for name, result in results.items() if "error" in result} == {}
    assert list(results) == [*(measurement.name for measurement in measurements(TINY)), "training"]
    assert [epoch["epoch"] for epoch in results["training"]["history"]] == [1, 2]
    assert all(f"| {name} |" in out.with_suffix(".md").read_text() for name in results)


def test_the_next_call_repeats_what_failed_and_makes_what_there_was_no_time_for(tmp_path: Path) -> None:
    made: list[str] = []

    def measurement(name: str, seconds: float = 0.0, error: str = "") -> Measurement:
        def measure(*_: object) -> dict[str, str]:
            made.append(name)
            if error:
                raise RuntimeError(error)
            return {}

        return Measurement(name, seconds, measure)

    first = [measurement("broken", error="out of memory"), measurement("long", 1e6), measurement("short")]
    measure_all(Session(tmp_path / "a.json", {}), first, time.monotonic() + 60, CPU, TINY)
    assert made == ["broken", "short"]
    session = Session(tmp_path / "a.json", {})
    assert "RuntimeError: out of memory" in table(session)
    measure_all(session, [measurement(m.name) for m in first], time.monotonic() + 60, CPU, TINY)
    assert made == ["broken", "short", "broken", "long"]


def test_results_of_another_machine_are_not_continued(tmp_path: Path) -> None:
    Session(tmp_path / "a.json", {"device": "one"}).record("golden vectors", {})
    with pytest.raises(ValueError, match=r"holds results of \{'device': 'one'\}.*give another --out"):
        Session(tmp_path / "a.json", {"device": "another"})


def test_a_training_goes_on_from_its_checkpoint_as_if_it_had_not_ended(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (12, 8, 8, 3), dtype=torch.uint8)
    whole, resumed = Loop(images, TINY.training), Loop(images, TINY.training)
    whole.run_estep()
    whole.train_epoch()
    whole.run_estep()
    save(whole, [{"epoch": 1}], torch.zeros(12), tmp_path / "gpu.pt")
    assert restore(resumed, tmp_path / "gpu.pt") == [{"epoch": 1}]
    for loop in (whole, resumed):
        loop.train_epoch()
        loop.run_estep()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert torch.equal(whole.labels, resumed.labels)


def test_channel_statistics_are_those_of_all_pixels() -> None:
    images = torch.randint(0, 256, (300, 4, 4, 3), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    pixels = images.flatten(0, 2).double() / 255
    assert mean == pytest.approx(pixels.mean(0).tolist())
    assert std == pytest.approx(pixels.std(0, correction=0).tolist())


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2, 2, 0], [0, 1, 0, 1, 0, 1, 0, 1], [0] * 8])
def test_nmi_is_scikit_learns(labels: list[int]) -> None:
    classes = [0, 0, 1, 1, 2, 2, 0, 1]
    found = normalized_mutual_information(torch.tensor(classes), torch.tensor(labels))
    assert found == pytest.approx(normalized_mutual_info_score(classes, labels), abs=1e-12)


def test_views_are_those_of_the_default_configuration() -> None:
    default = ViewsConfig(size=32)
    assert vars(simclr_policy(32)).items() <= default.model_dump().items()
