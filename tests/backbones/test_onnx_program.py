"""Networks that onnxruntime computes on a CPU: equal to PyTorch, or left to it with a line that says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.backbone_features import build_cache, encode
from pipeline.backbone_features.cache import read_part
from pipeline.backbones.onnx_program import OnnxProgram, check_equal, faster_program, is_worth_it
from pipeline.errors import RunFailed
from pipeline.runs.models import TrainedModel
from pipeline.storage import Folder
from tests.helpers.cached_features import frozen_config, make_cache
from tests.helpers.models import SIZE, card, cluster_model

OUTPUTS = ("similarities", "features")


def images(count: int, size: int = SIZE) -> Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)


class Branching(nn.Module):
    """Has a way that depends on the values, which no export can follow."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def test_a_program_takes_any_number_of_images_of_any_layout() -> None:
    said: list[str] = []
    program = faster_program(cluster_model(), images(5), OUTPUTS, said.append)
    assert program is not None
    assert said == []
    for block in (images(1), images(7), images(9)[::2], images(4).transpose(1, 2)):
        for expected, found in zip(cluster_model()(block), OnnxProgram(program)(block), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_network_that_cannot_be_exported_is_left_to_torch() -> None:
    said: list[str] = []
    assert faster_program(Branching(), torch.rand(3, 3, 8, 8), ["features"], said.append) is None
    assert len(said) == 1
    assert said[0].startswith("onnxruntime cannot run this network (")
    assert said[0].endswith("PyTorch runs it instead, more slowly")


def test_a_program_that_computes_something_else_is_refused() -> None:
    ours, large = torch.zeros(2, 4), torch.full((2, 4), 100.0)
    check_equal([ours, large], [ours + 5e-5, large + 5e-3], OUTPUTS)
    for wrong in (ours + 2e-4, torch.full((2, 4), torch.nan)):
        with pytest.raises(RunFailed, match="features computed by onnxruntime differ from PyTorch's"):
            check_equal([ours, ours], [ours, wrong], OUTPUTS)


def test_few_or_small_images_are_left_to_torch() -> None:
    assert not is_worth_it(1797, 16)
    assert not is_worth_it(400, 224)
    assert is_worth_it(2100, 224)
    assert is_worth_it(None, 16)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_features_are_equal_whoever_computes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """In float32 by the program that lies in the cache; in bfloat16 PyTorch is faster, and there is none."""
    calls, compute = [], OnnxProgram.__call__
    monkeypatch.setattr(OnnxProgram, "__call__", lambda *given: calls.append(1) or compute(*given))
    config = frozen_config(tmp_path, f"optim.precision={precision}")
    folder, cache, _ = make_cache(config, 70)
    by_torch = torch.cat([torch.from_numpy(read_part(folder, part, cache)) for part in cache.parts]).float()
    monkeypatch.setattr(build_cache, "is_worth_it", lambda images, size: True)
    other = frozen_config(tmp_path / "other", f"optim.precision={precision}")
    folder, cache, _ = make_cache(other, 70)
    assert bool(folder.names(encode.PROGRAM)) == (precision == "float32")
    assert len(calls) > len(cache.parts) if precision == "float32" else not calls
    by_program = torch.cat([torch.from_numpy(read_part(folder, part, cache)) for part in cache.parts]).float()
    torch.testing.assert_close(by_program, by_torch, atol=2e-3, rtol=2e-3)


def test_a_model_is_kept_as_a_program_for_nodes_without_gpus(tmp_path: Path) -> None:
    out, said = Folder(str(tmp_path / "out")).make(), []
    model = TrainedModel(cluster_model(), card(), "0" * 64, 8, "no folder is read")
    for _ in range(2):  # a command that continues finds it
        load = model.cpu_loader(out, said.append)
        block = images(3)
        for expected, found in zip(cluster_model()(block), load(torch.device("cpu"))(block), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        model = TrainedModel(nn.Identity(), card(), "0" * 64, 8, "no folder is read")
    assert said == []


def test_a_model_that_has_no_program_is_loaded_as_it_is(tmp_path: Path) -> None:
    out, said = Folder(str(tmp_path / "out")).make(), []
    kept = TrainedModel(Branching(), card(), "0" * 64, 8, b"kept").cpu_loader(out, said.append)
    assert out.names() == ["model.pt2"]
    assert len(said) == 1
    assert callable(kept)
