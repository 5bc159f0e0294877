"""DigPro's M-step: two views and pseudo-labels in, the three losses out (arXiv 2401.13581, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.clustering.kmeans import spherical_kmeans
from pipeline.collectives import RowRange, Scope, attach_sum, equal_rows, from_rank_zero, sum_together
from pipeline.method.batchnorm import use_global_batchnorm
from pipeline.method.groups import FeatureBank, MomentumGroups
from pipeline.method.losses import group_loss, instance_loss, prototype_contrast, prototype_sums, unit
from pipeline.method.network import OnlineTarget


@dataclass(frozen=True)
class DigProSettings:
    """Settings of the method; the defaults are the paper's, `reference_*` restore what the reference code does.

    Attributes
    ----------
    num_clusters : int
        K, of pseudo-labels and prototypes.
    num_groups : int or None
        G, of groups; None is K, as in the paper. SMoG, where groups come from, has several times as many as classes.
    reference_lead_momentum : float or None
        Momentum of an extra update of the target before the forward pass; 0.99 in the reference, None for no update.
    reference_empty_logit : float
        Logit of empty prototypes; the reference has -10, which leaves them in the denominator.
    reference_raw_groups : bool
        Mix raw instead of unit features into the groups, as the reference does.
    """

    num_clusters: int
    num_groups: int | None = None
    instance_weight: float = 1.0
    prototype_weight: float = 0.1
    group_weight: float = 0.3
    prototype_temperature: float = 0.5
    group_temperature: float = 0.1
    group_momentum: float = 0.99
    bank_size: int = 2560
    reference_lead_momentum: float | None = None
    reference_empty_logit: float = float("-inf")
    reference_raw_groups: bool = False

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each loss in the total, by its name in `StepLosses`."""
        return {"instance": self.instance_weight, "prototype": self.prototype_weight, "group": self.group_weight}


class StepLosses(NamedTuple):
    """Losses of one step; their averages over the workers are the losses of the global batch.

    A new loss is a field here, a weight in `DigProSettings` and a term in `DigPro._losses`.
    """

    instance: Tensor
    prototype: Tensor
    group: Tensor
    total: Tensor


class _GroupPass(NamedTuple):
    """One pass of dynamic grouping: the groups before it (G, D), the targets' groups (B,), member sums (G, D+1)."""

    start: Tensor
    assignment: Tensor
    sums: Tensor


