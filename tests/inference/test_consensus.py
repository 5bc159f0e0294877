"""The model of a consensus: its features are those of all members, and a backbone that they share works once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.build import build_model, open_encoder
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.inference.consensus import (
    MEMBERS,
    ConsensusModel,
    member_values,
    share_backbones,
    side_by_side,
    trained_model,
)
from pipeline.inference.model import ClusterModel
from pipeline.method.losses import unit
from pipeline.runs.train import resolve
from tests.helpers.cached_features import FROZEN
from tests.helpers.manifests import manifest

K, SIZE = 5, 16
MANIFEST = manifest()


def config(seed: int, *more: str) -> RunConfig:
    return resolve(load_config("digits", [*FROZEN, f"method.num_clusters={K}", f"seed={seed}", *more]), "run")


def checkpoint(own: RunConfig) -> dict[str, Any]:
    backbone, size = open_encoder(own)
    model = build_model(own, K, torch.device("cpu"), cached_size=size)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("bank.")}
    centers = torch.randn(K, SIZE, generator=torch.Generator().manual_seed(own.seed))
    return {"model": weights, "backbone": backbone.state_dict(), "centers": centers}


def images(count: int = 6) -> Tensor:
    return torch.randint(256, (count, SIZE, SIZE, 3), generator=torch.Generator().manual_seed(5)).to(torch.uint8)


def calls(module: nn.Module) -> list[int]:
    """Gets the batch size of each call of the module."""
    seen: list[int] = []
    module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    return seen


def test_features_are_those_of_all_members_and_a_shared_backbone_works_once() -> None:
    configs = [config(seed) for seed in (1, 2)]
    values = [checkpoint(own) for own in configs]  # the same backbone
    members = [ClusterModel(own, MANIFEST, found).eval() for own, found in zip(configs, values, strict=True)]
    centers = torch.randn(K, 2 * SIZE)
    kept = [member_values(own, found) for own, found in zip(configs, values, strict=True)]
    model = trained_model(configs[0], MANIFEST, {MEMBERS: kept, "centers": centers}).eval()
    assert isinstance(model, ConsensusModel)
    (shared,) = model.inputs.values()
    seen = calls(shared)
    similarities, features = model(images())
    assert seen == [6]
    torch.testing.assert_close(features, side_by_side([member(images())[1] for member in members]))
    torch.testing.assert_close(similarities, features @ unit(centers).T)


def test_equal_backbones_are_kept_once() -> None:
    values = [member_values(own, checkpoint(own)) for own in (config(1), config(2), config(3))]
    values[2]["backbone"] = {name: 1.5 * value for name, value in values[2]["backbone"].items()}
    share_backbones(values)
    assert values[1]["backbone"] is values[0]["backbone"]
    assert values[2]["backbone"] is not values[0]["backbone"]


def test_members_with_other_backbones_or_views_keep_their_own() -> None:
    first = config(1)
    smaller, other = config(1, "views.size=12"), config(2)
    found = [checkpoint(own) for own in (first, smaller, other)]
    found[2]["backbone"] = {name: 1.5 * value for name, value in found[2]["backbone"].items()}
    members = [ClusterModel(own, MANIFEST, v).eval() for own, v in zip((first, smaller, other), found, strict=True)]
    model = ConsensusModel(members, torch.randn(K, 3 * SIZE)).eval()
    assert len(model.inputs) == 3
    torch.testing.assert_close(model(images())[1], side_by_side([member(images())[1] for member in members]))


def test_each_member_weighs_the_same() -> None:
    found = side_by_side([torch.tensor([[3.0, 0]]), torch.tensor([[0, 0.1]])])
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0, 0, 0.5**0.5]]))
