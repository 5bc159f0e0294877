"""What is needed to use a model besides its weights: how its images are read, and what its clusters are."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.data.pixel_options import PixelOptions
from pipeline.inference.predict import TrainingClusters

CARD = "model.json"
TRAINING_CLUSTERS = "clusters.json"  # in a run's folder


class ModelCard(BaseModel):
    """Goes with every form of a trained model.

    Attributes
    ----------
    run : str
        Name of the run that trained it.
    decoding : dict
        Arguments of `pipeline.data.decode.decode`: size in pixels, fit and interpolation.
    pixels : PixelOptions
        How files of more than 8 bits, several bands or transparency become pixels.
    clusters : TrainingClusters
    names : dict of int to str
        Names that people gave to clusters; clusters with the same name count as one. A cluster without a name counts
        by itself.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    run: str
    decoding: dict[str, Any]
    pixels: PixelOptions
    clusters: TrainingClusters
    names: dict[int, str] = {}

    def name(self, cluster: int) -> str | None:
        """The cluster's name; None where nobody named it."""
        return self.names.get(cluster)
