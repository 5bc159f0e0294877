"""The MLflow model of a run: the served model, its bundle, and a copy of the modules of ours that it needs."""

from __future__ import annotations

import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from pipeline.inference.card import ModelCard
from pipeline.provenance import version_of
from pipeline.serving.bundle import write_bundle

BUNDLE = "bundle"
SERVED = "pipeline.serving.served"
MODULES = (
    "pipeline",
    "pipeline.errors",
    "pipeline.data",
    *(f"pipeline.data.{name}" for name in ("decode", "formats", "pixel_options", "pixels", "quiet", "raw_values")),
    "pipeline.inference",
    *(f"pipeline.inference.{name}" for name in ("card", "predict")),
    "pipeline.serving",
    "pipeline.serving.bundle",
)
"""What `SERVED` imports of ours, directly or not."""
REQUIREMENTS = (
    *("torch", "torchvision", "numpy", "pandas", "pillow"),
    *("imagecodecs", "tifffile", "pydantic", "pyarrow"),
)


def save_mlflow_model(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write the MLflow model of a cluster model, with the flavour python_function, into a new folder.

    No pickle is in it: the program is a `torch.export` one, and MLflow runs the code of the served model.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    with TemporaryDirectory() as local:
        bundle, code = Path(local, BUNDLE), Path(local, "pipeline")
        bundle.mkdir()
        write_bundle(bundle, model, card)
        _copy_modules(code.parent)
        columns = {"cluster": "long", "name": "string", "similarity": "float", "runner_up": "long"}
        columns |= {"margin": "float", "outlier": "float"}
        with warnings.catch_warnings(action="ignore"):  # it wants an example of the input, which may be of many kinds
            mlflow.pyfunc.save_model(
                folder,
                python_model=_file(SERVED),
                artifacts={BUNDLE: str(bundle)},
                code_paths=[str(code)],
                signature=ModelSignature(outputs=Schema([ColSpec(kind, name) for name, kind in columns.items()])),
                pip_requirements=[f"{name}=={version_of(name)}" for name in REQUIREMENTS],
            )


def _copy_modules(folder: Path) -> None:
    """Copy `MODULES` into a folder, with the folders that they lie in."""
    top = Path(_file("pipeline")).parents[1]
    for name in MODULES:
        source = Path(_file(name))
        target = folder / source.relative_to(top)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _file(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return spec.origin
