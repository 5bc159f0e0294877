"""What people call a model by, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.runs.identity import read_clusters
from pipeline.runs.models import model_uri, open_model
from pipeline.serving.mlflow_model import save_mlflow_model
from pipeline.storage import Folder
from tests.helpers.models import card, cluster_model


@pytest.mark.parametrize(
    ("reference", "uri"),
    [
        ("0123456789abcdef0123456789abcdef", "runs:/0123456789abcdef0123456789abcdef/model"),
        ("runs:/0123/other", "runs:/0123/other"),
        ("models:/photos@best", "models:/photos@best"),
        ("photos/3", "models:/photos/3"),
        ("runs/digits-0123abcd", None),
        ("s3://bucket/runs/photos/3", None),
        ("/runs/3", None),
    ],
)
def test_references_are_told_apart(
    reference: str, uri: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_uri(reference) == uri


def test_a_run_folder_whose_name_is_a_number_is_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "3").mkdir(parents=True)
    (tmp_path / "runs" / "3" / "run.json").write_text("{}")
    assert model_uri("runs/3") is None


def test_mlflow_is_not_created_by_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"models:/photos/3 is an MLflow model, but .*mlflow\.db does not exist; set"):
        open_model("photos/3")
    assert not list(tmp_path.iterdir())


def test_a_model_that_mlflow_does_not_have_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(
        ConfigError, match=r"cannot provide models:/photos/3 .*; set MLFLOW_TRACKING_URI to the server that"
    ):
        open_model("photos/3")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.json", '{"format": 2}', r"format: Input should be 1"),
        ("model.json", "{}", r"run: Field required"),
        ("model.json", "no card", r"Invalid JSON"),
    ],
)
def test_a_logged_model_of_another_version_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str, message: str
) -> None:
    bundle = tmp_path / "model" / "artifacts" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / file).write_text(content)
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", lambda **_: str(tmp_path / "model"))
    monkeypatch.setattr("pipeline.serving.bundle.load_program", lambda *_: None)
    with pytest.raises(ConfigError, match=rf"models:/photos/3 has a model.json .* \(.*{message}.*\); give the folder"):
        open_model("photos/3")


@pytest.mark.parametrize("content", ["{}", '{"sizes": [1, 2]}', "no clusters", "[]"])
def test_damaged_clusters_are_named_with_the_way_to_have_them_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "clusters.json").write_text(content)
    with pytest.raises(ConfigError, match=r"clusters\.json is damaged.*; delete the run's summary\.json and run its"):
        read_clusters(Folder(str(tmp_path)))


def test_a_logged_model_is_on_the_cpu_also_where_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exporters trace it there; actors move it to their own device."""
    save_mlflow_model(tmp_path / "model", cluster_model(), card())
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", lambda **_: str(tmp_path / "model"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    model = open_model("photos/3")
    assert {tensor.device.type for tensor in model.module.state_dict().values()} == {"cpu"}
    load = model.loader(Folder(str(tmp_path / "out")).make())
    moved = load(torch.device("meta"))
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}
