"""Exported models: equal to torch, with the card beside them, and used without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from pipeline.backbones import onnx_program
from pipeline.errors import ConfigError, RunFailed
from pipeline.inference.card import ModelCard
from pipeline.serving.bundle import load_program
from pipeline.serving.export import example_images, export_model
from tests.helpers.models import BranchingModel, card, cluster_model
from tests.helpers.pictures import quadrants

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "use_onnx.py"
ABSENT = ("torch", "torchvision", "ray", "mlflow", "pipeline", "pyarrow", "pydantic")


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    return export_model("onnx", folder, cluster_model(), card(names={0: "zero", 1: "one", 2: "two", 3: "three"}))


def test_onnx_takes_any_number_of_images_and_equals_torch(onnx: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    for count in (1, 7):
        images = example_images(card(), count)
        with torch.inference_mode():
            expected = cluster_model()(images)
        found = session.run(["similarities", "features"], {"images": images.numpy()})
        for ours, theirs in zip(expected, found, strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_an_onnx_file_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_program, "TOLERANCE", -1.0)
    with pytest.raises(RunFailed, match=r"model\.onnx: .* by onnxruntime differ from PyTorch's .*use --format pt2"):
        export_model("onnx", tmp_path, cluster_model(), card())
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("format_name", ["onnx", "pt2"])
def test_a_network_that_torch_cannot_export_is_named_with_a_way_out(tmp_path: Path, format_name: str) -> None:
    with pytest.raises(ConfigError, match=r"torch\.export cannot convert the network \(.*--format safetensors"):
        export_model(format_name, tmp_path, BranchingModel(), card())
    assert export_model("safetensors", tmp_path, BranchingModel(), card()).exists()


def test_the_script_of_the_docs_needs_neither_torch_nor_our_code(onnx: Path, tmp_path: Path) -> None:
    Image.fromarray(quadrants(SIDE, SIDE)).save(tmp_path / "picture.png")
    block = f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); sys.argv = sys.argv[1:]; "
    run = block + f"exec(open({str(SCRIPT)!r}).read())"
    command = [sys.executable, "-c", run, str(SCRIPT), str(onnx.parent), str(tmp_path / "picture.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        similarities = cluster_model()(torch.from_numpy(quadrants(SIDE, SIDE))[None])[0][0]
    name = ("zero", "one", "two", "three")[int(similarities.argmax())]
    assert done.stdout.split() == [str(tmp_path / "picture.png"), name, f"{float(similarities.max()):.3f}"]


SIDE = card().decoding["size"]


def test_a_program_and_weights_hold_the_same_model(tmp_path: Path) -> None:
    model, images = cluster_model(), example_images(card(), 3)
    program = load_program(str(export_model("pt2", tmp_path, model, card())), torch.device("cpu"))
    weights = safetensors.torch.load_file(export_model("safetensors", tmp_path, model, card()))
    for found, expected in zip(program(images), model(images), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(weights, dict(model.state_dict()))
    kept = json.loads((tmp_path / "model.json").read_text())
    assert ModelCard.model_validate(kept) == card()


def test_a_program_on_another_device_has_nothing_left_on_the_cpu(tmp_path: Path) -> None:
    file = str(export_model("pt2", tmp_path, cluster_model(), card()))
    program = load_program(file, torch.device("meta"))  # which every machine has
    assert {tensor.device.type for tensor in program.state_dict().values()} == {"meta"}
    assert [out.device.type for out in program(example_images(card(), 3).to("meta"))] == ["meta", "meta"]
    with pytest.raises(RuntimeError, match="device"):
        program(example_images(card(), 3))


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--format 'tflite' is not known; give one of onnx, pt2, safetensors"):
        export_model("tflite", tmp_path, cluster_model(), card())
    assert not list(tmp_path.iterdir())