class DigPro(nn.Module):
    """The online and target networks, the predictor, the groups and the bank.

    Parameters
    ----------
    encoder, projector : nn.Module
        (B, 3, H, W) -> (B, size) -> (B, D). Their BatchNorms become global-batch ones.
    predictor : nn.Module
        (B, D) -> (B, D).
    feature_size : int
        D.
    settings : DigProSettings
    autocast : torch.dtype or None
        Precision of the networks' forward passes; losses and groups stay in the precision of the weights.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        feature_size: int,
        settings: DigProSettings,
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.autocast = settings, autocast
        self.networks = OnlineTarget(encoder, projector)
        self.predictor = use_global_batchnorm(predictor, blocks=4)
        self.groups = MomentumGroups(
            settings.num_groups or settings.num_clusters,
            feature_size,
            momentum=settings.group_momentum,
            raw_updates=settings.reference_raw_groups,
        )
        self.bank = FeatureBank(settings.bank_size, feature_size)

    def forward(
        self,
        view_a: Tensor,
        view_b: Tensor,
        labels: Tensor,
        *,
        target_momentum: float,
        noise: Tensor | None = None,
        warmup: bool = False,
        group_centers: Tensor | None = None,
        rows: RowRange | None = None,
    ) -> StepLosses:
        """Losses of one step. Side effects: target, groups, bank and BatchNorm statistics move.

        Parameters
        ----------
        view_a, view_b : Tensor (B, 3, H, W)
            Two views of this worker's images; converted to the precision of the weights.
        labels : Tensor (B,) int64
            Pseudo-labels of the images.
        target_momentum : float
            Of this step's update of the target, which happens after the losses and before the optimizer's step.
        noise : Tensor (2, B, D), optional
            Added to the online features of each view before the predictor's instance branch.
        warmup : bool
            Leave the prototype loss out (it is 0).
        group_centers : Tensor (G, D), optional
            Reset the groups to these before the step.
        rows : RowRange, optional
            This worker's rows of the global batch; equal shares in rank order when absent.
        """
        own = rows or equal_rows(len(view_a))
        if group_centers is not None:
            self.groups.reset(group_centers)
        elif self.settings.reference_lead_momentum is not None:
            self.networks.ema_update(self.settings.reference_lead_momentum)
        online = self._features(self.networks.online, view_a, view_b)
        with torch.no_grad():
            target = self._features(self.networks.target, view_b, view_a)
        clean, noisy = self._predictions(online, noise)
        with torch.autocast(view_a.device.type, enabled=False):
            losses = self._losses(online, target, clean, noisy, None if warmup else labels, own.share)
            for features in online:
                self.bank.push(unit(features), own)
        self.networks.ema_update(target_momentum)
        return losses

    def _features(self, network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
        """Features (2, B, D) of two views, in the precision of the weights."""
        own = self.groups.features.dtype
        with self._mixed_precision(first.device):
            features = network(torch.cat([first, second]).to(own))
        return features.to(own).unflatten(0, (2, -1))

    def _predictions(self, online: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predictions (2, B, D) of each view's features, without and with the latent noise."""
        noisy = online if noise is None else online + noise
        with self._mixed_precision(online.device):
            predictions = self.predictor(torch.stack([online, noisy], dim=1).flatten(0, 2))
        predictions = predictions.to(online.dtype).view(2, 2, *online.shape[1:])
        return predictions[:, 0], predictions[:, 1]

    def _losses(
        self, online: Tensor, target: Tensor, clean: Tensor, noisy: Tensor, labels: Tensor | None, share: float
    ) -> StepLosses:
        """The losses of both passes, each of one view against the other's target features; moves the groups.

        Features are (2, B, D). Means over this worker's rows are weighted by its `share`; the prototype loss is already
        global.
        """
        passes, prototypes = self._exchange(online, target, labels)
        groups = [self.groups.moved(each.start, each.sums) for each in passes]
        temperature = self.settings.group_temperature
        terms = {
            "instance": [share * instance_loss(n, t) for n, t in zip(noisy, target, strict=True)],
            "prototype": [self._prototype_loss(sums) for sums in prototypes] or [online.new_zeros(())],
            "group": [
                share * group_loss(c, g, each.assignment, temperature)
                for c, g, each in zip(clean, groups, passes, strict=True)
            ],
        }
        means = {name: torch.stack(values).mean() for name, values in terms.items()}
        total = torch.stack([weight * means[name] for name, weight in self.settings.weights.items()]).sum()
        return StepLosses(**means, total=total)

    def _exchange(self, online: Tensor, target: Tensor, labels: Tensor | None) -> tuple[list[_GroupPass], Tensor]:
        """What the losses need from other workers, in two exchanges forward and one backward.

        The second pass starts from the groups as moved by the first. Returns both passes with the sums of the
        global batch, and the sums behind both passes' prototypes (2, K, 2D+1), or none in the warm-up.
        """
        own_prototypes = self._prototype_sums(online, target, labels)
        first = self._group_pass(online[0], target[0])
        first_total, prototypes = sum_together(first.sums, own_prototypes)
        self.groups.move(first_total)
        second = self._group_pass(online[1], target[1])
        (second_total,) = sum_together(second.sums)
        self.groups.move(second_total)
        sums = attach_sum(torch.stack([first.sums, second.sums]), torch.stack([first_total, second_total]))
        passes = [first._replace(sums=sums[0]), second._replace(sums=sums[1])]
        return passes, attach_sum(own_prototypes, prototypes, shared=True)

    def _group_pass(self, online: Tensor, target: Tensor) -> _GroupPass:
        """One view's online features (B, D) against the other's target features (B, D), before the groups move."""
        return _GroupPass(self.groups.features, self.groups.assign(target), self.groups.member_sums(online))

    def _prototype_sums(self, online: Tensor, target: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            return online.new_empty(0)
        pairs = zip(online, target, strict=True)
        return torch.stack([prototype_sums(q, t, labels, self.settings.num_clusters) for q, t in pairs])

    def _prototype_loss(self, sums: Tensor) -> Tensor:
        s = self.settings
        return prototype_contrast(sums, s.prototype_temperature, empty_logit=s.reference_empty_logit)

    def bank_centers(self, seed: int) -> Tensor | None:
        """Centres (G, D) to reset the groups to, equal on every worker; None while the bank has fewer than G rows."""
        rows, num_groups = self.bank.gather(), len(self.groups.features)
        if len(rows) < num_groups:
            return None
        centers = spherical_kmeans(rows, num_groups, restarts=1, seed=seed, scope=Scope.THIS_WORKER).centers
        return from_rank_zero(centers)  # different machines may differ in the last bit

    def use_channels_last(self) -> None:
        """Keep the channels of a pixel together in memory: convolutions then pass this layout on."""
        self.networks.to(memory_format=torch.channels_last)

    def compile_networks(self, backend: str = "inductor") -> None:
        """Compile networks and predictor, each as one graph; a graph break is an error. Weights keep their names."""
        for network in (self.networks.online, self.networks.target, self.predictor):
            network.compile(fullgraph=True, backend=backend)

    def encode(self, images: Tensor) -> Tensor:
        """Unit features (B, D) of the target network in evaluation mode: what the E-step clusters."""
        target, own = self.networks.target, self.groups.features.dtype
        was_training = target.training
        target.eval()
        with torch.no_grad(), self._mixed_precision(images.device):
            features = target(images.to(own))
        target.train(was_training)
        return unit(features.to(own))

    def _mixed_precision(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None)
