"""The model that MLflow serves: encoded images or pixels in, clusters out.

MLflow runs a copy of this file with copies of the few modules that it needs: neither Ray nor training code is loaded.
"""

from __future__ import annotations

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
from pipeline.serving.items import listed, read_item

BATCH = 64  # images in a forward pass


class Refused(MlflowException):
    """An input that is not an image; HTTP status 400."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, INVALID_PARAMETER_VALUE)

    def serialize_as_json(self) -> str:
        """The HTTP answer without the request, often megabytes, that MLflow's server writes before the reason."""
        self.message = str(self)
        return str(super().serialize_as_json())


class ServedModel(mlflow.pyfunc.PythonModel):
    """One or many images to a table with a row for each, which has the index of the input.

    Images come as a table with a column `image`, a Series, a dict, a list or an array (N, H, W, 3). An image is the
    bytes of a file of any format that `digpro ingest` takes, these bytes in base64 or a data URL, a record
    {"bytes": ...}, a Pillow image, or pixels as integers 0 to 255: RGB, RGBA or gray. A row has `cluster`, `name` (None
    where nobody named the cluster), `similarity`, `runner_up`, `margin` and `outlier`, as in `digpro assign`.
    """

    def load_context(self, context: Any) -> None:
        """Load the program, onto the GPU where there is one, and the card."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.card = read_bundle(Path(context.artifacts["bundle"]), self.device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The table of the clusters; Refused for an input that is not an image.

        The type hint of the input is for MLflow, which passes any input on unchanged when it finds this one.
        """
        try:
            items, index = listed(model_input)
        except ValueError as error:
            raise Refused(first_line(error)) from None
        if not items:
            raise Refused("no image was sent")
        images = [self._pixels(number, item) for number, item in enumerate(items)]
        tables = [self._table(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return pd.concat(tables).set_axis(index)

    def _pixels(self, number: int, item: Any) -> Tensor:
        try:
            image = read_item(item, self.card.pixels)
            if isinstance(image, bytes):
                return decode(stored_bytes(image, self.card.pixels), **self.card.decoding)
            return fitted(torch.from_numpy(np.array(image)).permute(2, 0, 1), **self.card.decoding)
        except Exception as error:  # decoders may raise anything on bad bytes
            raise Refused(f"image {number}: {first_line(error)}") from None

    def _table(self, images: list[Tensor]) -> pd.DataFrame:
        with torch.inference_mode():
            similarities, _ = self.model(torch.stack(images).permute(0, 2, 3, 1).contiguous().to(self.device))
        prediction = predict(similarities.float().cpu())
        columns = {name: values.numpy() for name, values in prediction._asdict().items()}
        columns["outlier"] = self.card.clusters.outlier(columns["cluster"], columns["similarity"])
        names = np.array([self.card.name(cluster) for cluster in columns["cluster"].tolist()], dtype=object)
        return pd.DataFrame({"cluster": columns.pop("cluster"), "name": names, **columns})


set_model(ServedModel())
