"""The trained model in MLflow: as an artifact that loads back, and as a version in the registry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from pipeline.tracking import RunRef, RunWriter, log_final_model, register_model, tag_run
from tests.tracking.helpers import NOBODY, files


class Assigner(torch.nn.Module):
    """uint8 images (N, H, W, 3) to scores, with the layers that behave otherwise in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(images.permute(0, 3, 1, 2).float() / 255)).mean((2, 3))


def test_final_model_has_a_signature_and_loads_back(ref: RunRef, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    model, images = Assigner().train(), np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    with RunWriter(ref, spool) as writer:
        log_final_model(writer, model, images)
    assert model.training
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(images)).numpy()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ref.uri)
    uri = f"runs:/{ref.run_id}/model"
    assert mlflow.models.get_model_info(uri).signature.inputs.inputs[0].shape == (-1, 8, 8, 3)
    assert [path for path in files(ref, "model/data") if not path.endswith(".pt2")] == []  # no pickle
    loaded = mlflow.pytorch.load_model(uri)
    np.testing.assert_allclose(loaded(torch.from_numpy(images)).detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mlflow.pyfunc.load_model(uri).predict(images), expected, rtol=1e-5, atol=1e-6)


def test_final_model_needs_a_batch(ref: RunRef, spool: Path) -> None:
    with RunWriter(ref, spool) as writer, pytest.raises(ValueError, match=r"\(1, 8, 8, 3\)"):
        log_final_model(writer, Assigner(), np.zeros((1, 8, 8, 3), np.uint8))


def test_tags_are_set_after_the_end(ref: RunRef) -> None:
    tag_run(ref, {"digpro.best": "true", "digpro.reason": "x" * 10_000})
    tags = MlflowClient(ref.uri).get_run(ref.run_id).data.tags
    assert tags["digpro.best"] == "true"
    assert set(tags["digpro.reason"]) == {"x"}


def test_a_runs_model_is_registered_once(ref: RunRef, spool: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("flavors: {}")
    with RunWriter(ref, spool) as writer:
        writer.artifact(tmp_path / "model")
    assert [register_model(ref, "mine", {"digpro.search": "s"}) for _ in range(2)] == ["1", "1"]
    (version,) = MlflowClient(ref.uri).search_model_versions("name = 'mine'")
    assert version.run_id == ref.run_id
    assert version.tags == {"digpro.search": "s"}
    assert Path(version.source.removeprefix("file://"), "MLmodel").is_file()


def test_an_unreachable_server_is_named_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    nobody = RunRef(NOBODY, "pending-1", "digpro", "run", {}, {})
    tag_run(nobody, {"digpro.best": "true"})
    assert register_model(nobody, "mine", {}) is None
    assert "could not be tagged" in caplog.text
    assert "could not be registered" in caplog.text
