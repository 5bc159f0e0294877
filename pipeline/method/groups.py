"""Dynamic grouping: G momentum groups that follow the online features, and the bank behind their resets.

DigPro section 3.2, after SMoG (arXiv 2207.06167): groups move with every batch, and each image is contrasted with
groups instead of other images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.collectives import RowRange, all_sum
from pipeline.method.losses import sums_by_label, unit


class MomentumGroups(nn.Module):
    """G group features (G, D), equal on every worker.

    Parameters
    ----------
    num_groups, feature_size : int
        G and D.
    momentum : float
        Fraction of a group that one update keeps.
    raw_updates : bool
        Mix features into the groups as they are, not on the unit sphere, as the reference code does: the step of a
        group then grows with the projector's scale.
    """

    features: Tensor

    def __init__(
        self, num_groups: int, feature_size: int, *, momentum: float = 0.99, raw_updates: bool = False
    ) -> None:
        super().__init__()
        self.momentum, self.raw_updates = momentum, raw_updates
        self.register_buffer("features", unit(torch.randn(num_groups, feature_size)))

    @torch.no_grad()
    def assign(self, features: Tensor) -> Tensor:
        """The group (B,) of largest cosine for each row of features (B, D); the lowest index on ties."""
        return (unit(features) @ unit(self.features).T).argmax(dim=1)

    def member_sums(self, features: Tensor) -> Tensor:
        """Each group's summed members and their number (G, D+1), among this worker's online features (B, D)."""
        mixed = features if self.raw_updates else unit(features)
        counted = torch.cat([mixed, torch.ones_like(mixed[:, :1])], dim=1)
        return sums_by_label(counted, self.assign(features), len(self.features))

    def moved(self, start: Tensor, sums: Tensor) -> Tensor:
        """Groups `start` (G, D) moved towards the means of the global batch's member sums (G, D+1).

        Groups without members stay. The gradient flows to the sums.
        """
        means, count = sums[:, :-1] / sums[:, -1:].clamp(min=1), sums[:, -1:].detach()
        return torch.where(count > 0, self.momentum * start + (1 - self.momentum) * means, start)

    @torch.no_grad()
    def move(self, sums: Tensor) -> None:
        """Update by the member sums (G, D+1) of the global batch."""
        self.features = self.moved(self.features, sums)

    def update(self, features: Tensor) -> Tensor:
        """Move each group towards the mean of its members in the global batch; groups without members stay.

        Parameters
        ----------
        features : Tensor (B, D)
            This worker's online features.

        Returns
        -------
        Tensor (G, D)
            The new groups, with the gradient of the update back to the features; kept here without it.
        """
        groups = self.moved(self.features, all_sum(self.member_sums(features)))
        self.features = groups.detach()
        return groups

    @torch.no_grad()
    def reset(self, centers: Tensor) -> None:
        """Move the groups to the directions of centres (G, D); ValueError if the shape differs."""
        if centers.shape != self.features.shape:
            raise ValueError(f"centers are {tuple(centers.shape)}; the groups need {tuple(self.features.shape)}")
        self.features = unit(centers).to(self.features)


class FeatureBank(nn.Module):
    """The last `size` unit features of the global batches, spread over the workers.

    Row p of the stream is at position p modulo size. A worker writes its own rows, and zeros in place of the others',
    so that the sum over workers is the whole bank and no batch has to be gathered.
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, size: int, feature_size: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, feature_size))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, features: Tensor, own: RowRange) -> None:
        """Append the unit features of this worker's rows `own` of a global batch: features (own rows, D)."""
        kept = max(own.total - len(self.rows), 0)  # only the end of a batch larger than the bank is kept
        positions = torch.arange(kept, own.total, device=self.rows.device)
        self.rows[(self.pushed + positions) % len(self.rows)] = 0
        mine = positions[max(own.start - kept, 0) : max(own.stop - kept, 0)]
        self.rows[(self.pushed + mine) % len(self.rows)] = features[len(features) - len(mine) :].to(self.rows)
        self.pushed += own.total

    @torch.no_grad()
    def gather(self) -> Tensor:
        """The bank's rows (n, D), oldest first, equal on every worker; n = size once it is full."""
        rows, pushed = all_sum(self.rows), int(self.pushed)
        return torch.roll(rows, -(pushed % len(rows)), dims=0) if pushed >= len(rows) else rows[:pushed].clone()

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """The whole bank, for any number of workers, as a checkpoint keeps it."""
        return {"rows": all_sum(self.rows).clone(), "pushed": self.pushed.clone()}
