"""The MLflow model of a run: the served model, its bundle, and a copy of our modules that it needs.

The copy is a package with a unique name: a program may have a `pipeline` of its own, or load models of two versions.
"""

from __future__ import annotations

import hashlib
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from pipeline.inference.card import ModelCard
from pipeline.provenance import version_of
from pipeline.serving.export import export_model

BUNDLE = "bundle"
SERVED = "pipeline.serving.served"
PACKAGE = re.compile(r"\bpipeline(?=[./])")
MODULES = (
    "pipeline",
    "pipeline.errors",
    "pipeline.data",
    *(f"pipeline.data.{name}" for name in ("decode", "formats", "pixel_options", "pixels", "quiet", "raw_values")),
    "pipeline.inference",
    *(f"pipeline.inference.{name}" for name in ("card", "predict")),
    "pipeline.serving",
    "pipeline.serving.bundle",
    "pipeline.serving.items",
)
"""Our modules that `SERVED` imports, directly or indirectly."""
REQUIREMENTS = (
    *("torch", "torchvision", "numpy", "pandas", "pillow"),
    *("imagecodecs", "tifffile", "pydantic", "pyarrow"),
)


def save_mlflow_model(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write the MLflow model of a cluster model, with the flavour python_function, into a new folder.

    It contains no pickle: the program is a `torch.export` one, and MLflow runs the code of the served model.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    with TemporaryDirectory() as local:
        bundle = Path(local, BUNDLE)
        bundle.mkdir()
        export_model("pt2", bundle, model, card)
        code, served = _copy_modules(Path(local))
        columns = {"cluster": "long", "name": "string", "similarity": "float", "runner_up": "long"}
        columns |= {"margin": "float", "outlier": "float"}
        with (
            _importable(code),
            warnings.catch_warnings(action="ignore"),
        ):  # MLflow wants an example of the input, which may be of many kinds
            mlflow.pyfunc.save_model(
                folder,
                python_model=str(served),
                artifacts={BUNDLE: str(bundle)},
                code_paths=[str(code)],
                signature=ModelSignature(
                    outputs=Schema([ColSpec(kind, name, name != "name") for name, kind in columns.items()])
                ),
                pip_requirements=[f"{name}=={version_of(name)}" for name in REQUIREMENTS],
            )


def _copy_modules(folder: Path) -> tuple[Path, Path]:
    """Copy into a folder `MODULES`, as a package with a new name, and `SERVED`, which MLflow runs by its path.

    The name holds a digest of the code: models of the same version share it, models of different versions do not.
    """
    top = Path(_file("pipeline")).parents[1]
    sources = [Path(_file(name)) for name in (*MODULES, SERVED)]
    texts = [source.read_text(encoding="utf-8") for source in sources]
    package = f"digpro_served_{hashlib.sha256(''.join(texts).encode()).hexdigest()[:12]}"
    for source, text in zip(sources, texts, strict=True):
        target = folder / PACKAGE.sub(package, source.relative_to(top).as_posix())
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(PACKAGE.sub(package, text), encoding="utf-8")
    return folder / package, target.rename(folder / target.name)


@contextmanager
def _importable(package: Path) -> Iterator[None]:
    """Inside, a package can be imported, as MLflow does when it saves the model; afterwards it is unloaded."""
    sys.path.insert(0, str(package.parent))
    try:
        yield
    finally:
        sys.path.remove(str(package.parent))
        for name in [name for name in sys.modules if name.split(".")[0] == package.name]:
            del sys.modules[name]


def _file(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return spec.origin
