"""What changes during a run: networks and optimizer, pseudo-labels, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import SGD

from pipeline.collectives import RowRange, all_sum
from pipeline.method.digpro import DigPro, StepLosses

LOSSES = tuple("loss" if name == "total" else f"loss_{name}" for name in StepLosses._fields)


@dataclass(frozen=True)
class PseudoLabels:
    """Result of an E-step. The centres are equal on every worker; each keeps the labels of its own images only.

    Attributes
    ----------
    labels : Tensor (own rows,) int32
        Clusters of the images that this worker owns.
    centers : Tensor (K, D)
    own : RowRange
        Their rows.
    others : Tensor (R-1, K, D) or None
        Centres of the other starts of k-means; None after a resume, since only the E-step itself uses them.
    """

    labels: Tensor
    centers: Tensor
    own: RowRange
    others: Tensor | None = None

    def of(self, index: Tensor) -> Tensor:
        """Clusters (n,) int64 of own images, by their index (n,) in the whole set; without waiting for the device.

        An image of another worker gives an IndexError on a CPU, and a failed device assertion on a GPU.
        """
        return self.labels.index_select(0, index - self.own.start).long()

    def sizes(self) -> Tensor:
        """Number of images (K,) int64 in each cluster over all workers; all of them call it."""
        return all_sum(torch.bincount(self.labels, minlength=len(self.centers)))


@dataclass
class TrainState:
    """What changes during a run.

    Attributes
    ----------
    epochs_done : int
    step : int
        Steps done in the epoch under way.
    loss_sums : dict of Tensor () float64
        Sums of this worker's losses over these steps, by name; wide enough that the order of adding does not matter.
    pseudo : PseudoLabels or None
        None before the first E-step.
    skipped : Tensor () int64
        Steps of the epoch under way whose gradients were not finite; the same on every worker.
    backbone : dict of Tensor
        Weights of a frozen backbone. They do not change, but with them a checkpoint is enough to encode images. Empty
        when the encoder is trained.
    history : list of dict
        Metrics of every finished epoch, the initial E-step's first.
    """

    model: DigPro
    optimizer: SGD
    epochs_done: int = 0
    step: int = 0
    pseudo: PseudoLabels | None = None
    backbone: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    loss_sums: dict[str, Tensor] = field(init=False)
    skipped: Tensor = field(init=False)

    def __post_init__(self) -> None:
        device = self.model.groups.features.device
        self.loss_sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in LOSSES}
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
