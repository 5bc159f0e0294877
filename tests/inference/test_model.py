"""The model that assigns is the one that was trained: the same features, the same clusters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.build import build_model, build_preprocess
from pipeline.clustering.kmeans import spherical_kmeans
from pipeline.config.loading import load_config
from pipeline.inference.model import ClusterModel
from pipeline.method.digpro import DigPro
from tests.helpers.manifests import manifest

K = 5
CONFIG = load_config(
    "digits",
    [
        f"method.num_clusters={K}",
        "optim.precision=float32",
        "model.projector_hidden=16",
        "model.predictor_hidden=16",
        "model.feature_size=8",
        "views.hue=0.1",
        "method.bank_size=32",
    ],
)
MANIFEST = manifest()


@pytest.fixture(scope="module")
def trained() -> DigPro:
    """A model whose weights and statistics have moved, so that forgetting any of them shows."""
    model = build_model(CONFIG, K, torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.networks.target.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    views = torch.randn(2, 32, 3, 16, 16, generator=generator)
    model(*views, torch.zeros(32, dtype=torch.int64), target_momentum=0.9)
    return model


def images(count: int, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return (torch.nn.functional.interpolate(coarse, (size, size)).permute(0, 2, 3, 1) * 255).to(torch.uint8)


def features(model: DigPro, block: Tensor) -> Tensor:
    return model.encode(build_preprocess(CONFIG, MANIFEST)(block))


def checkpoint(model: DigPro, centers: Tensor) -> dict[str, Any]:
    """What a checkpoint keeps, as far as assigning needs it."""
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("bank.")}
    return {"model": weights, "centers": centers}


def test_similarities_are_cosines_of_the_e_steps_features(trained: DigPro) -> None:
    block, centers = images(20), 7 * torch.randn(K, 8, generator=torch.Generator().manual_seed(1))
    found, unit = ClusterModel(CONFIG, MANIFEST, checkpoint(trained, centers))(block)
    torch.testing.assert_close(unit, features(trained, block))
    expected = features(trained, block) @ torch.nn.functional.normalize(centers, dim=1).T
    torch.testing.assert_close(found, expected)
    assert float(found.abs().max()) <= 1 + 1e-6


def test_clusters_are_those_of_k_means_on_the_same_images(trained: DigPro) -> None:
    block = images(200)
    result = spherical_kmeans(features(trained, block), K, restarts=2, seed=0)
    found = ClusterModel(CONFIG, MANIFEST, checkpoint(trained, result.centers))(block)[0].argmax(dim=1)
    assert len(result.labels.unique()) == K
    torch.testing.assert_close(found, result.labels)


def test_images_of_another_size_are_resized(trained: DigPro) -> None:
    model = ClusterModel(CONFIG, MANIFEST, checkpoint(trained, torch.eye(K, 8)))
    large = images(6, size=48)
    torch.testing.assert_close(model(large)[0], features(trained, large) @ torch.eye(K, 8).T)
    assert model(large[:, :40])[0].shape == (6, K)


def test_rows_do_not_depend_on_their_batch(trained: DigPro) -> None:
    model, block = ClusterModel(CONFIG, MANIFEST, checkpoint(trained, torch.eye(K, 8))), images(12)
    torch.testing.assert_close(torch.cat([model(part)[0] for part in block.split(5)]), model(block)[0])


def test_a_checkpoint_of_another_shape_is_refused(trained: DigPro) -> None:
    other = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"feature_size": 9})})
    with pytest.raises(RuntimeError, match="size mismatch"):
        ClusterModel(other, MANIFEST, checkpoint(trained, torch.eye(K, 8)))


def test_a_checkpoint_without_weights_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        ClusterModel(CONFIG, MANIFEST, {"model": {}, "centers": torch.eye(K, 8)})
