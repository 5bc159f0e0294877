"""The served model: loads without our training code, takes every form of an image, and answers as `assign` does."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline.data.decode import decode
from pipeline.inference.card import ModelCard
from pipeline.inference.predict import predict
from pipeline.serving.mlflow_model import save_mlflow_model
from tests.helpers.models import card, cluster_model
from tests.helpers.pictures import quadrants, saved


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return cluster_model()


@pytest.fixture(scope="module")
def folder(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    save_mlflow_model(folder, model, card(names={0: "red & blue", 2: "red & blue"}))
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Any:
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(folder))


def expected(model: torch.nn.Module, data: bytes, known: ModelCard) -> Any:
    image = decode(data, **known.decoding).permute(1, 2, 0)
    with torch.inference_mode():
        return predict(model(image[None])[0])


def pictures() -> list[bytes]:
    return [saved(Image.fromarray(np.roll(quadrants(), shift, 1)), "PNG") for shift in (0, 5, 9)]


@pytest.mark.parametrize(
    "given",
    [
        lambda data: pd.DataFrame({"image": data}),
        lambda data: pd.DataFrame({"image": [base64.b64encode(item).decode() for item in data]}),
        lambda data: [base64.b64encode(item).decode() for item in data],
        lambda data: {"image": data},
        lambda data: np.stack([np.asarray(Image.open(io.BytesIO(item))) for item in data]),
    ],
    ids=["table of bytes", "table of base64", "list of base64", "dict", "pixels"],
)
def test_every_form_of_an_image_has_the_answer_of_the_model(served: Any, model: torch.nn.Module, given: Any) -> None:
    found = served.predict(given(pictures()))
    for row, data in zip(found.to_dict("records"), pictures(), strict=True):
        answer = expected(model, data, card())
        assert row["cluster"] == int(answer.cluster)
        assert row["similarity"] == pytest.approx(float(answer.similarity), abs=1e-5)
        assert row["runner_up"] == int(answer.runner_up)
        assert row["name"] == ("red & blue" if row["cluster"] in (0, 2) else None)
        assert np.isfinite(row["outlier"])


def test_images_go_to_the_device_of_the_program(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU, whose program takes no images of the CPU."""
    on_the_cpu, devices = served.predict(pictures()), list[str]()
    program = served.unwrap_python_model()
    monkeypatch.setattr(program, "device", torch.device("meta"))

    def answer(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        devices.append(images.device.type)
        return torch.eye(4)[: len(images)], None

    monkeypatch.setattr(program, "model", answer)
    found = served.predict(pictures())
    assert devices == ["meta"]
    assert (found["cluster"].tolist(), list(found)) == ([0, 1, 2], list(on_the_cpu))


def test_what_is_no_image_is_named(served: Any) -> None:
    good = base64.b64encode(pictures()[0]).decode()
    with pytest.raises(MlflowException, match=r"image 1: text that is not base64"):
        served.predict([good, "hello, world"])
    with pytest.raises(MlflowException, match=r"image 1: PDF document"):
        served.predict([good, base64.b64encode(b"%PDF-1.7 ...").decode()])
    with pytest.raises(MlflowException, match=r"values from -1 to 3; send integers 0 to 255"):
        served.predict(np.full((1, 4, 4, 3), -1) + np.eye(4, dtype=np.int64)[None, :, :, None] * 4)
    with pytest.raises(MlflowException, match=r"no column 'image' but \['picture'\]"):
        served.predict(pd.DataFrame({"picture": [good]}))


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_a_program_with_a_pipeline_of_its_own_keeps_it(folder: Path, served: Any, tmp_path: Path, first: str) -> None:
    """Neither Ray nor our package is loaded; and none of our modules has a name that others use."""
    (tmp_path / "pipeline.py").write_text("owner = 'theirs'")
    (tmp_path / "served.py").write_text("owner = 'theirs'")
    steps = [f"model = mlflow.pyfunc.load_model({str(folder)!r})", "import pipeline, served"]
    picture = base64.b64encode(pictures()[1]).decode()
    script = [
        "import json, sys",
        "sys.modules['ray'] = None",
        "import mlflow.pyfunc",
        *(steps if first == "ours" else reversed(steps)),
        f"rows = model.predict([{picture!r}]).to_dict('records')",
        "ours = [name for name in sys.modules if name.startswith('pipeline.')]",
        "print(json.dumps([pipeline.owner, served.owner, ours, rows]))",
    ]
    command = [sys.executable, "-c", "\n".join(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    owner, other, ours, rows = json.loads(done.stdout.splitlines()[-1])
    assert (owner, other, ours) == ("theirs", "theirs", [])
    assert rows[0]["similarity"] == pytest.approx(served.predict([picture])["similarity"][0])


def test_the_copy_has_a_name_of_its_own_and_nothing_of_it_stays(folder: Path) -> None:
    (package,) = (path.name for path in (folder / "code").iterdir() if path.name != "__pycache__")
    assert re.fullmatch(r"digpro_served_[0-9a-f]{12}", package)
    for file in folder.rglob("*.py"):
        assert not re.search(r"^\s*(from|import) pipeline\b", file.read_text(), re.MULTILINE), file
    # In a process of its own: MLflow leaves the code of each model that it loads on this one's path.
    look = f"import importlib.util; print(importlib.util.find_spec({package!r}))"
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout == "None\n"


def test_no_pickle_is_in_it(folder: Path) -> None:
    names = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert names <= {".py", ".json", ".pt2", ".yaml", ".txt", ""}
