"""Several trained models of the same images as one: their consensus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones.weights import digest
from pipeline.build import settle_images
from pipeline.config.loading import parse_saved
from pipeline.config.models import RunConfig
from pipeline.data.shards import Manifest
from pipeline.inference.model import TARGET, ClusterModel
from pipeline.method.losses import unit

MEMBERS = "members"  # in the values of a checkpoint: it holds a consensus


def trained_model(config: RunConfig, manifest: Manifest, values: dict[str, Any]) -> ClusterModel | ConsensusModel:
    """The model of a checkpoint, on the CPU: of a run, or of the consensus of several."""
    if MEMBERS not in values:
        return ClusterModel(config, manifest, values)
    members = values[MEMBERS]
    configs = [settle_images(parse_saved(member["config"], config.name or "")) for member in members]
    models = [ClusterModel(own, manifest, member) for own, member in zip(configs, members, strict=True)]
    return ConsensusModel(models, values["centers"])


def member_values(config: RunConfig, values: dict[str, Any]) -> dict[str, Any]:
    """What a `ConsensusModel` needs of a member: its settings, and part of one of its checkpoints."""
    target = {name: value for name, value in values["model"].items() if name.startswith(TARGET)}
    kept = {"model": target, "centers": values["centers"], "backbone": values.get("backbone", {})}
    return kept | {"config": config.model_dump(mode="json")}


def share_backbones(members: Sequence[dict[str, Any]]) -> None:
    """Give members with equal backbones the same tensors, which a file then holds once."""
    known: dict[str, dict[str, Tensor]] = {}
    for member in members:
        member["backbone"] = known.setdefault(digest(member["backbone"]), member["backbone"])


class ConsensusModel(nn.Module):
    """Several cluster models of the same images as one: an image's features are those of all members side by side.

    uint8 images (B, H, W, 3) to cosine similarities (B, K) with the common centres, and to features (B, R * D). A
    backbone that members share computes its features once.

    Parameters
    ----------
    members : sequence of ClusterModel
    centers : Tensor (K, R * D)
        Of the features side by side, which `side_by_side` makes.
    """

    centers: Tensor

    def __init__(self, members: Sequence[ClusterModel], centers: Tensor) -> None:
        super().__init__()
        inputs = [nn.Sequential(member.preprocess, member.backbone) for member in members]
        keys = [f"{module} {digest(module.state_dict())}" for module in inputs]
        self.input_of = [keys.index(key) for key in keys]
        """For each member, the first one with the same input."""
        self.inputs = nn.ModuleDict({str(first): inputs[first] for first in self.input_of})
        self.networks = nn.ModuleList(member.network for member in members)
        self.register_buffer("centers", unit(centers.float()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities (B, K) in [-1, 1], and unit features (B, R * D)."""
        inputs = {first: module(images) for first, module in self.inputs.items()}
        pairs = zip(self.networks, self.input_of, strict=True)
        features = side_by_side([network(inputs[str(first)]) for network, first in pairs])
        return features @ self.centers.T, features


def side_by_side(features: Sequence[Tensor]) -> Tensor:
    """Unit features (n, R * D) of the features (n, D) of R members, each of which weighs the same."""
    return unit(torch.cat([unit(member) for member in features], dim=1))
