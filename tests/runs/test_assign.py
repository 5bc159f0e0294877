"""Which engine assigns images: onnxruntime on CPUs where it pays off, and PyTorch otherwise, with equal results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from ray import cloudpickle
from torch import Tensor

from pipeline.backbones.onnx_program import TOLERANCE, OnnxProgram
from pipeline.inference.assign import Assigner, AssignJob
from pipeline.inference.image_parts import ImageParts
from pipeline.runs.assign import assign_images
from pipeline.runs.evaluate import evaluate
from pipeline.runs.models import TrainedModel
from tests.helpers.images import put
from tests.helpers.models import SIZE, card, cluster_model
from tests.helpers.pictures import saved

CLASSES, IMAGES = 3, 30


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of three classes; half of the images have the size that the model takes."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(IMAGES):
        size = SIZE if number % 2 else SIZE + 5
        pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8) // (1 + number % CLASSES)
        put(folder / f"{number % CLASSES}" / f"{number:02}.png", saved(Image.fromarray(pixels), "PNG"))
    return folder


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """A cluster of one node without GPUs, whose actors are in this process, and a run whose model is known."""
    known, there = TrainedModel(cluster_model(), card(), "0" * 64, 8, "run"), [{"CPU": 2.0}]

    class Here:
        """Ray's data set, in this process."""

        def __init__(self, images: ImageParts, numbers: list[int], job: AssignJob) -> None:
            self.rows = [{"number": number, "part": cloudpickle.dumps(images.parts[number])} for number in numbers]
            self.actor = Assigner(job)

        def iter_rows(self) -> Iterator[dict[str, Any]]:
            return map(self.actor, self.rows)

    monkeypatch.setattr("pipeline.runs.assign.open_model", lambda _: known)
    monkeypatch.setattr("pipeline.runs.models.load_model", lambda run, device: cluster_model(device))
    monkeypatch.setattr("pipeline.runs.assign.connect", lambda: None)
    monkeypatch.setattr("pipeline.runs.assign.node_resources", lambda: there)
    monkeypatch.setattr("pipeline.runs.assign.cluster_facts", dict)
    monkeypatch.setattr("pipeline.inference.assign._assigned", Here)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return there


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few images already pay for the export."""
    monkeypatch.setattr("pipeline.backbones.onnx_program.LEAST_PIXELS", IMAGES * SIZE**2)


@pytest.fixture
def by_onnx(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
    """Each block of images that onnxruntime computed, with its outputs."""
    calls, compute = [], OnnxProgram.__call__

    def spy(program: OnnxProgram, images: Tensor) -> tuple[Tensor, ...]:
        outputs = compute(program, images)
        calls.append((images, outputs))
        return outputs

    monkeypatch.setattr(OnnxProgram, "__call__", spy)
    return calls


def rows(summary: dict[str, Any]) -> pa.Table:
    return pq.read_table(summary["outputs"]["assignments"]).sort_by("path")


def assert_same_rows(found: pa.Table, expected: pa.Table) -> None:
    """Equal rows, up to the tolerance of the two engines."""
    assert found.column_names == expected.column_names
    for name in ("path", "cluster", "runner_up"):
        assert found.column(name) == expected.column(name)
    for name in ("similarity", "margin", "outlier"):
        np.testing.assert_allclose(found.column(name), expected.column(name), atol=TOLERANCE, rtol=0)


@pytest.mark.usefixtures("worth_it")
def test_onnxruntime_assigns_images_on_cpus(photos: Path, tmp_path: Path, by_onnx: list[Any], nodes: Any) -> None:
    said: list[str] = []
    summary = assign_images("run", f"imagefolder:{photos}", str(tmp_path / "onnx"), features=True, echo=said.append)
    assert sum(len(images) for images, _ in by_onnx[1:]) == IMAGES  # the first call checks the program
    for images, outputs in by_onnx:
        for expected, found in zip(cluster_model()(images), outputs, strict=True):
            torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    assert not (tmp_path / "onnx" / "model.onnx").exists()
    assert not [line for line in said if "onnxruntime" in line]

    by_onnx.clear()
    nodes[0]["GPU"] = 1.0
    by_torch = assign_images("run", f"imagefolder:{photos}", str(tmp_path / "torch"), features=True, echo=said.append)
    assert by_onnx == []
    assert_same_rows(rows(summary), rows(by_torch))
    features = [np.array(rows(each).column("feature").to_pylist()) for each in (summary, by_torch)]
    np.testing.assert_allclose(*features, atol=TOLERANCE + 2**-11, rtol=0)  # they are stored in float16


@pytest.mark.usefixtures("worth_it")
def test_onnxruntime_evaluates_on_cpus(photos: Path, tmp_path: Path, by_onnx: list[Any], nodes: Any) -> None:
    found = evaluate("run", f"imagefolder:{photos}", str(tmp_path / "onnx"))
    assert sum(len(images) for images, _ in by_onnx[1:]) == IMAGES
    by_onnx.clear()
    nodes[0]["GPU"] = 1.0
    expected = evaluate("run", f"imagefolder:{photos}", str(tmp_path / "torch"))
    assert by_onnx == []
    assert_same_rows(rows(found), rows(expected))
    assert rows(found).column("label").to_pylist() == [number // 10 for number in range(IMAGES)]
    assert found["scores"] == expected["scores"] != {}


def test_pytorch_assigns_few_images(photos: Path, tmp_path: Path, by_onnx: list[Any]) -> None:
    assert assign_images("run", f"imagefolder:{photos}", str(tmp_path / "out"))["images"] == IMAGES
    assert by_onnx == []


def without_onnxruntime(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "onnxruntime", None)


def with_other_results(patch: pytest.MonkeyPatch) -> None:
    compute = OnnxProgram.__call__
    patch.setattr(OnnxProgram, "__call__", lambda *given: tuple(output + 0.001 for output in compute(*given)))


@pytest.mark.usefixtures("worth_it")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (without_onnxruntime, "onnxruntime cannot be imported (import of onnxruntime halted"),
        (with_other_results, "similarities computed by onnxruntime differ from PyTorch's by 0.001, more than 0.0001"),
    ],
)
@pytest.mark.parametrize("command", [assign_images, evaluate])
def test_pytorch_takes_over_with_one_line_where_onnxruntime_cannot(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nodes: Any,
    command: Callable[..., dict[str, Any]],
    fault: Callable[[pytest.MonkeyPatch], None],
    said: str,
) -> None:
    lines: list[str] = []
    with monkeypatch.context() as patch:
        fault(patch)
        found = command("run", f"imagefolder:{photos}", str(tmp_path / "fallback"), echo=lines.append)
    (line,) = [line for line in lines if "onnxruntime" in line]
    assert line.startswith(f"onnxruntime cannot run this network ({said}")
    assert line.endswith("); PyTorch runs it instead, more slowly")
    nodes[0]["GPU"] = 1.0
    assert rows(found) == rows(command("run", f"imagefolder:{photos}", str(tmp_path / "torch")))
