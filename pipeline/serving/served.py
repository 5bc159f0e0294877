"""The model that MLflow serves: encoded images or pixels in, clusters out.

MLflow runs this file itself, beside a copy of the few modules of ours that it needs: neither Ray nor anything of the
training is loaded.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from torch import Tensor

from pipeline.data.decode import decode, fitted
from pipeline.data.pixels import stored_bytes
from pipeline.errors import first_line
from pipeline.inference.predict import predict
from pipeline.serving.bundle import read_bundle

BATCH = 64  # images in a forward pass
COLUMN = "image"


class ServedModel(mlflow.pyfunc.PythonModel):
    """A table with a column `image`, a list, or an array (N, H, W, 3) of images, to a table with a row for each.

    An image is the bytes of a file of any format that `digpro ingest` takes, these bytes in base64, or RGB pixels uint8
    (H, W, 3). A row has `cluster`, `name` (None where nobody named the cluster), `similarity`, `runner_up`,
    `margin` and `outlier`, as `digpro assign` has them.
    """

    def load_context(self, context: Any) -> None:
        """Load the program, onto the GPU where there is one, and the card."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.card = read_bundle(Path(context.artifacts["bundle"]), self.device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The table of the clusters; MlflowException, which is HTTP status 400, for what is no image.

        The hint is for MLflow, which leaves all input alone where it finds this one.
        """
        images = [self._pixels(number, item) for number, item in enumerate(_items(model_input))]
        return pd.concat([self._table(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])

    def _pixels(self, number: int, item: Any) -> Tensor:
        try:
            if isinstance(item, (str, bytes, bytearray, memoryview)):
                data = base64.b64decode(item, validate=True) if isinstance(item, str) else bytes(item)
                return decode(stored_bytes(data, self.card.pixels), **self.card.decoding)
            return fitted(_rgb(np.asarray(item)), **self.card.decoding)
        except binascii.Error:
            problem = f"text that is not base64 ({item[:20]!r}...); send the bytes of the image file in base64"
        except Exception as error:  # decoders raise whatever the bytes drive them to
            problem = first_line(error)
        raise MlflowException(f"image {number}: {problem}", INVALID_PARAMETER_VALUE)

    def _table(self, images: list[Tensor]) -> pd.DataFrame:
        with torch.inference_mode():
            similarities, _ = self.model(torch.stack(images).permute(0, 2, 3, 1).contiguous().to(self.device))
        prediction = predict(similarities.float().cpu())
        columns = {name: values.numpy() for name, values in prediction._asdict().items()}
        columns["outlier"] = self.card.clusters.outlier(columns["cluster"], columns["similarity"])
        names = [self.card.name(cluster) for cluster in columns["cluster"].tolist()]
        return pd.DataFrame({"cluster": columns.pop("cluster"), "name": names, **columns})


def _items(given: Any) -> list[Any]:
    """The images of whatever form they came in."""
    if isinstance(given, (pd.DataFrame, dict)):
        if COLUMN not in given:
            raise MlflowException(f"there is no column {COLUMN!r} but {list(given)}", INVALID_PARAMETER_VALUE)
        given = given[COLUMN].tolist() if isinstance(given, pd.DataFrame) else given[COLUMN]
    items = list(given) if isinstance(given, (list, tuple, np.ndarray)) else [given]
    if not items:
        raise MlflowException("no image was sent", INVALID_PARAMETER_VALUE)
    return items


def _rgb(pixels: np.ndarray[Any, Any]) -> Tensor:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not np.issubdtype(pixels.dtype, np.integer):
        raise ValueError(f"{pixels.dtype} of shape {pixels.shape}; send integers 0 to 255 of shape (height, width, 3)")
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"values from {pixels.min()} to {pixels.max()}; send integers 0 to 255")
    return torch.from_numpy(pixels.astype(np.uint8)).permute(2, 0, 1)


set_model(ServedModel())
